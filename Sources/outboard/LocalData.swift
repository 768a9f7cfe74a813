import AsyncIO
import Blocks
import PhysicalCopy

/// Opens the data of copies that lie on this machine.
enum LocalData {
    static func open(_ location: DataLocation, writable: Bool) throws(CopyError) -> any BlockStore {
        switch location {
        case .path(let path), .member(let path):
            let action = "open \(path)"
            do throws(StorageError) {
                return try StorageFile.open(
                    path, access: writable ? .readWrite : .readOnly, mode: .pageCache,
                    lock: writable ? .exclusive : .shared)
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
        case .unit(let target, let number):
            throw CopyError(
                .missing, "open the copy's data",
                "they lie on unit \(number) of \(target), not on this machine",
                advice: "run this where the bridge is, on the file or device of that unit")
        }
    }
}
