import Blocks
import FoundationEssentials
import HostControl
import OriginalImage
import Synchronization

/// Who began an epoch or a freeze: a connection to the control socket. When it goes, the epoch is held by nobody,
/// and the freeze ends.
public final class EpochHolder: Sendable {
    private let alive = Atomic<Bool>(true)
    public init() {}
    public var isAlive: Bool { alive.load(ordering: .relaxed) }
    /// The connection is gone.
    public func release() { alive.store(false, ordering: .relaxed) }
}

/// One copy-on-write relation in memory.
final class Epoch: Sendable {
    enum Phase: UInt8, AtomicRepresentable {
        /// Originals are preserved.
        case open
        /// Its log is lost, and the host begins anew: what is written is only marked as changed.
        case marking
        case ended, void

        /// Whether a writer has to see to its chunks before it writes.
        var isUnderWay: Bool { self == .open || self == .marking }
    }

    /// What an epoch is that the host began by itself, since the cache was full (``CacheFullPolicy/restartFrom``).
    struct Lineage: Sendable {
        /// The epoch that an agent began, then each that was begun in the place of the one before.
        var predecessors: [UUID] = []
        /// What was written before its instant, since the one from which the changes are counted. Nobody sets bits in
        /// these any more once the epoch is open.
        var changed: [ChunkBitmap] = []
    }

    /// What seldom changes.
    private struct Circumstances {
        var holder: EpochHolder?
        var areChangesTaken = false
        var restartFailure: String?
    }

    let number: UInt64
    let uuid: UUID
    let lineage: Lineage
    /// Whether it was found open in the cache: of what was written before nobody here knows.
    let isResumed: Bool
    private let circumstances: Monitor<Circumstances>
    /// Chunks that may be overwritten: their originals are committed, or nobody needs them.
    let preserved: ChunkBitmap
    /// Chunks that a writer has taken upon itself; it stays set when they are preserved.
    let claimed: ChunkBitmap
    /// Chunks that the copy has on stable storage: nobody needs their originals.
    let passed: ChunkBitmap
    let fill = FillMeter()
    let gateNanoseconds = Atomic<UInt64>(0)
    /// Nanoseconds since 1970.
    let instant = Atomic<Int64>(0)
    private let phaseWord = Atomic<Phase>(.open)
    /// To wait at: for others' chunks, or for the phase to change (a state with bytes, as in ``Gate``).
    let changes = Monitor(0)
    private let isVoiding = Atomic<Bool>(false)

    init(
        number: UInt64, uuid: UUID, holder: EpochHolder?, chunkCount: UInt64, lineage: Lineage = Lineage(),
        isResumed: Bool = false
    ) {
        self.number = number
        self.uuid = uuid
        self.lineage = lineage
        self.isResumed = isResumed
        circumstances = Monitor(Circumstances(holder: holder))
        preserved = ChunkBitmap(count: chunkCount)
        claimed = ChunkBitmap(count: chunkCount)
        passed = ChunkBitmap(count: chunkCount)
    }

    /// The one that takes its place when its log is lost.
    func successor(_ defects: Defects = []) -> Epoch {
        let (holder, areChangesTaken) = circumstances.withLock { ($0.holder, $0.areChangesTaken) }
        var own = preserved
        if defects.contains(.forgetsMarked) {
            own = ChunkBitmap(count: preserved.count)
            for chunk in 0..<preserved.count where preserved.contains(chunk) { own.insert(chunk) }
        }
        let isAll = areChangesTaken || defects.contains(.forgetsEarlierChanges)
        let lineage = Lineage(
            predecessors: self.lineage.predecessors + [uuid],
            changed: [own] + (isAll ? [] : self.lineage.changed))
        return Epoch(
            number: number + 1, uuid: UUID.fresh(), holder: holder, chunkCount: preserved.count,
            lineage: lineage)
    }

    var holder: EpochHolder? { circumstances.withLock { $0.holder } }

    /// Whether somebody is there who may yet end it.
    var isHeld: Bool { holder?.isAlive ?? false }

    /// Has it held by another, unless somebody is there who holds it.
    /// - Returns: whether it is now.
    func adopt(by holder: EpochHolder) -> Bool {
        circumstances.withLock { circumstances in
            guard circumstances.holder?.isAlive != true else { return false }
            circumstances.holder = holder
            return true
        }
    }

    /// All of ``Lineage/changed`` has been asked for.
    func takeChanges() { circumstances.withLock { $0.areChangesTaken = true } }

    /// Why the host could not begin anew in its place.
    var restartFailure: String? { circumstances.withLock { $0.restartFailure } }

    func failRestart(_ reason: String) { circumstances.withLock { $0.restartFailure = reason } }

    /// Whether the chunk must not be overwritten before its original is in the log.
    func needsOriginal(of chunk: UInt64) -> Bool { phase == .open && !passed.contains(chunk) }

    /// Has chunks count as overwritten without their originals.
    /// - Returns: how many did not yet.
    func mark(_ chunks: some Sequence<UInt64>) -> Int {
        changes.withLockAndNotify { _ in
            chunks.count { chunk in
                claimed.insert(chunk)
                return preserved.insert(chunk)
            }
        }
    }

    var phase: Phase { phaseWord.load(ordering: .acquiring) }

    func move(to phase: Phase) {
        changes.withLockAndNotify { _ in phaseWord.store(phase, ordering: .releasing) }
    }

    func waitUntilNotOpen() { changes.wait { _ in phase == .open ? nil : () } }

    /// True for the first who asks: it makes the epoch void.
    func takeVoiding() -> Bool { !isVoiding.exchange(true, ordering: .acquiringAndReleasing) }
}

/// Page-aligned buffers of ``HostLimits/originalBytes`` that go from hand to hand.
final class BufferPool: Sendable {
    private struct Idle: @unchecked Sendable {  // each pointer is in the pool or with one user
        var buffers: [UnsafeMutableRawBufferPointer] = []
    }
    private let idle = Monitor(Idle())

    deinit { idle.withLock { for buffer in $0.buffers { buffer.deallocate() } } }

    func take() -> UnsafeMutableRawBufferPointer {
        let found = idle.withLock { UncheckedBuffer(buffer: $0.buffers.popLast()) }
        return found.buffer ?? .allocate(byteCount: HostLimits.originalBytes, alignment: 4096)
    }

    func give(_ buffer: UnsafeMutableRawBufferPointer) {
        let kept = idle.withLock { idle -> Bool in
            guard idle.buffers.count < HostLimits.idleBuffers else { return false }
            idle.buffers.append(buffer)
            return true
        }
        if !kept { buffer.deallocate() }
    }

    private struct UncheckedBuffer: @unchecked Sendable {  // handed from the pool to its one user
        let buffer: UnsafeMutableRawBufferPointer?
    }
}
