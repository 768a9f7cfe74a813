import Blocks
import Glibc

/// Why what a bridge keeps from run to run cannot be had or kept.
public struct BridgeStateError: Error, Sendable, CustomStringConvertible {
    public enum Kind: Hashable, Sendable {
        /// The directory is not there.
        case missing
        case notPermitted
        /// Another bridge keeps its state there.
        case inUse
        /// A file is not what was written.
        case damaged
        /// The system refused; also a full disk.
        case system
    }
    public var kind: Kind
    public var path: String
    public var reason: String

    init(_ kind: Kind, _ path: String, _ reason: String) {
        self.kind = kind
        self.path = path
        self.reason = reason
    }

    init(_ path: String, errno code: Int32) {
        let kind: Kind =
            switch code {
            case ENOENT, ENOTDIR: .missing
            case EACCES, EPERM, ELOOP: .notPermitted
            default: .system
            }
        self.init(kind, path, String(cString: strerror(code)))
    }

    public var description: String { "cannot use the state \(path): \(reason)" }
}

/// The directory in which a bridge keeps what must outlive it: one file for each unit with registrations that persist
/// (see <doc:ReservationState>). A file is replaced as a whole, and is on stable storage when ``save(_:unit:)`` returns.
final class StateDirectory: Sendable {
    let path: String
    private let descriptor: Int32

    /// - Parameter isLocked: taken for itself; without, only looked at.
    /// - Throws: where it is no directory, another bridge has it, or others than its owner may change what is in it.
    init(_ path: String, isLocked: Bool) throws(BridgeStateError) {
        self.path = path
        descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw BridgeStateError(path, errno: errno) }
        var status = stat()
        var failure: BridgeStateError?
        if fstat(descriptor, &status) != 0 {
            failure = BridgeStateError(path, errno: errno)
        } else if status.st_mode & 0o022 != 0 {
            failure = BridgeStateError(
                .notPermitted, path, "others may change what is in it; chmod go-w \(path)")
        } else if isLocked, flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
            failure =
                errno == EWOULDBLOCK
                ? BridgeStateError(.inUse, path, "another bridge keeps its state there; give each its own")
                : BridgeStateError(path, errno: errno)
        }
        // It is closed by `deinit`, which runs since all is set.
        if let failure { throw failure }
    }

    deinit { _ = Glibc.close(descriptor) }

    private func name(_ unit: LogicalUnit) -> String { "reservations-\(unit.serial)" }
    private func fullPath(_ name: String) -> String { path + "/" + name }

    /// What was saved of the unit; nil: nothing.
    func load(_ unit: LogicalUnit) throws(BridgeStateError) -> UnitReservations? {
        let name = name(unit)
        guard let bytes = try read(name) else { return nil }
        do throws(ReservationFile.Damage) {
            let file = try ReservationFile(decoding: bytes)
            guard file.unit == unit.identity else { throw ReservationFile.Damage("it is another unit's") }
            return file.state
        } catch {
            throw BridgeStateError(
                .damaged, fullPath(name),
                "\(error.reason); without it the unit \(unit.number) has no reservations: remove it only if none is "
                    + "needed, and let the initiators register again")
        }
    }

    /// Saves what persists of the unit's reservations, or that nothing does.
    func save(_ state: UnitReservations, unit: LogicalUnit) throws(BridgeStateError) {
        let name = name(unit)
        if state.persists {
            try replace(name, ReservationFile(unit: unit.identity, state).encoded())
        } else if unlinkat(descriptor, name, 0) != 0 {
            if errno == ENOENT { return }
            throw BridgeStateError(fullPath(name), errno: errno)
        }
        guard fsync(descriptor) == 0 else { throw BridgeStateError(path, errno: errno) }
    }

    private func replace(_ name: String, _ bytes: [UInt8]) throws(BridgeStateError) {
        let new = name + ".new"
        let fd = openat(descriptor, new, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw BridgeStateError(fullPath(new), errno: errno) }
        var failure = Self.write(bytes, fd)
        if failure == nil, fsync(fd) != 0 { failure = errno }
        if Glibc.close(fd) != 0, failure == nil { failure = errno }
        if failure == nil, renameat(descriptor, new, descriptor, name) != 0 { failure = errno }
        if let failure { throw BridgeStateError(fullPath(new), errno: failure) }
    }

    /// - Returns: the error's number, or nil.
    private static func write(_ bytes: [UInt8], _ fd: Int32) -> Int32? {
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes { Glibc.write(fd, $0.baseAddress, $0.count) }
            if count < 0 {
                if errno == EINTR { continue }
                return errno
            }
            done += count
        }
        return nil
    }

    /// Nil where there is none.
    private func read(_ name: String) throws(BridgeStateError) -> [UInt8]? {
        let fd = openat(descriptor, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK)
        guard fd >= 0 else {
            if errno == ENOENT { return nil }
            throw BridgeStateError(fullPath(name), errno: errno)
        }
        defer { _ = Glibc.close(fd) }
        var bytes = [UInt8](repeating: 0, count: ReservationFile.maximumBytes + 1)
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeMutableBytes { Glibc.read(fd, $0.baseAddress, $0.count) }
            if count < 0 {
                if errno == EINTR { continue }
                throw BridgeStateError(fullPath(name), errno: errno)
            }
            if count == 0 { break }
            done += count
        }
        return Array(bytes[..<done])
    }
}
