import Blocks
import CAllocationCount
import Glibc
import Logging
import NIOCore
import TestSupport
import Testing

@testable import NBD

/// Memory that is there from the start; every operation is as quick as it can be.
private final class FixedStore: BlockStore {
    private let memory: ZeroedMemory
    let capabilities: StoreCapabilities = .writable
    let isPrompt: Bool
    var size: UInt64 { UInt64(memory.count) }

    init(size: Int, isPrompt: Bool = true) {
        memory = ZeroedMemory(count: size)
        self.isPrompt = isPrompt
    }

    private func part(_ offset: UInt64, _ count: Int) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: memory.buffer[Int(offset)..<Int(offset) + count])
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) {
        buffer.copyMemory(from: UnsafeRawBufferPointer(part(offset, buffer.count)))
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) {
        part(offset, buffer.count).copyMemory(from: buffer)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) {
        _ = part(range.offset, Int(range.count)).initializeMemory(as: UInt8.self, repeating: 0)
    }
    func flush() {}
}

/// A store that is prompt as far as it knows, but whose writes have to wait as soon as they are tried.
private final class WaitingStore: BlockStore {
    let size: UInt64 = 1 << 20
    let capabilities: StoreCapabilities = .writable
    /// Threads on which somebody wrote, and waited.
    let writers = Monitor<Set<pthread_t>>([])

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) {
        buffer.initializeMemory(as: UInt8.self, repeating: 0)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) {
        let thread = pthread_self()
        writers.withLock { _ = $0.insert(thread) }
    }
    func writePromptly(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) -> Bool { false }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) {}
    func flush() {}
}

/// The promise of the hot path: a small READ or WRITE allocates nothing and changes no thread.
@Suite(.serialized) struct HotPathTests {
    private func session(_ store: any BlockStore, pool: WorkerPool, done: Monitor<Int>) -> TransmissionSession
    {
        let agreement = Agreement(
            export: NBDExport(name: "", description: "", store: store), structuredReplies: true,
            allocationContext: true)
        return TransmissionSession(
            agreement, pool: pool, mailbox: Mailbox(wake: { done.withLockAndNotify { $0 += 1 } }))
    }

    private static func batch(_ count: Int) -> [UInt8] {
        let payload = pattern(4096, seed: 6)
        return (0..<count).flatMap { i -> [UInt8] in
            let offset = UInt64(i) * 4096
            return i % 2 == 0
                ? request(1, cookie: UInt64(i), offset: offset, length: 4096) + payload
                : request(0, cookie: UInt64(i), offset: offset, length: 4096)
        }
    }

    /// Has the session take all of `range`, with the help of workers where it wants it.
    private func feed(
        _ session: TransmissionSession, _ bytes: UnsafeRawBufferPointer, _ range: Range<Int>,
        _ done: borrowing Monitor<Int>
    ) {
        var position = range.lowerBound
        while true {
            position +=
                session.process(UnsafeRawBufferPointer(rebasing: bytes[position..<range.upperBound]))
                .consumed
            while session.running > 0 {
                done.wait { count in
                    defer { count = 0 }
                    return count > 0 ? () : nil
                }
                session.collect { _ in }
            }
            if position == range.upperBound { return }
        }
    }

    /// Runs requests until the session has learned that the store is fast.
    private func warm(_ session: TransmissionSession, done: Monitor<Int>) {
        let input = Self.batch(16)
        for round in 0..<200 {
            let cut = (round * 797) % input.count
            input.withUnsafeBytes { bytes in
                feed(session, bytes, 0..<cut, done)
                feed(session, bytes, cut..<bytes.count, done)
            }
            session.output.clear()
        }
    }

