import Blocks
import Glibc
import TestSupport

/// One thread at a time, in an order that the seed decides, in a time of its own. Each task is a thread of the system that
/// waits for its turn; a turn ends where the code under test waits, sleeps or takes a lock.
///
/// Everything here is touched only by the thread whose turn it is.
final class Scheduler: SimulatedScheduler, @unchecked Sendable {
    /// A run that goes on longer than this does not end.
    static let turns = 200_000

    private final class Task {
        let process: SimulatedProcess
        var body: (() -> Void)?
        let turn: UnsafeMutablePointer<sem_t>
        /// Raised whenever it is made ready: what was to wake it before is stale then.
        var waits: UInt64 = 0
        var isWoken = false

        init(_ process: SimulatedProcess) {
            self.process = process
            turn = .allocate(capacity: 1)
            sem_init(turn, 0, 0)
        }
    }

    private struct Timer {
        var time: UInt64
        var number: UInt64
        var task: Task
        var wait: UInt64
    }

    var random: SeededGenerator
    private(set) var time: UInt64 = 1_000_000_000
    private(set) var turnsTaken = 0
    /// Of all decisions: two runs with the same are the same.
    private(set) var trace: UInt64 = 0xCBF2_9CE4_8422_2325
    private var ready: [Task] = []
    private var timers: [Timer] = []
    private var timersMade: UInt64 = 0
    private var waiting: [UnsafeRawPointer: [(task: Task, wait: UInt64)]] = [:]
    private var current: Task
    private let main: Task
    /// Nothing is left that could go on, or it goes on for ever.
    private(set) var isStuck = false

    init(seed: UInt64, main process: SimulatedProcess) {
        random = SeededGenerator(seed: seed)
        main = Task(process)
        current = main
    }

    /// The process whose turn it is.
    var process: SimulatedProcess { current.process }

    func note(_ value: UInt64) { trace = (trace ^ value) &* 0x100_0000_01B3 }

    // MARK: What the code under test asks for

    var now: UInt64 {
        time += 20
        return time
    }

    func start(_ body: @escaping @Sendable () -> Void) { start(in: current.process, body) }

    func start(in process: SimulatedProcess, _ body: @escaping () -> Void) {
        guard process.isAlive else { return }
        let task = Task(process)
        task.body = body
        ThreadPool.shared.run { [unowned self] in
            while sem_wait(task.turn) != 0 {}
            task.body?()
            task.body = nil
            finish(task)
        }
        ready.append(task)
    }

    func yield() {
        guard random.next() & 7 == 0, !ready.isEmpty else { return }
        ready.append(current)
        switchAway()
    }

    func wait(at place: UnsafeRawPointer, until deadline: UInt64?) -> Bool {
        let me = current
        me.isWoken = false
        waiting[place, default: []].append((me, me.waits))
        if let deadline { addTimer(at: deadline, me) }
        switchAway()
        return me.isWoken
    }

    func wake(_ place: UnsafeRawPointer) {
        guard let sleepers = waiting.removeValue(forKey: place) else { return }
        // Of a process that is dead something may lie where something of a live one lies now.
        for (task, wait) in sleepers where task.waits == wait && task.process.isAlive {
            task.isWoken = true
            makeReady(task)
        }
    }

    func nextRandom() -> UInt64 { random.next() }

    func sleep(_ nanoseconds: UInt64) {
        addTimer(at: time &+ nanoseconds, current)
        switchAway()
    }

    // MARK: Turns

    private func makeReady(_ task: Task) {
        task.waits += 1
        ready.append(task)
    }

    private func finish(_ task: Task) {
        precondition(task === current)
        let next = chooseNext()
        current = next
        sem_post(next.turn)
        sem_destroy(task.turn)
        task.turn.deallocate()
    }

    private func switchAway() {
        let me = current
        let next = chooseNext()
        guard next !== me else { return }
        current = next
        sem_post(next.turn)
        while sem_wait(me.turn) != 0 {}
    }

    private func chooseNext() -> Task {
        turnsTaken += 1
        if turnsTaken > Self.turns { isStuck = true }
        if isStuck { return main }
        while true {
            while !ready.isEmpty {
                let index = Int(random.next() % UInt64(ready.count))
                let task = ready.swapRemove(at: index)
                note(UInt64(index))
                if task.process.isAlive { return task }
            }
            guard let timer = popTimer() else {
                isStuck = true
                return main
            }
            guard timer.task.waits == timer.wait, timer.task.process.isAlive else { continue }
            time = max(time, timer.time)
            note(timer.time)
            makeReady(timer.task)
        }
    }

