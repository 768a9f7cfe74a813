import Blocks
import PhysicalCopy

/// Has a bridge copy runs to one of its units by EXTENDED COPY. What does not begin or end with a block, which segments
/// cannot name, less than one block at each end, the agent reads and writes itself.
final class BridgeMover: RestoreMover {
    private let copier: any ThirdPartyCopier
    private let source: UnitDescription
    private let target: UnitDescription
    private let data: RestoreSource
    /// The way of what segments cannot name.
    private let relay: StoreMover
    private let rate: UInt64?
    private let cancellation: CancellationToken
    private let block: UInt64

    /// - Parameters:
    ///   - source: the copy's data as a unit of the copier.
    ///   - data: the same.
    ///   - rate: bytes a second at most.
    ///   - isStopped: true makes operations under way fail.
    init(
        _ copier: any ThirdPartyCopier, from source: UnitDescription, of data: RestoreSource,
        to target: UnitDescription, rate: UInt64?, _ cancellation: CancellationToken,
        isStopped: @escaping @Sendable () -> Bool
    ) throws(AgentError) {
        self.copier = copier
        self.source = source
        self.target = target
        self.data = data
        self.rate = rate
        self.cancellation = cancellation
        block = UInt64(max(source.capacity.blockLength, target.capacity.blockLength))
        let store = try copier.store(of: target, isCancelled: isStopped)
        let name = "unit \(target.number) of \(copier.name)"
        relay = StoreMover(data, to: VolumeTarget(store, isBlank: false, named: name, cancellation))
    }

    func move(
        _ runs: [RestoreRun], progress: (UInt64) throws(AgentError) -> Void
    ) throws(AgentError) {
        var whole: [CopyRun] = []
        var rest: [RestoreRun] = []
        for run in runs { split(run, &whole, &rest) }
        var done: UInt64 = 0
        if !whole.isEmpty {
            try CopyRunner.run(
                whole, from: source, to: target, by: copier, rate: rate, cancellation: cancellation,
                watch: progress)
            done = whole.reduce(0) { $0 + $1.count }
            data.addRead(done)
        }
        try relay.move(rest) { count throws(AgentError) in try progress(done + count) }
    }

    private func split(_ run: RestoreRun, _ whole: inout [CopyRun], _ rest: inout [RestoreRun]) {
        let end = run.offset + run.count
        let first = run.offset.roundedUp(to: block)
        let last = end.roundedDown(to: block)
        guard (run.source ^ run.offset) & (block - 1) == 0, first < last else {
            return rest.append(run)
        }
        let head = first - run.offset
        whole.append(CopyRun(source: run.source + head, destination: first, count: last - first))
        if head > 0 { rest.append(RestoreRun(source: run.source, offset: run.offset, count: head)) }
        if last < end {
            rest.append(
                RestoreRun(source: run.source + (last - run.offset), offset: last, count: end - last))
        }
    }

    func writeZeroes(_ range: ByteRange, of number: Int) throws(AgentError) {
        try relay.writeZeroes(range, of: number)
    }

    func flush() throws(AgentError) { try relay.flush() }
}
