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
        case open, ended, void
    }

    let number: UInt64
    let uuid: UUID
    /// Whether it was found open in the cache: of what was written before nobody here knows.
    let isResumed: Bool
    private let holding: Monitor<EpochHolder?>
    /// Chunks whose originals are committed.
    let preserved: ChunkBitmap
    /// Chunks that a writer has taken upon itself; it stays set when they are preserved.
    let claimed: ChunkBitmap
    let gateNanoseconds = Atomic<UInt64>(0)
    private let phaseWord = Atomic<Phase>(.open)
    /// To wait at: for others' chunks, or for the phase to change (a state with bytes, as in ``Gate``).
    let changes = Monitor(0)
    private let isVoiding = Atomic<Bool>(false)

    init(
        number: UInt64, uuid: UUID, holder: EpochHolder?, chunkCount: UInt64, isResumed: Bool = false
    ) {
        self.number = number
        self.uuid = uuid
        self.isResumed = isResumed
        holding = Monitor(holder)
        preserved = ChunkBitmap(count: chunkCount)
        claimed = ChunkBitmap(count: chunkCount)
    }

    var holder: EpochHolder? { holding.withLock { $0 } }

    /// Whether somebody is there who may yet end it.
    var isHeld: Bool { holder?.isAlive ?? false }

    /// Has it held by another, unless somebody is there who holds it.
    /// - Returns: whether it is now.
    func adopt(by holder: EpochHolder) -> Bool {
        holding.withLock { current in
            guard current?.isAlive != true else { return false }
            current = holder
            return true
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
