import AsyncIO
import Blocks
import Glibc
import TestSupport

/// The system under AsyncIO: the calls of files and of the copy engine, over simulated disks. Each takes time, in which others
/// run; each may fail, stop half-way or do less than was asked.
final class DiskCalls: @unchecked Sendable {
    private let world: World
    private var scheduler: Scheduler { world.scheduler }
    private var disks: [Int32: SimulatedDisk] = [:]
    /// Requests of engines that are not done, by the descriptor that stands for their file.
    private var inFlight: [Int32: Int] = [:]
    private var owners: [Int32: Int32] = [:]
    private var closing: [Int32: StorageFile] = [:]
    /// Opening takes no time: who is killed meanwhile has a file, and its lock, of which nobody knows.
    private var isOpening = false
    /// Runs what the system does by itself.
    private let kernel = SimulatedProcess("kernel")

    init(_ world: World) { self.world = world }

    /// Opens a disk as a process of the simulation; it is closed when that ends.
    func open(
        _ disk: SimulatedDisk, access: StorageAccess, mode: StorageMode, lock: StorageLock = .none
    ) throws(StorageError) -> StorageFile {
        isOpening = true
        defer { isOpening = false }
        let file = try StorageFile(
            disk.path, access: access, mode: mode, lock: lock, system: calls(of: disk))
        disks[file.descriptor] = disk
        disks[file.bufferedDescriptor] = disk
        owners[file.bufferedDescriptor] = file.descriptor
        owners[file.descriptor] = file.descriptor
        scheduler.process.whenItEnds { [self] in close(file) }
        return file
    }

    /// A process that is killed keeps its files, and their locks, until what it had asked for is done: the kernel waits for it
    /// (exit_aio) before it closes them.
    private func close(_ file: StorageFile) {
        if inFlight[file.descriptor, default: 0] == 0 {
            file.close()
        } else {
            closing[file.descriptor] = file
        }
    }

    private func endFlight(_ descriptor: Int32) {
        inFlight[descriptor]! -= 1
        if inFlight[descriptor] == 0 { closing.removeValue(forKey: descriptor)?.close() }
    }

    // MARK: One call at a time

    private func calls(of disk: SimulatedDisk) -> SystemCalls {
        var calls = SystemCalls()
        calls.pread = { [self] _, buffer, offset in transfer(disk) { read(disk, buffer, Int(offset)) } }
        calls.pwrite = { [self] _, buffer, offset in transfer(disk) { write(disk, buffer, Int(offset)) } }
        calls.pwritev = { [self] _, vectors, offset, durable in
            transfer(disk) { writeVectors(disk, vectors, Int(offset), durable: durable) }
        }
        calls.fdatasync = { [self] _ in transfer(disk) { flush(disk) } }
        calls.fsync = calls.fdatasync
        calls.fallocate = { [self] _, mode, offset, count in
            transfer(disk) { change(disk, mode, Int(offset), Int(count)) }
        }
        calls.isAligned = { [scheduler] _, alignment in alignment == 1 || scheduler.random.next() & 3 != 0 }
        calls.seek = { _, _, _ in .failure(Errno(EINVAL)) }
        calls.deviceRange = { _, _, _, _ in .failure(Errno(EOPNOTSUPP)) }
        return calls
    }

    private func transfer(_ disk: SimulatedDisk, _ body: () -> Result<Int, Errno>) -> Result<Int, Errno> {
        takeTime(disk)
        if draw(disk.faults.interrupt) {
            world.mark(.interruptedCall)
            return .failure(Errno(EINTR))
        }
        return body()
    }

    private func draw(_ chance: Double) -> Bool {
        chance > 0 && Double(scheduler.random.next() >> 11) / Double(1 << 53) < chance
    }

    private func takeTime(_ disk: SimulatedDisk) {
        guard !isOpening else { return }
        scheduler.sleep(20_000 + scheduler.random.next() % 200_000)
        if draw(disk.faults.stall) {
            world.mark(disk.role.stall)
            scheduler.sleep(scheduler.random.next() % 3_000_000_000)
        }
    }

    private func fail(_ disk: SimulatedDisk, _ site: FaultSite, _ code: Int32 = EIO) -> Result<Int, Errno> {
        disk.countFailure()
        if disk.role == .copy { world.copyFailures += 1 }
        world.mark(site)
        return .failure(Errno(code))
    }