    @Test func smallRequestsAllocateNothing() {
        let pool = WorkerPool()
        let done = Monitor(0)
        let session = session(FixedStore(size: 1 << 20), pool: pool, done: done)
        let input = Self.batch(16)
        warm(session, done: done)
        var rounds = 0
        var allocations: UInt = 0
        for round in 0..<2000 {
            // Cut in two at any place, headers and payloads included: nothing is allocated for the seam either.
            let cut = (round * 797) % input.count
            let inline = session.executedInline
            let before = outboard_thread_allocations()
            input.withUnsafeBytes { bytes in
                feed(session, bytes, 0..<cut, done)
                feed(session, bytes, cut..<bytes.count, done)
            }
            session.output.clear()
            // Where the machine was busy elsewhere the session may have thought the store slow, for a while.
            guard session.executedInline - inline == 16 else { continue }
            rounds += 1
            allocations += outboard_thread_allocations() - before
        }
        if outboard_counts_allocations() == 1 { #expect(allocations == 0) }
        #expect(rounds > 200)
        pool.stop()
    }

    @Test func storeThatMayWaitIsKeptOffTheLoop() {
        let pool = WorkerPool()
        let done = Monitor(0)
        let session = session(FixedStore(size: 1 << 20, isPrompt: false), pool: pool, done: done)
        warm(session, done: done)
        #expect(session.executedInline == 0)
        pool.stop()
    }

    /// Whole WRITEs and such as come in two parts.
    @Test func writesThatWouldWaitGoToWorkers() {
        let pool = WorkerPool()
        let done = Monitor(0)
        let store = WaitingStore()
        let session = session(store, pool: pool, done: done)
        warm(session, done: done)
        let loop = pthread_self()
        #expect(store.writers.withLock { !$0.isEmpty && !$0.contains(loop) })
        #expect(session.executedInline > 0)  // the reads
        pool.stop()
    }

    @Test func paceIsLearnedAndUnlearned() {
        var pacer = StorePacer()
        #expect(!pacer.isFast(.read) && !pacer.isFast(.write))
        for _ in 0..<20 { pacer.record(.read, nanoseconds: 3000) }
        #expect(pacer.isFast(.read) && !pacer.isFast(.write))
        // One operation in twenty that was kept waiting for the processor does not matter …
        for i in 0..<200 {
            pacer.record(.read, nanoseconds: i % 20 == 0 ? 20_000_000 : 3000)
            #expect(pacer.isFast(.read))
        }
        // … but two in short succession do, for a while.
        for _ in 0..<2 { pacer.record(.read, nanoseconds: 20_000_000) }
        #expect(!pacer.isFast(.read))
        for _ in 0..<20 { pacer.record(.read, nanoseconds: 3000) }
        #expect(pacer.isFast(.read))
        for _ in 0..<10 { pacer.record(.read, nanoseconds: 90_000) }
        #expect(!pacer.isFast(.read))
    }

    @Test func theWholeServerAllocatesNothingPerRequest() async {
        guard outboard_counts_allocations() == 1 else {
            print("SKIPPED: allocations are not counted under a sanitizer")
            return
        }
        // In a process of its own, where nothing else allocates.
        let result = await #expect(
            processExitsWith: .success, observing: [\.standardOutputContent, \.standardErrorContent]
        ) {
            try await withServer(TestProvider(FixedStore(size: 1 << 20))) { _, socket in
                try await onThread {
                    let client = try RawNBDClient(socket)
                    try client.negotiate()
                    let input = Self.batch(16)
                    // 8 writes with simple replies, 8 reads with one chunk each.
                    let expected = 8 * 16 + 8 * (28 + 4096)
                    let replies = UnsafeMutableRawBufferPointer.allocate(byteCount: expected, alignment: 8)
                    func round() {
                        input.withUnsafeBytes {
                            precondition(send(client.descriptor, $0.baseAddress!, $0.count, 0) == $0.count)
                        }
                        precondition(
                            recv(
                                client.descriptor, replies.baseAddress!, expected, Int32(MSG_WAITALL)
                            )
                                == expected)
                    }
                    for _ in 0..<500 { round() }
                    let before = outboard_allocations()
                    for _ in 0..<1000 { round() }
                    let allocations = outboard_allocations() - before
                    print("16000 requests in 1000 batches: \(allocations) allocations")
                    // What is left comes with the wakings of the event loop (unspecialized loops of a debug build),
                    // not with requests.
                    precondition(allocations <= 8000, "\(allocations) allocations for 16000 requests")
                }
            }
        }
        printOutput(of: result)
    }
}
