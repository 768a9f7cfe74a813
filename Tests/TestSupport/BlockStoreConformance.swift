import Blocks
import Glibc

/// What every ``BlockStore`` must do, tried against an array in memory: reads, writes, zeroes and trims of any
/// alignment, the edges, nothing at all, flushes, extents, and several threads at once.
///
/// It throws a ``Failure`` that names operation, range and seed. It changes the store's contents.
public struct BlockStoreConformance {
    public struct Failure: Error, CustomStringConvertible {
        public let description: String
    }

    /// The greatest store that is tried, bytes: the whole of it is held in memory.
    public static let maximumSize: UInt64 = 64 << 20

    private let store: any BlockStore
    private let seed: UInt64
    private var random: SplitMix64
    private var reference: [UInt8]
    private let maximumLength: Int

    /// Runs everything. A store that cannot be written is only read.
    /// - Parameters:
    ///   - operations: how many random ones.
    ///   - maximumLength: bytes of one.
    public static func run(
        _ store: any BlockStore, seed: UInt64 = .random(in: 0 ... .max), operations: Int = 500,
        maximumLength: Int = 200_000
    ) throws {
        var suite = try BlockStoreConformance(store, seed: seed, maximumLength: maximumLength)
        try suite.edges()
        if store.capabilities.contains(.writable) {
            for number in 0..<operations { try suite.operate(number) }
            try suite.compareAll("at the end")
            try suite.concurrently()
        } else {
            try suite.refusals()
        }
    }

    private init(_ store: any BlockStore, seed: UInt64, maximumLength: Int) throws {
        precondition(store.size > 0 && store.size <= Self.maximumSize)
        self.store = store
        self.seed = seed
        self.maximumLength = min(maximumLength, Int(store.size))
        random = SplitMix64(seed: seed)
        reference = try store.bytes(at: 0, count: Int(store.size))
    }

    private func fail(_ what: String) -> Failure { Failure(description: "\(what) (seed \(seed))") }

    private func compare(_ range: ByteRange, _ when: String) throws {
        let bytes = try store.bytes(at: range.offset, count: Int(range.count))
        let expected = reference[Int(range.offset)..<Int(range.end)]
        guard !bytes.elementsEqual(expected) else { return }
        let first = zip(bytes, expected).enumerated().first { $0.element.0 != $0.element.1 }!
        throw fail(
            "\(when): byte \(Int(range.offset) + first.offset) is \(first.element.0), "
                + "should be \(first.element.1)")
    }

    private func compareAll(_ when: String) throws {
        try compare(ByteRange(offset: 0, count: store.size), when)
    }

    private mutating func edges() throws {
        let size = store.size
        for offset in [0, 1, size / 2, size] {
            let bytes = try store.bytes(at: offset, count: 0)
            guard bytes.isEmpty else { throw fail("a read of nothing gave something") }
        }
        try compare(ByteRange(offset: size - 1, count: 1), "the last byte")
        try compare(ByteRange(offset: 0, count: 1), "the first byte")
        try store.prefetch(ByteRange(offset: 0, count: size))
        try extents(of: ByteRange(offset: 0, count: size), limit: 1)
        guard store.capabilities.contains(.writable) else { return }
        for offset in [0, 1, size] {
            try store.write([], at: offset)
            try store.write([], at: offset, durable: true)
            try store.writeZeroes(ByteRange(offset: offset, count: 0), options: [])
            try store.trim(ByteRange(offset: offset, count: 0), durable: false)
        }
        try compareAll("after requests of no length")
        try write(ByteRange(offset: 0, count: 1), durable: true)
        try write(ByteRange(offset: size - 1, count: 1), durable: false)
        try write(ByteRange(offset: 0, count: size), durable: true)
        try compareAll("after a write of everything")
        try zero(ByteRange(offset: size - 1, count: 1), [])
        try zero(ByteRange(offset: 0, count: size), [.durable])
        try compareAll("after everything was zeroed")
        try store.flush()
    }

    private func refusals() throws {
        let range = ByteRange(offset: 0, count: 1)
        func mustRefuse(_ what: String, _ body: () throws -> Void) throws {
            do { try body() } catch let error as StoreError where error.code == .readOnly { return }
            throw fail("\(what) of a store that cannot be written did not throw readOnly")
        }
        try mustRefuse("a write") { try store.write([1], at: 0) }
        try mustRefuse("zeroes") { try store.writeZeroes(range, options: []) }
        try compareAll("after what was refused")
    }

    private mutating func randomRange() -> ByteRange {
        let size = Int(store.size)
        // Now and then aligned; short ones as often as long ones.
        let longest = 1 << Int.random(in: 0...Int(log2(Double(maximumLength))), using: &random)
        var count = Int.random(in: 0...min(longest, maximumLength), using: &random)
        var offset = Int.random(in: 0...(size - count), using: &random)
        if Bool.random(using: &random) {
            offset &= ~4095
            count = min((count + 4095) & ~4095, size - offset, maximumLength)
        }
        return ByteRange(offset: UInt64(offset), count: UInt64(count))
    }

    private mutating func operate(_ number: Int) throws {
        let range = randomRange()
        switch Int.random(in: 0..<12, using: &random) {
        case 0..<3: try compare(range, "operation \(number), a read")
        case 3..<7: try write(range, durable: Int.random(in: 0..<8, using: &random) == 0)
        case 7: try gather(range)
        case 8: try zero(range, Bool.random(using: &random) ? [] : [.keepAllocated])
        case 9: try zeroFast(range)
        case 10: try trim(range)
        default:
            if range.isEmpty { try store.flush() } else { try extents(of: range, limit: 5) }
        }
        if number % 50 == 49 { try compareAll("after operation \(number)") }
    }

