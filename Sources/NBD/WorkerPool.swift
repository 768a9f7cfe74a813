import Blocks
import Glibc

/// A request on its way through a worker, and the memory it needs. Preallocated by its connection, which owns
/// it except between ``WorkerPool/submit(_:)`` and its return through the ``Mailbox``: then the worker does.
final class RequestSlot: @unchecked Sendable {
    // Unchecked: it has one owner at a time, handed over under the locks of pool and mailbox.
    var request = RequestHeader()
    /// The payload of a WRITE before, the reply after the request was executed.
    var buffer = SlotBuffer()
    /// Bytes counted against the connection's budget.
    var memory = 0
    /// Nanoseconds that the store took.
    var elapsed: UInt64 = 0
    /// The next in the queue that this slot is in.
    fileprivate(set) var next: RequestSlot?

    private let executor: RequestExecutor
    private let mailbox: Mailbox

    init(executor: RequestExecutor, mailbox: Mailbox) {
        self.executor = executor
        self.mailbox = mailbox
    }

    fileprivate func run() {
        execute()
        mailbox.post(self)
    }

    /// Executes the request, on the caller's thread.
    func execute() {
        let start = MonotonicClock.now
        buffer.execute(request, executor)
        elapsed = MonotonicClock.now &- start
    }

    /// Executes the request, a WRITE, on the caller's thread unless it would have to wait for something else than
    /// the device.
    /// - Returns: false when it would; then nothing was done.
    func writePromptly() -> Bool {
        let start = MonotonicClock.now
        guard buffer.writePromptly(request, executor) else { return false }
        elapsed = MonotonicClock.now &- start
        return true
    }
}

/// First in, first out, linked through the slots, so that it never allocates.
struct SlotQueue {
    private var head: RequestSlot?
    private var tail: RequestSlot?

    var isEmpty: Bool { head == nil }

    mutating func append(_ slot: RequestSlot) {
        precondition(slot.next == nil, "a slot is in one queue at a time")
        if let tail { tail.next = slot } else { head = slot }
        tail = slot
    }

    mutating func popFirst() -> RequestSlot? {
        guard let slot = head else { return nil }
        head = slot.next
        if head == nil { tail = nil }
        slot.next = nil
        return slot
    }
}

/// Where workers leave what they have done for the connection's event loop.
final class Mailbox: Sendable {
    private let done = Monitor(SlotQueue())
    private let wake: @Sendable () -> Void

    /// - Parameter wake: called by the worker that finds the mailbox empty.
    init(wake: @escaping @Sendable () -> Void) { self.wake = wake }

    func post(_ slot: RequestSlot) {
        let wasEmpty = done.withLock { queue in
            defer { queue.append(slot) }
            return queue.isEmpty
        }
        if wasEmpty { wake() }
    }

    func takeAll() -> SlotQueue {
        done.withLock { queue in
            defer { queue = SlotQueue() }
            return queue
        }
    }
}

/// Threads that execute requests which may block: as many as there are requests in flight, started when
/// needed, reused last in first out, and ended after some idle time (for a moment one more than that, when a
/// request comes while a worker is on its way from its last one to bed). A request never waits for another one's
/// end unless the system gives no thread.
final class WorkerPool: Sendable {
    private struct State {
        var queue = SlotQueue()
        var idle: [Worker] = []
        var threads = 0
        var stopping = false
    }

    /// A thread's bed. `slot` is written by whoever took the worker from `idle`, before it wakes it.
    private final class Worker: @unchecked Sendable {
        // Unchecked: `slot` goes from waker to worker through the semaphore.
        var slot: RequestSlot?
        private let semaphore: UnsafeMutablePointer<sem_t>

        init() {
            semaphore = .allocate(capacity: 1)
            precondition(sem_init(semaphore, 0, 0) == 0)
        }

        deinit {
            sem_destroy(semaphore)
            semaphore.deallocate()
        }

        func wake() { precondition(sem_post(semaphore) == 0) }

        func sleep() {
            while sem_wait(semaphore) != 0 { precondition(errno == EINTR) }
        }

        /// - Returns: false when nobody woke it in that time.
        func sleep(nanoseconds: UInt64) -> Bool {
            var deadline = timespec()
            clock_gettime(CLOCK_REALTIME, &deadline)
            let total = UInt64(deadline.tv_nsec) + nanoseconds
            deadline.tv_sec += Int(total / 1_000_000_000)
            deadline.tv_nsec = Int(total % 1_000_000_000)
            while sem_timedwait(semaphore, &deadline) != 0 {
                if errno == ETIMEDOUT { return false }
                precondition(errno == EINTR)
            }
            return true
        }
    }

    private let limit: Int
    private let idleTime: UInt64
    private let state: Monitor<State>

    /// - Parameters:
    ///   - limit: threads at most.
    ///   - idleTime: nanoseconds after which a thread without work ends.
    init(limit: Int = NBDLimits.workers, idleTime: UInt64 = NBDLimits.workerIdle) {
        self.limit = limit
        self.idleTime = idleTime
        state = Monitor(State())
    }

    /// Threads that there are.
    var threads: Int { state.withLock { $0.threads } }

    private enum Placement {
        case woken(Worker)
        case queued
        case start
    }

    /// Has `slot` executed.
    /// - Returns: false when there is no thread and none can be started; the slot is the caller's still.
    func submit(_ slot: RequestSlot) -> Bool {
        let placement = state.withLock { state -> Placement in
            precondition(!state.stopping, "work for a pool that stops")
            if let worker = state.idle.popLast() { return .woken(worker) }
            if state.threads < limit {
                state.threads += 1
                return .start
            }
            state.queue.append(slot)
            return .queued
        }
        switch placement {
        case .woken(let worker):
            worker.slot = slot
            worker.wake()
        case .queued:
            break
        case .start:
            if BlockingThread.start({ [self] in work(first: slot) }) { break }
            return state.withLockAndNotify { state in
                state.threads -= 1
                guard state.threads > 0 else { return false }
                state.queue.append(slot)
                return true
            }
        }
        return true
    }

    /// Ends all threads and returns when they are gone. No work may be left or come.
    func stop() {
        let idle = state.withLock { state in
            precondition(state.queue.isEmpty, "a pool is stopped with work left")
            state.stopping = true
            defer { state.idle = [] }
            return state.idle
        }
        for worker in idle { worker.wake() }
        state.wait { $0.threads == 0 ? () : nil }
    }

    private func work(first: RequestSlot) {
        let worker = Worker()
        var slot: RequestSlot? = first
        while let current = slot {
            current.run()
            slot = next(worker)
        }
        state.withLockAndNotify { $0.threads -= 1 }
    }

    /// The next slot for `worker`, or nil when its thread is to end.
    private func next(_ worker: Worker) -> RequestSlot? {
        let (queued, stopping) = state.withLock { state -> (RequestSlot?, Bool) in
            if let slot = state.queue.popFirst() { return (slot, false) }
            if !state.stopping { state.idle.append(worker) }
            return (nil, state.stopping)
        }
        if queued != nil || stopping { return queued }
        if !worker.sleep(nanoseconds: idleTime) {
            let left = state.withLock { state -> Bool in
                guard let index = state.idle.firstIndex(where: { $0 === worker }) else { return false }
                state.idle.remove(at: index)
                return true
            }
            if left { return nil }
            // Somebody took it at this very moment, and wakes it.
            worker.sleep()
        }
        defer { worker.slot = nil }
        return worker.slot
    }
}
