import Agent
import ArgumentParser
import AsyncIO
import Blocks
import PhysicalCopy

/// How commands reach the data of a copy: on this machine, or on a standing bridge's unit.
struct CopyDataOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "For a copy whose data lie on a standing bridge's unit: CHAP name and secret; mode 0600.",
            valueName: "file"))
    var chapFile: String?

    func credentials() throws -> InitiatorCredentials? { try chapFile.map(SecretFile.initiatorCredentials) }

    /// Reaches the bridge, if there is one, at once, so that its absence has its own exit status.
    func opener(of copy: PhysicalCopy) throws -> DataOpener {
        guard case .unit(let target, let number) = copy.dataLocation else { return Self.openLocal }
        let initiator = try Initiator(BridgeAddress(parsing: target, credentials: credentials()))
        let store = try ISCSIStore(initiator, lun: number)
        return { _, writable throws(CopyError) in
            guard !writable || store.capabilities.contains(.writable) else {
                throw CopyError(
                    .notPermitted, "open the copy's data", "unit \(number) of \(target) is read-only",
                    advice: "start the bridge without `ro` for that unit")
            }
            return store
        }
    }

    private static func openLocal(
        _ location: DataLocation, writable: Bool
    ) throws(CopyError) -> any BlockStore {
        guard case .path(let path) = location else { preconditionFailure("neither path nor unit") }
        let action = "open \(path)"
        do throws(StorageError) {
            return try StorageFile.open(
                path, access: writable ? .readWrite : .readOnly, mode: .pageCache,
                lock: writable ? .exclusive : .shared, links: .toDevices)
        } catch {
            let kind: CopyError.Kind =
                switch error.kind {
                case .missing, .unsuitable: .missing
                case .notPermitted: .notPermitted
                case .locked, .exists, .exhausted: .cannotCreate
                case .tooSmall: .damaged
                case .system: .io
                }
            throw CopyError(kind, action, error.reason)
        }
    }
}
