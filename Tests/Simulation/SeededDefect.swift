import Agent
import Blocks
import Host
import HostControl
import OriginalImage
import PhysicalCopy

/// Ways for the product to be wrong, one at a time, to prove that a simulation finds them. Most are made at the seams, where a
/// product that has the defect cannot be told from one that is treated so.
enum SeededDefect: String, CaseIterable {
    /// The source is overwritten before the original is in the log.
    case preservesAfterWriting
    /// A chunk is taken for preserved that is not.
    case forgetsOneBit
    /// An epoch opens while writes are in flight.
    case skipsDrain
    /// Durability `power` without its flush.
    case logWithoutFlush
    /// An epoch that is void does not say so on its cache.
    case voidNotRecorded
    /// A batch's header is believed without its checksum; which is as if that of one that has decayed did fit.
    case headerUnchecked
    /// The marker is that of a moment before the bridge had finished.
    case markerTooEarly
    /// A copy gets its name before its files are flushed.
    case filesNotFlushed
    /// A copy is called complete before its name is flushed.
    case directoriesNotFlushed
    /// The engine takes a transfer that was cut short for a whole one.
    case takesShortTransfersForWhole
    /// `integrate` calls the data merged before they are flushed.
    case integrateWithoutFlush
    /// What is written while the host begins anew is not counted as changed.
    case forgetsMarked
    /// Changes that nobody had asked for before the host began anew once more are forgotten.
    case forgetsEarlierChanges
    /// A restore says that it is done before its destination is flushed.
    case restoreNotFlushed
    /// A group's epochs are instituted one after the other, and no volume stands still meanwhile.
    case groupNotHeld

    var host: Defects {
        switch self {
        case .preservesAfterWriting: .preservesAfterWriting
        case .forgetsOneBit: .forgetsOneBit
        case .skipsDrain: .skipsDrain
        case .forgetsMarked: .forgetsMarked
        case .forgetsEarlierChanges: .forgetsEarlierChanges
        default: []
        }
    }

    func wrap(_ store: any BlockStore, _ role: SimulatedDisk.Role) -> any BlockStore {
        switch (self, role) {
        case (.logWithoutFlush, .cache):
            // The superblocks are flushed nevertheless: it is the batches' flush that is forgotten.
            ForgetfulStore(store, forgetsDurability: { $0 >= LogFormat.firstBatch })
        case (.voidNotRecorded, .cache): ForgetfulStore(store, forgetsWrite: Self.isVoid)
        case (.integrateWithoutFlush, .copy): ForgetfulStore(store, forgetsFlush: true)
        default: store
        }
    }

    private static func isVoid(_ offset: UInt64, _ bytes: UnsafeRawBufferPointer) -> Bool {
        guard offset < LogFormat.firstBatch, bytes.count == Int(LogFormat.blockSize) else { return false }
        do throws(LogError) {
            return try LogSuperblock(decoding: bytes, at: offset).epoch?.state == .void
        } catch { return false }
    }

    func wrap(_ line: HostClient) -> any HostLine {
        switch self {
        case .markerTooEarly: HastyLine(line)
        case .groupNotHeld: LaxLine(line)
        default: line
        }
    }

    func wrap(_ calls: FileSystemCalls) -> FileSystemCalls {
        var wrapped = calls
        guard self == .filesNotFlushed || self == .directoriesNotFlushed else { return calls }
        wrapped.fsync = { [self] descriptor in
            guard case .success(let status) = calls.fstat(descriptor) else { return calls.fsync(descriptor) }
            let isDirectory = status.st_mode & 0o170000 == 0o040000
            return isDirectory == (self == .directoriesNotFlushed) ? .success(()) : calls.fsync(descriptor)
        }
        return wrapped
    }
}

/// Does not do all that it says it has done.
private final class ForgetfulStore: BlockStore {
    private let below: any BlockStore
    private let forgetsDurability: @Sendable (UInt64) -> Bool
    private let forgetsWrite: @Sendable (UInt64, UnsafeRawBufferPointer) -> Bool
    private let forgetsFlush: Bool

    init(
        _ below: any BlockStore, forgetsDurability: @escaping @Sendable (UInt64) -> Bool = { _ in false },
        forgetsWrite: @escaping @Sendable (UInt64, UnsafeRawBufferPointer) -> Bool = { _, _ in false },
        forgetsFlush: Bool = false
    ) {
        self.below = below
        self.forgetsDurability = forgetsDurability
        self.forgetsWrite = forgetsWrite
        self.forgetsFlush = forgetsFlush
    }

    var size: UInt64 { below.size }
    var capabilities: StoreCapabilities { below.capabilities }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try below.read(at: offset, into: buffer)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        if forgetsWrite(offset, buffer) { return }
        try below.write(buffer, at: offset, durable: durable && !forgetsDurability(offset))
    }
    func write(
        gathering buffers: UnsafeBufferPointer<UnsafeRawBufferPointer>, at offset: UInt64, durable: Bool
    ) throws(StoreError) {
        try below.write(gathering: buffers, at: offset, durable: durable && !forgetsDurability(offset))
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try below.writeZeroes(range, options: options)
    }
    func flush() throws(StoreError) { if !forgetsFlush { try below.flush() } }
}

/// Asks for the marker as soon as the epoch has begun, and gives that one later.
private final class HastyLine: HostLine {
    private let below: HostClient
    private let early = Monitor<LogMarker?>(nil)
    var path: String { below.path }
    init(_ below: HostClient) { self.below = below }

    func call<M: ControlMethod>(
        _ method: M.Type, _ parameters: M.Parameters, timeout: Double
    ) throws(AgentError) -> M.Result {
        let result = try below.call(method, parameters, timeout: timeout)
        if let epoch = result as? EpochStatus, M.name == SnapshotBeginMethod.name {
            let marker = try below.call(
                SnapshotMarkMethod.self, EpochParameters(epoch: epoch.uuid), timeout: timeout)
            early.withLock { $0 = marker }
        }
        if result is LogMarker, let marker = early.withLock({ $0 }) as? M.Result { return marker }
        return result
    }
    func close() { below.close() }
}

/// Says that the volume stands still, and asks no host for it.
private final class LaxLine: HostLine {
    private let below: HostClient
    var path: String { below.path }
    init(_ below: HostClient) { self.below = below }

    func call<M: ControlMethod>(
        _ method: M.Type, _ parameters: M.Parameters, timeout: Double
    ) throws(AgentError) -> M.Result {
        if let result = Empty() as? M.Result, M.name == VolumeFreezeMethod.name { return result }
        if let result = VolumeThawMethod.Result(wasFrozen: true) as? M.Result { return result }
        return try below.call(method, parameters, timeout: timeout)
    }
    func close() { below.close() }
}
