import Blocks
import Glibc

/// One of a writer's operations, in the order in which it issued them; `number` counts from 1.
public struct NumberedOperation: Sendable {
    public enum Kind: Sendable, CaseIterable { case write, zero, trim }
    public let kind: Kind
    public let number: UInt64
    public let range: ByteRange
    /// The real-time clock before it was issued, and after it returned (nil while in flight), in ns.
    public let issuedAt: Int64
    public internal(set) var finishedAt: Int64?
    /// It was answered with an error of the device, which may have done a part of it.
    public internal(set) var hasFailed = false
}

/// A sequential writer whose every byte tells where it belongs and when it was written, and the judge of
/// copies taken meanwhile: a copy is right if there is a k, not less than the writes finished before the
/// instant and not more than those issued before it, such that every byte is as after exactly k writes.
public final class PrefixOracle: Sendable {
    /// Bytes of one stamp: address, number, seed, CRC-32C of those, and the number's complement.
    static let stampBytes: UInt64 = 32

    public let seed: UInt64
    public let region: ByteRange
    public let maximumLength: UInt64
    private let history = Monitor<[NumberedOperation]>([])
    private let found: [UInt8]?
    private let flushInterval: Int?
    private let flushed = Monitor(0)

    /// - Parameters:
    ///   - region: where this writer writes; it alone.
    ///   - maximumLength: bytes of its longest operation; the shortest are 512.
    ///   - found: what the region holds already; nil: what ``initialize(_:)`` will put there.
    ///   - flushInterval: after so many operations comes a flush; nil: none does.
    public init(
        seed: UInt64, region: ByteRange, maximumLength: UInt64 = 256 << 10, found: [UInt8]? = nil,
        flushInterval: Int? = nil
    ) {
        precondition(region.count >= 512 && maximumLength >= 512)
        precondition(found.map { $0.count == Int(region.count) } ?? true)
        self.seed = seed
        self.region = region
        self.maximumLength = min(maximumLength, region.count)
        self.found = found
        self.flushInterval = flushInterval
    }

    public var operations: [NumberedOperation] { history.withLock { $0 } }

    /// How many of the operations lie before the last flush that was answered.
    public var flushedCount: Int { flushed.withLock { $0 } }