    // MARK: Timers, a heap by their times and then by their numbers

    private func addTimer(at time: UInt64, _ task: Task) {
        timersMade += 1
        timers.append(Timer(time: time, number: timersMade, task: task, wait: task.waits))
        var child = timers.count - 1
        while child > 0, isBefore(child, (child - 1) / 2) {
            timers.swapAt(child, (child - 1) / 2)
            child = (child - 1) / 2
        }
    }

    private func isBefore(_ a: Int, _ b: Int) -> Bool {
        (timers[a].time, timers[a].number) < (timers[b].time, timers[b].number)
    }

    private func popTimer() -> Timer? {
        guard let first = timers.first else { return nil }
        let last = timers.removeLast()
        guard !timers.isEmpty else { return first }
        timers[0] = last
        var parent = 0
        while true {
            var least = parent
            for child in [2 * parent + 1, 2 * parent + 2] where child < timers.count && isBefore(child, least)
            {
                least = child
            }
            if least == parent { return first }
            timers.swapAt(parent, least)
            parent = least
        }
    }
}

extension Array {
    fileprivate mutating func swapRemove(at index: Int) -> Element {
        swapAt(index, count - 1)
        return removeLast()
    }
}

/// Tasks belong to one. Once it is killed none of its tasks has a turn any more, in the middle of whatever it did.
final class SimulatedProcess: @unchecked Sendable {
    let name: String
    let number: Int
    private(set) var isAlive = true
    /// What the system does when it ends: locks are dropped, descriptors closed, connections lost.
    private var atEnd: [() -> Void] = []
    nonisolated(unsafe) static var count = 0
    /// What all processes were made of: a task that was killed may have held a lock, and who frees what it
    /// protects would wait for ever.
    nonisolated(unsafe) private static var remains: [AnyObject] = []

    init(_ name: String) {
        self.name = name
        Self.count += 1
        number = Self.count
    }

    /// Keeps it although nobody may need it any more.
    func keep(_ object: AnyObject) { Self.remains.append(object) }

    func whenItEnds(_ body: @escaping () -> Void) { atEnd.append(body) }

    func end() {
        guard isAlive else { return }
        isAlive = false
        let bodies = atEnd
        atEnd = []
        for body in bodies { body() }
    }
}

/// Threads that go from task to task: making one takes longer than most tasks.
final class ThreadPool: @unchecked Sendable {
    static let shared = ThreadPool()
    private final class Worker {
        var body: (() -> Void)?
        let turn: UnsafeMutablePointer<sem_t>
        init() {
            turn = .allocate(capacity: 1)
            sem_init(turn, 0, 0)
        }
    }
    private let lock: UnsafeMutablePointer<pthread_mutex_t>
    private var idle: [Worker] = []

    private init() {
        lock = .allocate(capacity: 1)
        lock.initialize(to: pthread_mutex_t())
        pthread_mutex_init(lock, nil)
    }

    func run(_ body: @escaping () -> Void) {
        pthread_mutex_lock(lock)
        let found = idle.popLast()
        pthread_mutex_unlock(lock)
        if let found {
            found.body = body
            sem_post(found.turn)
            return
        }
        let worker = Worker()
        worker.body = body
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        pthread_attr_setstacksize(&attributes, 1 << 20)
        var thread = pthread_t()
        let argument = Unmanaged.passRetained(worker)
        let code = pthread_create(
            &thread, &attributes,
            { argument in
                ThreadPool.shared.serve(Unmanaged<Worker>.fromOpaque(argument!).takeRetainedValue())
                return nil
            }, argument.toOpaque())
        precondition(code == 0, "no thread: \(code)")
        pthread_attr_destroy(&attributes)
    }

    private func serve(_ worker: Worker) {
        while true {
            worker.body?()
            worker.body = nil
            pthread_mutex_lock(lock)
            idle.append(worker)
            pthread_mutex_unlock(lock)
            while sem_wait(worker.turn) != 0 {}
        }
    }
}
