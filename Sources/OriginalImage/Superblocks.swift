import Blocks
import FoundationEssentials

/// Writing superblocks, one at a time, and until the one in force says what is true.
extension OriginalImageLog {
    /// The thread that writes again what could not be written.
    struct Recorder {
        var isRunning = false
        var isClosed = false
    }

    /// Whether a start that reads the cache finds the state that the epoch has. False after a failed write: then
    /// the log tries again by itself, until it succeeds or is closed.
    public var isRecorded: Bool { state.withLock { $0.isRecorded } }

    /// The originals of `epoch` are not complete; nothing is done unless it is the open one. Takes effect at once
    /// in this process, and on the cache if that can be written.
    /// - Returns: whether it stands on the cache; if not, the log goes on trying (``isRecorded``).
    @discardableResult
    public func void(_ reason: String, epoch: UUID) -> Bool {
        let changed = state.withLockAndNotify { state -> Bool in
            guard let found = state.superblock.epoch, found.uuid == epoch, found.state == .open else {
                return false
            }
            state.superblock.epoch?.state = .void
            state.superblock.epoch?.voidReason = reason
            state.isRecorded = false
            return true
        }
        return changed ? recordState() : true
    }

    /// Writes the superblock once more. That of a void epoch goes over the one in force when it cannot be written
    /// beside it: what that says is not true any more.
    @discardableResult
    public func recordState() -> Bool {
        do throws(LogError) {
            try update { _ throws(LogError) in }
            return true
        } catch {
            guard epoch?.state == .void else { return false }
        }
        do throws(LogError) {
            try update(generations: 2) { _ throws(LogError) in }
            return true
        } catch {
            return false  // the caller is told; the cache's failure is what made the epoch void
        }
    }

    /// Tries a last time to record what could not be recorded, and gives it up. No superblock is written by the
    /// log itself after this.
    public func close() {
        recorder.withLockAndNotify { $0.isClosed = true }
        recorder.wait { $0.isRunning ? nil : () }
        if !isRecorded { recordState() }
    }

    /// Writes the next generation of the superblock, changed by `change`; it holds from when it is on stable
    /// storage. A `void` that comes meanwhile is kept, and the change is not.
    /// - Parameter generations: how many later it is; 1 spares the one in force, 2 does not.
    /// - Throws: ``LogError/wrongState(_:)`` when the epoch became void meanwhile.
    func update(
        generations: UInt64 = 1, _ change: (inout LogSuperblock) throws(LogError) -> Void,
        adopt: (inout State) -> Void = { _ in }
    ) throws(LogError) {
        superblockTurn.wait { busy -> Void? in
            guard !busy else { return nil }
            busy = true
            return ()
        }
        defer { superblockTurn.withLockAndNotify { $0 = false } }
        var next = state.withLock { $0.superblock }
        let before = next
        try change(&next)
        guard LogLimits.counter - next.generation >= generations else {
            throw .corrupt("the superblock's generation")
        }
        next.generation += generations
        do throws(StoreError) {
            try store.write(next.encoded(), at: next.position, durable: true)
        } catch {
            // Some, all or nothing of it may be there.
            state.withLock { $0.isRecorded = false }
            keepRecording()
            throw .store(error)
        }
        let isInForce = state.withLock { state -> Bool in
            guard state.superblock == before else {
                state.superblock.generation = next.generation
                return false
            }
            state.superblock = next
            state.isRecorded = true
            adopt(&state)
            return true
        }
        // It became void while we wrote; whoever made it so waits to write that next.
        guard isInForce else { throw .wrongState(.void) }
    }

    /// Has the state recorded by a thread, unless one is at it or nobody wants it any more.
    private func keepRecording() {
        let mustStart = recorder.withLock { recorder -> Bool in
            guard !recorder.isRunning, !recorder.isClosed else { return false }
            recorder.isRunning = true
            return true
        }
        guard mustStart else { return }
        let (recorder, pauses) = (recorder, settings.recordRetry)
        let started = BlockingThread.start { [weak self] in
            var pause = pauses.lowerBound
            while true {
                let isClosed: Void? = recorder.wait(nanoseconds: pause) { $0.isClosed ? () : nil }
                guard isClosed == nil, let log = self else { break }
                log.recordState()
                // Under the lock: a failure from here on starts a thread of its own. The log, whose end takes that
                // lock, too, must not end meanwhile.
                let isDone = withExtendedLifetime(log) {
                    recorder.withLockAndNotify { recorder in
                        recorder.isRunning = !log.isRecorded
                        return !recorder.isRunning
                    }
                }
                if isDone { return }
                pause = min(2 * pause, pauses.upperBound)
            }
            recorder.withLockAndNotify { $0.isRunning = false }
        }
        // Without a thread, later superblocks carry it.
        if !started { recorder.withLockAndNotify { $0.isRunning = false } }
    }
}