    public static var realTime: Int64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }

    /// What write `number` puts at `range`; number 0 is what the region holds at first.
    public func content(of number: UInt64, at range: ByteRange) -> [UInt8] {
        let first = range.offset.roundedDown(to: Self.stampBytes)
        var writer = BigEndianWriter(reserving: Int(range.count + 2 * Self.stampBytes))
        for address in stride(from: first, to: range.end, by: Int(Self.stampBytes)) {
            let start = writer.bytes.count
            writer.integer(address)
            writer.integer(number)
            writer.integer(seed)
            writer.integer(CRC32C.checksum(writer.bytes[start...]))
            writer.integer(~UInt32(truncatingIfNeeded: number))
        }
        let skip = Int(range.offset - first)
        return Array(writer.bytes[skip..<skip + Int(range.count)])
    }

    /// Fills the region: three quarters with stamps of number 0, the rest with zeros, so that there are zero
    /// originals, too.
    public func initialize(_ store: any BlockStore) throws(StoreError) {
        try store.write(initialContent, at: region.offset)
        try store.flush()
    }

    private var initialContent: [UInt8] {
        if let found { return found }
        var bytes = content(of: 0, at: region)
        for i in bytes.indices.suffix(bytes.count / 4) { bytes[i] = 0 }
        return bytes
    }

    /// Writes, one operation after another, until `stop` says so.
    public func run(on store: any BlockStore, until stop: () -> Bool) throws(StoreError) {
        var generator = SeededGenerator(seed: seed &+ UInt64(operations.count))
        while !stop() {
            try runOne(on: store, using: &generator)
            guard let flushInterval, operations.count % flushInterval == 0 else { continue }
            let count = operations.count
            try store.flush()
            flushed.withLock { $0 = count }
        }
    }

    private func runOne(
        on store: any BlockStore, using generator: inout SeededGenerator
    ) throws(StoreError) {
        var length = UInt64.random(in: 512...maximumLength, using: &generator)
        if Bool.random(using: &generator) { length = min(length, 8192) }
        var offset = region.offset + UInt64.random(in: 0...region.count - length, using: &generator)
        if Bool.random(using: &generator) { offset = max(region.offset, offset.roundedDown(to: 512)) }
        let range = ByteRange(offset: offset, count: length)
        let dice = Int.random(in: 0..<10, using: &generator)
        let kind: NumberedOperation.Kind = dice == 0 ? .trim : dice == 1 ? .zero : .write
        let durable = Int.random(in: 0..<16, using: &generator) == 0
        let number = history.withLock { operations in
            let number = UInt64(operations.count + 1)
            operations.append(
                NumberedOperation(kind: kind, number: number, range: range, issuedAt: Self.realTime))
            return number
        }
        do throws(StoreError) {
            switch kind {
            case .write: try store.write(content(of: number, at: range), at: offset, durable: durable)
            case .zero: try store.writeZeroes(range, options: durable ? .durable : [])
            case .trim: try store.trim(range, durable: durable)
            }
        } catch {
            // The end of the connection says nothing of the operation.
            if error.code != .gone { history.withLock { $0[Int(number - 1)].hasFailed = true } }
            throw error
        }
        history.withLock { $0[Int(number - 1)].finishedAt = Self.realTime }
    }

    /// The least and greatest k that a copy as of `instant` (real-time clock, ns) may show.
    public func bounds(at instant: Int64) -> ClosedRange<Int> {
        let operations = operations
        let finished = operations.prefix { $0.finishedAt.map { $0 < instant } ?? false }.count
        let issued = operations.prefix { $0.issuedAt <= instant }.count
        return finished...max(finished, issued)
    }

    public enum Verdict: Equatable, Sendable {
        /// Every byte is as after exactly `k` writes.
        case consistent(k: Int)
        /// No k within the bounds fits; the text says which comes nearest and what is wrong there.
        case inconsistent(String)

        public var isConsistent: Bool { if case .consistent = self { true } else { false } }
    }

    /// Judges `copy`, the region's bytes as the copy has them. Of an operation that had failed before the instant, the last,
    /// each byte may be as before it or as after it.
    public func judge(_ copy: [UInt8], within bounds: ClosedRange<Int>) -> Verdict {
        precondition(copy.count == Int(region.count))
        let operations = operations
        var state = State(content: initialContent, copy: copy)
        var nearest = (k: -1, mismatches: Int.max, text: "")
        for k in 0...min(bounds.upperBound, operations.count) {
            if k > 0 { state.apply(operations[k - 1], of: self) }
            guard k >= bounds.lowerBound else { continue }
            if state.mismatches == 0 { return .consistent(k: k) }
            if state.mismatches < nearest.mismatches {
                nearest = (k, state.mismatches, describe(state.firstMismatch ?? 0, in: copy))
            }
        }
        if operations.last?.hasFailed == true, bounds.contains(operations.count),
            outcome(of: operations, in: copy).firstMismatch == nil
        {
            return .consistent(k: operations.count - 1)
        }
        return .inconsistent(
            "seed \(seed): no k in \(bounds) fits; k = \(nearest.k) has \(nearest.mismatches) wrong bytes, "
                + nearest.text)
    }

    /// Judges the source's own bytes after its server was killed or has stopped: everything that was answered must be
    /// there; of an operation that was not, the last, each byte is as before it or as after it.
    public func judgeSource(_ bytes: [UInt8]) -> Verdict {
        precondition(bytes.count == Int(region.count))
        let operations = operations
        let answered = operations.prefix { $0.finishedAt != nil }
        precondition(operations.count - answered.count <= 1)
        let state = outcome(of: operations, in: bytes)
        guard let first = state.firstMismatch else { return .consistent(k: answered.count) }
        let address = region.offset + UInt64(first)
        let last = answered.last { $0.range.intersection(ByteRange(offset: address, count: 1)) != nil }
        let isFlushed = last.map { $0.number <= flushedCount } ?? true
        return .inconsistent(
            "seed \(seed): of \(answered.count) answered writes one is lost\(isFlushed ? ", and it was flushed" : ""): "
                + "number \(last?.number ?? 0), \(describe(first, in: bytes))")
    }

    /// All that was answered is done; of the last one, if it was not, as much as `bytes` show.
    private func outcome(of operations: [NumberedOperation], in bytes: [UInt8]) -> State {
        var state = State(content: initialContent, copy: bytes)
        for operation in operations where operation.finishedAt != nil { state.apply(operation, of: self) }
        if let open = operations.last, open.finishedAt == nil { state.allow(open, of: self) }
        return state
    }

    private func describe(_ index: Int, in copy: [UInt8]) -> String {
        let address = region.offset + UInt64(index)
        let stamp = Int(address.roundedDown(to: Self.stampBytes)) - Int(region.offset)
        guard stamp >= 0, stamp + Int(Self.stampBytes) <= copy.count else { return "the first at \(address)" }
        let (claimed, number) = copy.withUnsafeBytes {
            ($0.bigEndian(at: stamp, as: UInt64.self), $0.bigEndian(at: stamp + 8, as: UInt64.self))
        }
        return "the first at \(address), where the stamp claims address \(claimed), number \(number)"
    }
}

/// What the region must hold after some writes, and how much of a copy differs from it.
private struct State {
    var content: [UInt8]
    /// Trimmed and not written since: the byte is as it was, or 0.
    var mayBeZero: [Bool]
    let copy: [UInt8]
    var mismatches = 0

    init(content: [UInt8], copy: [UInt8]) {
        self.content = content
        self.copy = copy
        mayBeZero = [Bool](repeating: false, count: content.count)
        mismatches = content.indices.count { differs($0) }
    }

    func differs(_ i: Int) -> Bool { copy[i] != content[i] && !(mayBeZero[i] && copy[i] == 0) }

    var firstMismatch: Int? { content.indices.first { differs($0) } }

    /// The operation may have been done in part: where the copy shows its outcome, that is taken as right.
    mutating func allow(_ operation: NumberedOperation, of oracle: PrefixOracle) {
        let start = Int(operation.range.offset - oracle.region.offset)
        let outcome =
            operation.kind == .write ? oracle.content(of: operation.number, at: operation.range) : []
        for i in 0..<Int(operation.range.count) where copy[start + i] == (outcome.isEmpty ? 0 : outcome[i]) {
            content[start + i] = copy[start + i]
        }
    }

    mutating func apply(_ operation: NumberedOperation, of oracle: PrefixOracle) {
        let start = Int(operation.range.offset - oracle.region.offset)
        let indices = start..<start + Int(operation.range.count)
        mismatches -= indices.count { differs($0) }
        switch operation.kind {
        case .write:
            content.replaceSubrange(
                indices, with: oracle.content(of: operation.number, at: operation.range))
            for i in indices { mayBeZero[i] = false }
        case .zero:
            for i in indices {
                content[i] = 0
                mayBeZero[i] = false
            }
        case .trim:
            for i in indices { mayBeZero[i] = true }
        }
        mismatches += indices.count { differs($0) }
    }
}

/// SplitMix64: a few lines, and the same on every machine for one seed.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64
    public init(seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
