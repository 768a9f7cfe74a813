import Blocks
import Glibc
import HostControl
import PhysicalCopy

/// Where a restore goes: a new file, which gets its name when it is complete; something that is there and may be
/// overwritten; or the source of a running host, which stands still meanwhile.
final class RestoreSite {
    /// What the bridge writes.
    private(set) var path: String
    private let destination: String
    private let force: Bool
    /// A new file.
    private let draft: FileDraft?
    /// It reads as zeros wherever nothing was written.
    var isBlank: Bool { draft != nil }
    private let line: (any HostLine)?
    /// The source of a running host, which keeps its lock on it.
    var isLive: Bool { line != nil }
    /// Locked already: by its host; or it is a draft, which has a lock of its own that on a file system of the network
    /// may exclude others.
    var isLocked: Bool { isLive || isBlank }
    private let observer: any SequenceObserver
    private let freezeSeconds: Double
    /// The host was frozen by us.
    private var isHeld = false
    /// The host's last epoch when it was frozen: no other may begin under a restore.
    private var lastEpoch: String?
    private var keeper: FreezeKeeper?
    /// Something may have been written.
    private var isTouched = false
    /// Left as it is now, it is neither what it was nor what the copy is.
    var isHalfDone: Bool { isTouched && !isBlank }
    private static let doing = "restoring to"

    /// Looks at the destination and changes nothing but that a temporary file is made.
    /// - Throws: 73 when it exists and force is not given, or is too small; 77 when it cannot be written; 75 when
    ///   somebody uses it; 64 when the host that was named does not serve it.
    /// - Parameters:
    ///   - plan: a new file gets the volume's size, and holes where nothing is restored; what is there must have room
    ///     for all that is restored.
    ///   - space: bytes that a new file will take.
    ///   - data: the file or device that it is restored from, on this machine.
    init(
        _ request: RestoreRequest, _ plan: RestorePlan, taking space: UInt64, volumeSize size: UInt64,
        from data: String?,
        world: Collaborators, observer: any SequenceObserver
    ) throws(AgentError) {
        destination = request.destination
        force = request.force
        self.observer = observer
        freezeSeconds = world.restoreFreezeSeconds
        let doing = Self.doing
        guard request.unit == nil else {
            // The bridge looks after its units.
            (draft, line, path) = (nil, nil, "")
            guard request.force else {
                throw AgentError(
                    .cannotCreate, doing: doing, to: destination, because: "it is not known to be empty",
                    advice: "have it overwritten with --force")
            }
            return
        }
        var information = stat()
        if stat(destination, &information) != 0 {
            guard errno == ENOENT else {
                throw AgentError.system(errno, doing: doing, to: destination, otherwise: .cannotCreate)
            }
            guard request.host == nil else {
                throw AgentError(
                    .usage, doing: doing, to: destination, because: "it does not exist, so no host serves it")
            }
            let draft = try Self.draft(of: destination, size, taking: space)
            line = nil
            path = draft.path
            self.draft = draft
            return
        }
        draft = nil
        path = destination
        try Self.check(
            destination, information, plan.pieces.last?.volume.end ?? 0, data, force: request.force)
        guard let control = request.host else {
            line = nil
            try Self.checkUnused(destination, isDevice: information.st_mode & S_IFMT == S_IFBLK)
            return
        }
        let line = try world.connectHost(control)
        self.line = line
        try Self.checkHost(line, serves: information, destination)
    }

    private static func draft(
        of destination: String, _ size: UInt64, taking space: UInt64
    ) throws(AgentError) -> FileDraft {
        let draft = try onCopy { () throws(CopyError) in try FileDraft(for: destination) }
        var status = statvfs()
        // Some that do not know their space tell more than there can be.
        if statvfs(draft.path, &status) == 0,
            case (let left, false) = UInt64(status.f_bavail)
                .multipliedReportingOverflow(by: UInt64(status.f_frsize)), left < space
        {
            throw AgentError(
                .cannotCreate, doing: doing, to: destination,
                because: "its file system has less than \(ByteCount(space).rounded) left",
                advice: "free some space there, or choose another place")
        }
        guard truncate(draft.path, Int(size)) == 0 else {
            throw AgentError.system(errno, doing: doing, to: destination, otherwise: .cannotCreate)
        }
        return draft
    }

    private static func check(
        _ destination: String, _ information: stat, _ size: UInt64, _ data: String?, force: Bool
    ) throws(AgentError) {
        let type = information.st_mode & S_IFMT
        guard type == S_IFREG || type == S_IFBLK else {
            throw AgentError(
                .cannotCreate, doing: doing, to: destination,
                because: "it is neither a file nor a block device")
        }
        guard force else {
            throw AgentError(
                .cannotCreate, doing: doing, to: destination, because: "it exists",
                advice: "choose another place, or overwrite it with --force")
        }
        if let data {
            var other = stat()
            if stat(data, &other) == 0, other.st_dev == information.st_dev, other.st_ino == information.st_ino
            {
                throw AgentError(
                    .usage, doing: doing, to: destination, because: "it is the copy's own data")
            }
        }
        let descriptor = open(destination, O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw AgentError.system(errno, doing: doing, to: destination, otherwise: .cannotCreate)
        }
        defer { close(descriptor) }
        let room = lseek(descriptor, 0, SEEK_END)
        guard room >= 0, UInt64(room) >= size else {
            throw AgentError(
                .cannotCreate, doing: doing, to: destination,
                because: "it has \(max(0, room)) bytes, and what is restored takes \(size)",
                advice: "restore to a larger one")
        }
    }