    private mutating func randomBytes(_ count: UInt64) -> [UInt8] {
        let start = random.next()
        return (0..<count).map { UInt8(truncatingIfNeeded: (start &+ $0) &* 0x9E37_79B9 >> 7) }
    }

    private mutating func write(_ range: ByteRange, durable: Bool) throws {
        let bytes = randomBytes(range.count)
        try store.write(bytes, at: range.offset, durable: durable)
        reference.replaceSubrange(Int(range.offset)..<Int(range.end), with: bytes)
    }

    private mutating func gather(_ range: ByteRange) throws {
        let bytes = randomBytes(range.count)
        try bytes.withUnsafeBytes { whole in
            let third = whole.count / 3
            let cuts = [0, third, third, whole.count]
            let buffers = zip(cuts, cuts.dropFirst()).map {
                UnsafeRawBufferPointer(rebasing: whole[$0..<$1])
            }
            try buffers.withUnsafeBufferPointer {
                try store.write(gathering: $0, at: range.offset, durable: false)
            }
        }
        reference.replaceSubrange(Int(range.offset)..<Int(range.end), with: bytes)
    }

    private mutating func zero(_ range: ByteRange, _ options: ZeroOptions) throws {
        try store.writeZeroes(range, options: options)
        let zeros = repeatElement(UInt8(0), count: Int(range.count))
        reference.replaceSubrange(Int(range.offset)..<Int(range.end), with: zeros)
    }

    private mutating func zeroFast(_ range: ByteRange) throws {
        do { try zero(range, [.onlyIfFast]) } catch let error as StoreError where error.code == .notSupported
        {
            try compare(range, "after a fast zero that was not done")
        }
    }

    /// Each byte reads as before or as zero, and remains so.
    private mutating func trim(_ range: ByteRange) throws {
        try store.trim(range, durable: Bool.random(using: &random))
        let bytes = try store.bytes(at: range.offset, count: Int(range.count))
        let start = Int(range.offset)
        for (i, byte) in bytes.enumerated() where byte != 0 && byte != reference[start + i] {
            throw fail("byte \(start + i) is neither as before a trim nor zero")
        }
        reference.replaceSubrange(start..<Int(range.end), with: bytes)
    }

    /// The extents lie within the range, and what is said to read as zeros does.
    private func extents(of range: ByteRange, limit: Int) throws {
        let extents = try store.allocation(of: range, limit: limit)
        guard !extents.isEmpty, extents.count <= limit else {
            throw fail("\(extents.count) extents of \(range), limit \(limit)")
        }
        var position = range.offset
        for extent in extents {
            guard extent.count > 0, extent.count <= range.end - position else {
                throw fail("an extent of \(extent.count) bytes at \(position) in \(range)")
            }
            if extent.readsAsZeros {
                let bytes = reference[Int(position)..<Int(position + extent.count)]
                guard bytes.allSatisfy({ $0 == 0 }) else {
                    throw fail("the extent at \(position) is said to read as zeros and does not")
                }
            }
            position += extent.count
        }
    }

    /// Threads that write neighbouring bytes, each its own: none may lose another's.
    private mutating func concurrently() throws {
        let threads = 8
        let span = min(Int(store.size), 100_003)
        let store = store
        struct Progress: Sendable {
            var running: Int
            var failure: String?
        }
        let progress = Monitor(Progress(running: threads))
        for thread in 0..<threads {
            let seed = random.next()
            let started = BlockingThread.start {
                var failure: String?
                do { try Self.stripes(store, thread, of: threads, span, seed) } catch { failure = "\(error)" }
                progress.withLockAndNotify {
                    $0.running -= 1
                    $0.failure = $0.failure ?? failure
                }
            }
            guard started else { throw fail("no thread") }
        }
        let failure = progress.wait { $0.running == 0 ? Optional($0.failure) : nil }
        if let failure { throw fail("several threads at once: \(failure)") }
        for i in 0..<span { reference[i] = Self.stripeByte(i) }
        try compareAll("after several threads wrote")
    }

    private static let stripe = 701
    private static func stripeByte(_ index: Int) -> UInt8 {
        UInt8(truncatingIfNeeded: index / stripe &* 31 + 1)
    }

    private static func stripes(
        _ store: any BlockStore, _ thread: Int, of threads: Int, _ span: Int, _ seed: UInt64
    ) throws {
        var random = SplitMix64(seed: seed)
        var starts = Array(stride(from: thread * stripe, to: span, by: threads * stripe))
        starts.shuffle(using: &random)
        for start in starts {
            let count = min(stripe, span - start)
            let bytes = [UInt8](repeating: stripeByte(start), count: count)
            try store.write(bytes, at: UInt64(start))
            guard try store.bytes(at: UInt64(start), count: count) == bytes else {
                throw Failure(description: "\(count) bytes at \(start) are not what their only writer wrote")
            }
        }
    }
}

/// A small generator whose numbers depend on the seed only.
public struct SplitMix64: RandomNumberGenerator, Sendable {
    private var state: UInt64
    public init(seed: UInt64) { state = seed }
    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
}
