import Blocks
import Synchronization

/// Knows of the changes of a unit's bytes that are under way, and ends tokens that promise an instant's data when one of
/// these would change.
///
/// A token's instant is the moment at which it is added: no change of its bytes is under way then, or it is revoked at
/// once. A change that begins later revokes it before its first byte is written. So who has read by a token and *then*
/// finds that it still lives has read nothing but that instant's bytes.
///
/// Changes are listed with their ranges only while somebody watches. Those that are not are counted: two atomic additions and
/// two loads for each, and a third load for the last of those that are under way. Who adds the first token has new changes listed from now on, and waits until the counted ones
/// have ended; what goes on for long, as copies do, is always listed, so that nobody waits for it.
final class ChangeWatch: Sendable {
    private struct State {
        /// Tokens, some of which may have ended meanwhile.
        var watched: [RepresentedData] = []
        /// By number: what the listed changes change.
        var changes: [UInt64: [ByteRange]] = [:]
        var nextChange: UInt64 = 0
        /// Those who wait in ``add(_:)``.
        var adding = 0
    }
    private let state = Monitor(State())
    private let isWatching = Atomic(false)
    /// Changes under way that are not listed.
    private let counted = Atomic(0)

    /// A change that is under way.
    struct Change {
        /// Nil: it is counted.
        fileprivate var number: UInt64?
    }

    // MARK: Tokens

    /// Waits for changes that are not listed. Revokes `data` if one that is listed changes them.
    func add(_ data: RepresentedData) {
        state.withLock { state in
            state.adding += 1
            isWatching.store(true, ordering: .sequentiallyConsistent)
        }
        state.wait { state -> Void? in
            guard counted.load(ordering: .sequentiallyConsistent) == 0 else { return nil }
            state.adding -= 1
            let isChanging = state.changes.values.contains { $0.contains(where: data.represents) }
            if isChanging { data.end(.tokenRevoked) } else { state.watched.append(data) }
            sweep(&state)
            return ()
        }
    }

    /// Lets go of tokens that have ended, which hold their unit and so this.
    func forgetEnded() { state.withLock { sweep(&$0) } }

    /// Whether somebody waits in ``add(_:)``; for tests.
    var isAwaited: Bool { state.withLock { $0.adding > 0 } }

    private func sweep(_ state: inout State) {
        state.watched.removeAll { $0.end != nil }
        if state.watched.isEmpty, state.adding == 0 {
            isWatching.store(false, ordering: .sequentiallyConsistent)
        }
    }

    // MARK: Changes

    /// Something short begins to change `range`; nothing of it may have been written. Must be followed by ``end(_:)``.
    func begin(_ range: ByteRange) -> Change {
        if !isWatching.load(ordering: .sequentiallyConsistent) {
            counted.wrappingAdd(1, ordering: .sequentiallyConsistent)
            // Who begins to watch behind this load waits for it; who did before may have missed it.
            if !isWatching.load(ordering: .sequentiallyConsistent) { return Change(number: nil) }
            discount()
        }
        return begin([range])
    }

    /// Something begins that may go on for long.
    func begin(_ ranges: [ByteRange]) -> Change {
        state.withLock { state in
            for data in state.watched where ranges.contains(where: data.represents) {
                data.end(.tokenRevoked)
            }
            sweep(&state)
            let number = state.nextChange
            state.nextChange += 1
            state.changes[number] = ranges
            return Change(number: number)
        }
    }

    func end(_ change: Change) {
        guard let number = change.number else { return discount() }
        state.withLock { $0.changes[number] = nil }
    }

    private func discount() {
        let left = counted.wrappingSubtract(1, ordering: .sequentiallyConsistent).newValue
        // Who waits has begun to watch before it looked at the count.
        if left == 0, isWatching.load(ordering: .sequentiallyConsistent) { state.withLockAndNotify { _ in } }
    }
}

extension CopyPlan {
    /// What it changes, by unit; adjacent pieces as one.
    private var changes: [(unit: LogicalUnit, ranges: [ByteRange])] {
        var changes: [(unit: LogicalUnit, ranges: [ByteRange])] = []
        for piece in pieces {
            let range = piece.targetRange
            guard let index = changes.firstIndex(where: { $0.unit === piece.target }) else {
                changes.append((piece.target, [range]))
                continue
            }
            if let last = changes[index].ranges.last, last.end == range.offset {
                changes[index].ranges.removeLast()
                changes[index].ranges.append(ByteRange(offset: last.offset, count: last.count + range.count))
            } else {
                changes[index].ranges.append(range)
            }
        }
        return changes
    }

    /// Runs `body`, which does the copy, as one change of its destinations.
    func asChange<Failure: Error>(_ body: () throws(Failure) -> Void) throws(Failure) {
        let begun = changes.map { ($0.unit.watch, $0.unit.watch.begin($0.ranges)) }
        defer { for (watch, change) in begun { watch.end(change) } }
        try body()
    }
}

/// A unit's store whose changes are told to a ``ChangeWatch``, and to the checksums that are kept of it.
final class WatchedStore: BlockStore {
    private let base: any BlockStore
    private let watch: ChangeWatch
    private let checksums: ChecksumKeeper

    init(_ base: any BlockStore, _ watch: ChangeWatch, _ checksums: ChecksumKeeper) {
        self.base = base
        self.watch = watch
        self.checksums = checksums
    }

    var size: UInt64 { base.size }
    var capabilities: StoreCapabilities { base.capabilities }
    var isPrompt: Bool { base.isPrompt }

    private func change<Result>(
        _ range: ByteRange, _ contents: ChunkChecksums.Contents = .other,
        _ body: () throws(StoreError) -> Result
    ) throws(StoreError) -> Result {
        let change = watch.begin(range)
        defer { watch.end(change) }
        guard let kept = checksums.current else { return try body() }
        let write = kept.begin(range, contents)
        do throws(StoreError) {
            let result = try body()
            kept.end(write, isDone: true)
            return result
        } catch {
            kept.end(write, isDone: false)
            throw error
        }
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try base.read(at: offset, into: buffer)
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        try change(ByteRange(offset: offset, count: UInt64(buffer.count))) { () throws(StoreError) in
            try base.write(buffer, at: offset, durable: durable)
        }
    }

    func write(
        gathering buffers: UnsafeBufferPointer<UnsafeRawBufferPointer>, at offset: UInt64, durable: Bool
    ) throws(StoreError) {
        let count = buffers.reduce(0) { $0 + $1.count }
        try change(ByteRange(offset: offset, count: UInt64(count))) { () throws(StoreError) in
            try base.write(gathering: buffers, at: offset, durable: durable)
        }
    }

    func writePromptly(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) throws(StoreError) -> Bool {
        try change(ByteRange(offset: offset, count: UInt64(buffer.count))) { () throws(StoreError) in
            try base.writePromptly(buffer, at: offset)
        }
    }

    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try change(range, .zeros) { () throws(StoreError) in
            try base.writeZeroes(range, options: options)
        }
    }

    func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
        try change(range) { () throws(StoreError) in try base.trim(range, durable: durable) }
    }

    func flush() throws(StoreError) { try base.flush() }
    func prefetch(_ range: ByteRange) throws(StoreError) { try base.prefetch(range) }

    func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        try base.allocation(of: range, limit: limit)
    }
}
