import Blocks
import Testing

@Suite struct RangeLockTests {
    private let range = ByteRange(offset: 10, count: 10)
    private let other = ByteRange(offset: 15, count: 10)

    private func waiter(_ lock: RangeLock, exclusive: Bool) -> Monitor<Bool> {
        let isHeld = Monitor(false)
        let count = lock.waiting
        let started = BlockingThread.start { [other] in
            lock.lock(other, exclusive: exclusive)
            isHeld.withLockAndNotify { $0 = true }
        }
        precondition(started, "no thread for a test")
        while lock.waiting == count {}
        return isHeld
    }

    /// Sharers that never leave a gap do not starve who excludes.
    @Test func nobodyOvertakesWhoWaits() {
        let lock = RangeLock()
        lock.lock(range, exclusive: false)
        let exclusive = waiter(lock, exclusive: true)
        #expect(!lock.tryLock(range, exclusive: false), "behind who waits")
        #expect(lock.tryLock(ByteRange(offset: 0, count: 15), exclusive: false), "beside who waits")
        let sharer = waiter(lock, exclusive: false)
        lock.unlock(ByteRange(offset: 0, count: 15), exclusive: false)
        lock.unlock(range, exclusive: false)
        exclusive.wait { $0 ? () : nil }
        #expect(sharer.withLock { !$0 } && lock.waiting == 1)
        lock.unlock(other, exclusive: true)
        sharer.wait { $0 ? () : nil }
        lock.unlock(other, exclusive: false)
        #expect(lock.tryLock(ByteRange(offset: 0, count: 100), exclusive: true))
    }

    /// One who holds a range and needs a second does not queue behind one who waits for the first.
    @Test func aSecondRangeIsHadAtOnce() {
        let lock = RangeLock()
        lock.lock(range, exclusive: false)
        let exclusive = waiter(lock, exclusive: true)
        #expect(lock.lockPassing(other, unless: { false }))
        lock.unlock(range, exclusive: false)
        #expect(exclusive.withLock { !$0 })
        lock.unlock(other, exclusive: false)
        exclusive.wait { $0 ? () : nil }
        #expect(!lock.lockPassing(range, unless: { true }), "but not who holds it")
    }

    /// Who gives up lets those go on that waited for its turn only.
    @Test func whoGivesUpIsForgotten() {
        let lock = RangeLock()
        lock.lock(range, exclusive: false)
        let isGivenUp = Monitor(false)
        let outcome = Monitor<Bool?>(nil)
        BlockingThread.start { [other] in
            let isLocked = lock.lock(other, exclusive: true) { isGivenUp.withLock { $0 } }
            outcome.withLockAndNotify { $0 = isLocked }
        }
        while lock.waiting == 0 {}
        let sharer = waiter(lock, exclusive: false)
        isGivenUp.withLock { $0 = true }
        #expect(outcome.wait { $0 } == false)
        sharer.wait { $0 ? () : nil }
        #expect(lock.waiting == 0)
    }
}