    /// The same file; or the same device, by whatever node.
    private static func isSame(_ a: stat, _ b: stat) -> Bool {
        guard a.st_mode & S_IFMT == b.st_mode & S_IFMT else { return false }
        if a.st_mode & S_IFMT == S_IFBLK { return a.st_rdev == b.st_rdev }
        return a.st_dev == b.st_dev && a.st_ino == b.st_ino
    }

    /// A host holds an exclusive lock on its source; a mounted device refuses exclusive opening.
    private static func checkUnused(_ destination: String, isDevice: Bool) throws(AgentError) {
        let inUse = AgentError(
            .tryAgain, doing: doing, to: destination,
            because: "it is in use, by a host or a mount as it seems",
            advice: "stop that; or name the host's control socket with --host to restore under it")
        let descriptor = open(destination, O_RDWR | O_CLOEXEC | (isDevice ? O_EXCL : 0))
        if descriptor < 0, errno == EBUSY { throw inUse }
        guard descriptor >= 0 else { throw AgentError.system(errno, doing: doing, to: destination) }
        defer { close(descriptor) }
        if flock(descriptor, LOCK_EX | LOCK_NB) != 0, errno == EWOULDBLOCK { throw inUse }
    }

    private static func checkHost(
        _ line: any HostLine, serves information: stat, _ destination: String
    ) throws(AgentError) {
        let status = try line.status()
        var served = stat()
        guard stat(status.source, &served) == 0, isSame(served, information) else {
            throw AgentError(
                .usage, doing: doing, to: destination,
                because: "the host at \(line.path) serves \(status.source)",
                advice: "name the host of the destination, or none")
        }
        if let epoch = status.epoch, epoch.state != .released {
            throw AgentError(
                .tryAgain, doing: doing, to: destination, because: "an epoch of its host is not released",
                advice: "try again when the copy that runs is over")
        }
        guard !status.isFrozen else {
            throw AgentError(
                .tryAgain, doing: doing, to: destination, because: "its host is frozen already",
                advice: "try again when it is thawed")
        }
    }

    /// Stops the host, if there is one, and keeps it stopped until ``complete()`` or ``giveUp()``.
    func hold() throws(AgentError) {
        guard let line else { return }
        _ = try line.call(
            VolumeFreezeMethod.self, .init(timeout: freezeSeconds), timeout: AgentLimits.hostFlushSeconds)
        isHeld = true
        // Begun between our look and the freeze?
        let last = try line.status().epoch
        lastEpoch = last?.uuid
        try Self.requireNoNewEpoch(last, after: lastEpoch, destination)
        let (seconds, destination) = (freezeSeconds, destination)
        keeper = try FreezeKeeper(every: UInt64(seconds / 4 * 1e9)) { () throws(AgentError) in
            try Self.requireNoNewEpoch(line.status().epoch, after: last?.uuid, destination)
            _ = try line.call(VolumeFreezeMethod.self, .init(timeout: seconds, renew: true))
        }
    }

    /// A copy whose instant lies within the restore takes what is restored in part.
    private static func requireNoNewEpoch(
        _ epoch: EpochStatus?, after last: String?, _ destination: String
    ) throws(AgentError) {
        guard let epoch, epoch.state != .released || epoch.uuid != last else { return }
        throw AgentError(
            .tryAgain, doing: doing, to: destination, because: "an epoch was begun meanwhile",
            advice: "try again when that copy is over; do not use that copy")
    }

    /// From now on it is written.
    func begin() { isTouched = true }

    /// - Throws: when the host may not stand still any more.
    func check() throws(AgentError) {
        if let failure = keeper?.failure { throw failure }
    }

    /// Whether the host may not stand still any more, for operations under way.
    var isLost: @Sendable () -> Bool { { [keeper] in keeper?.failure != nil } }

    /// All is flushed: a new file gets its name, a host goes on.
    func complete() throws(AgentError) {
        if let line, isHeld {
            keeper?.stop()
            try check()
            try Self.requireNoNewEpoch(line.status().epoch, after: lastEpoch, destination)
            isHeld = false
            guard try line.call(VolumeThawMethod.self, Empty()).wasFrozen else {
                throw AgentError(
                    .tryAgain, doing: Self.doing, to: destination,
                    because: "the freeze timed out, so applications may have written into what was restored",
                    advice: "restore it again")
            }
        }
        line?.close()
        guard let draft else { return }
        try onCopy { () throws(CopyError) in try draft.commit(replacing: false) }
    }

    /// Leaves no half file under any name; lets a host go on.
    func giveUp() {
        draft?.abandon()
        keeper?.stop()
        if let line, isHeld {
            isHeld = false
            do throws(AgentError) { _ = try line.call(VolumeThawMethod.self, Empty()) } catch {
                observer.notice("\(error)")
            }
        }
        if isHalfDone {
            observer.notice("\(destination) is restored in part only; restore it again before it is used")
        }
        line?.close()
    }

    /// What was cut off because the sequence is to stop, or its host goes on, is no failure of its own.
    func reason(of error: AgentError, _ cancellation: CancellationToken) -> AgentError {
        let isConsequence = error.status == .io || error.status == .unavailable
        var reason = error.namingFullDisk(doing: "restoring to", to: destination)
        if isConsequence {
            if cancellation.isCancelled { reason = CancellationToken.interrupted }
            do throws(AgentError) { try check() } catch { reason = error }
        }
        if reason.cause == .interrupted, isHalfDone {
            reason.advice = "what was there is overwritten in part: restore it again before it is used"
        }
        return reason
    }
}