    /// How much of so many bytes is done.
    private func part(_ disk: SimulatedDisk, _ count: Int) -> Int {
        guard count > 512, draw(disk.faults.short) else { return count }
        world.mark(.shortTransfer)
        return 512 * (1 + Int(scheduler.random.next() % UInt64(count / 512)))
    }

    private func read(
        _ disk: SimulatedDisk, _ buffer: UnsafeMutableRawBufferPointer, _ offset: Int
    ) -> Result<Int, Errno> {
        if draw(disk.faults.read) { return fail(disk, disk.role.readError) }
        let count = min(part(disk, buffer.count), buffer.count)
        return .success(
            disk.read(at: offset, into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])))
    }

    private func write(
        _ disk: SimulatedDisk, _ buffer: UnsafeRawBufferPointer, _ offset: Int
    ) -> Result<Int, Errno> {
        if draw(disk.faults.write) {
            // Some of it may be there.
            if scheduler.random.next() & 1 == 0 {
                apply(disk, buffer, offset, upTo: buffer.count / 1024 * 512)
            }
            return fail(disk, disk.role.writeError)
        }
        let count = min(part(disk, buffer.count), buffer.count)
        guard disk.allocate(offset, count) else { return fail(disk, disk.role.outOfSpace, ENOSPC) }
        apply(disk, buffer, offset, upTo: count)
        return .success(count)
    }

    /// In two parts, between which others read, write, or end it all.
    private func apply(
        _ disk: SimulatedDisk, _ buffer: UnsafeRawBufferPointer, _ offset: Int, upTo count: Int
    ) {
        var half = 0
        if count > 512, scheduler.random.next() & 3 == 0 {
            half = 512 * (1 + Int(scheduler.random.next() % UInt64(count / 512)))
            half = min(half, count)
            disk.write(UnsafeRawBufferPointer(rebasing: buffer[..<half]), at: offset)
            scheduler.sleep(1 + scheduler.random.next() % 100_000)
        }
        disk.write(UnsafeRawBufferPointer(rebasing: buffer[half..<count]), at: offset + half)
    }

    private func writeVectors(
        _ disk: SimulatedDisk, _ vectors: UnsafeBufferPointer<iovec>, _ offset: Int, durable: Bool
    ) -> Result<Int, Errno> {
        var done = 0
        loop: for vector in vectors {
            let buffer = UnsafeRawBufferPointer(start: vector.iov_base, count: vector.iov_len)
            switch write(disk, buffer, offset + done) {
            case .failure(let error):
                if durable { disk.hasFailedFlush = true }
                if done == 0 { return .failure(error) }
                break loop
            case .success(let count):
                done += count
                if count < buffer.count { break loop }
            }
        }
        guard durable else { return .success(done) }
        scheduler.sleep(scheduler.random.next() % 500_000)
        if draw(disk.faults.flush) {
            disk.failFlush(disk.beginFlush(), using: &scheduler.random)
            return fail(disk, disk.role.flushError)
        }
        disk.keepDurably(offset, done)
        return .success(done)
    }

    private func flush(_ disk: SimulatedDisk) -> Result<Int, Errno> {
        let flush = disk.beginFlush()
        scheduler.sleep(scheduler.random.next() % 2_000_000)
        if draw(disk.faults.flush) {
            disk.failFlush(flush, using: &scheduler.random)
            return fail(disk, disk.role.flushError)
        }
        if world.defect != .restoreNotFlushed || disk.role != .site { disk.endFlush(flush) }
        return .success(0)
    }

    private func change(
        _ disk: SimulatedDisk, _ mode: FallocateMode, _ offset: Int, _ count: Int
    ) -> Result<Int, Errno> {
        let end = min(offset + count, disk.bytes.count)
        guard offset < end else { return .success(0) }
        if draw(disk.faults.write) { return fail(disk, disk.role.writeError) }
        guard mode == .punchHole || disk.allocate(offset, end - offset) else {
            return fail(disk, disk.role.outOfSpace, ENOSPC)
        }
        disk.zero(offset, end - offset)
        return .success(0)
    }

    // MARK: The copy engine's

    private final class Queue {
        var events: [CompletionEvent] = []
        let process: SimulatedProcess
        let place = UnsafeMutableRawPointer.allocate(byteCount: 1, alignment: 1)
        init(_ process: SimulatedProcess) { self.process = process }
        deinit { place.deallocate() }
    }

    var engineCalls: SystemCalls {
        var calls = SystemCalls()
        calls.ioSetup = { [self] _, context in
            context.pointee = OpaquePointer(Unmanaged.passRetained(Queue(scheduler.process)).toOpaque())
            return .success(0)
        }
        calls.ioDestroy = { Unmanaged<Queue>.fromOpaque(UnsafeRawPointer($0)).release() }
        calls.ioSubmit = { [self] context, count, blocks in
            let queue = Unmanaged<Queue>.fromOpaque(UnsafeRawPointer(context)).takeUnretainedValue()
            var accepted = count
            if scheduler.random.next() & 15 == 0 {
                world.mark(.refusedSubmission)
                return .failure(Errno(EAGAIN))
            }
            if count > 1, scheduler.random.next() & 7 == 0 {
                world.mark(.partialSubmission)
                accepted = 1 + Int(scheduler.random.next() % UInt64(count))
            }
            for index in 0..<accepted {
                let request = blocks[index]!.pointee.request
                inFlight[owners[request.descriptor]!, default: 0] += 1
                scheduler.start(in: kernel) { [self] in carryOut(request, queue) }
            }
            return .success(accepted)
        }
        calls.ioGetEvents = { [self] context, events, milliseconds in
            let queue = Unmanaged<Queue>.fromOpaque(UnsafeRawPointer(context)).takeUnretainedValue()
            let deadline = scheduler.time + UInt64(milliseconds) * 1_000_000
            if queue.events.isEmpty { _ = scheduler.wait(at: queue.place, until: deadline) }
            let count = min(events.count, queue.events.count)
            for index in 0..<count { events[index] = queue.events[index] }
            queue.events.removeFirst(count)
            return .success(count)
        }
        calls.fdatasync = { [self] descriptor in
            guard let disk = disks[descriptor] else { return .failure(Errno(EBADF)) }
            return transfer(disk) { flush(disk) }
        }
        return calls
    }

    private func carryOut(_ request: AsyncRequest, _ queue: Queue) {
        let file = owners[request.descriptor]!
        defer { endFlight(file) }
        guard let disk = disks[request.descriptor] else { preconditionFailure("a request for no disk") }
        takeTime(disk)
        if !queue.process.isAlive {
            // What had begun may still be done.
            world.mark(.requestInFlightAtDeath)
            guard request.kind == .write, scheduler.random.next() & 1 == 0 else { return }
        }
        let outcome: Result<Int, Errno> =
            switch request.kind {
            case .read: read(disk, request.buffer, Int(request.offset))
            case .write: write(disk, UnsafeRawBufferPointer(request.buffer), Int(request.offset))
            case .flush: flush(disk)
            }
        guard queue.process.isAlive else { return }
        let result =
            switch outcome {
            case .success where world.defect == .takesShortTransfersForWhole: request.buffer.count
            case .success(let count): count
            case .failure(let error): -Int(error.code)
            }
        queue.events.append(CompletionEvent(tag: request.tag, result: result))
        scheduler.wake(queue.place)
    }
}

extension SimulatedDisk.Role {
    var readError: FaultSite {
        switch self {
        case .source: .sourceReadError
        case .cache: .cacheReadError
        case .copy: .copyReadError
        case .site: .siteReadError
        }
    }
    var writeError: FaultSite {
        switch self {
        case .source: .sourceWriteError
        case .cache: .cacheWriteError
        case .copy: .copyWriteError
        case .site: .siteWriteError
        }
    }
    var flushError: FaultSite {
        switch self {
        case .source: .sourceFlushError
        case .cache: .cacheFlushError
        case .copy: .copyFlushError
        case .site: .siteFlushError
        }
    }
    var stall: FaultSite {
        switch self {
        case .source: .sourceStall
        case .cache: .cacheStall
        case .copy: .copyStall
        case .site: .siteStall
        }
    }
    var outOfSpace: FaultSite {
        switch self {
        case .source: .sourceWriteError
        case .cache: .cacheOutOfSpace
        case .copy: .copyOutOfSpace
        case .site: .siteWriteError
        }
    }
}
