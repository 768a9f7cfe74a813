import Blocks
import TestSupport
import Testing

@testable import Agent

/// The account of a raw pass against a model of all who take part: applications that write, a host that preserves and
/// begins anew, a bridge whose commands read and write when they like, stable storage that loses what was not flushed, an
/// agent that dies at any moment and comes back with its record.
@Suite struct CopyLedgerTests {
    @Test(
        "Whatever happens in whatever order, the copy is the volume as of the last instant", arguments: 0..<4)
    func model(part: UInt64) throws {
        var seen = Model.Marks()
        let seeds: UInt64 = Tier.isFull ? 1_500 : 150
        for seed in part * seeds..<(part + 1) * seeds {
            var model = Model(seed: seed)
            try model.run()
            seen.add(model.marks)
        }
        // Of events that never come nothing is known.
        #expect(seen.restarts > 10 && seen.deaths > 10 && seen.losses > 10 && seen.gone > 10, "\(seen)")
        #expect(seen.kept > 0 && seen.unknownChanges > 0, "\(seen)")
    }

    @Test func aCommandThatFailedCountsForNothing() {
        var ledger = CopyLedger(size: 100, chunkSize: 16, block: 4, wanted: .whole(100))
        ledger.begin(1, writing: [ByteRange(offset: 0, count: 64)])
        ledger.end(1, isDone: false)
        #expect(ledger.remaining == .whole(100) && !ledger.needsFlush)
        ledger.begin(1, writing: [ByteRange(offset: 32, count: 72)])
        ledger.end(1, isDone: true)
        // The last block's rest lies behind the volume.
        #expect(ledger.remaining.ranges == [ByteRange(offset: 0, count: 32)] && ledger.needsFlush)
    }

    /// Copied, flushed half and changed between: none of it counts twice.
    @Test func anExtentThatIsFlushedAndChanged() {
        var ledger = CopyLedger(size: 64, chunkSize: 16, block: 4, wanted: .whole(64))
        ledger.begin(1, writing: [ByteRange(offset: 0, count: 32)])
        ledger.end(1, isDone: true)
        ledger.beginFlush()
        ledger.begin(2, writing: [ByteRange(offset: 32, count: 32)])
        ledger.restart(changes: RangeList([ByteRange(offset: 16, count: 32)]))
        // Copied again while the flush runs, which began before.
        ledger.begin(1, writing: [ByteRange(offset: 16, count: 16)])
        ledger.end(1, isDone: true)
        ledger.endFlush(isDone: true)
        #expect(ledger.durable.ranges == [ByteRange(offset: 0, count: 16)])
        #expect(ledger.passable(.whole(64)).ranges == [ByteRange(offset: 0, count: 16)])
        ledger.end(2, isDone: true)
        #expect(ledger.remaining.ranges == [ByteRange(offset: 32, count: 16)])
    }

    @Test func onlyWholeChunksPass() {
        var ledger = CopyLedger(size: 70, chunkSize: 16, block: 4, wanted: .whole(70))
        ledger.begin(1, writing: [ByteRange(offset: 4, count: 68)])
        ledger.end(1, isDone: true)
        ledger.beginFlush()
        ledger.endFlush(isDone: true)
        // The last chunk is short.
        #expect(ledger.passable(.whole(70)).ranges == [ByteRange(offset: 16, count: 54)])
        ledger.pass(RangeList([ByteRange(offset: 16, count: 16)]))
        #expect(ledger.passable(.whole(70)).ranges == [ByteRange(offset: 32, count: 38)])
        #expect(ledger.passable(.empty).isEmpty)
    }

    /// What only a later instant has in use is copied, what only the earlier had is cleared.
    @Test func anotherPartIsWanted() {
        let used = RangeList([ByteRange(offset: 0, count: 32)])
        var ledger = CopyLedger(size: 96, chunkSize: 16, block: 4, wanted: used)
        #expect(ledger.remaining == used && ledger.toClear.isEmpty)
        #expect(ledger.passable(.whole(96)).ranges == [ByteRange(offset: 32, count: 64)], "nobody needs it")
        ledger.begin(1, writing: used.ranges)
        ledger.end(1, isDone: true)
        ledger.restart(changes: RangeList([ByteRange(offset: 0, count: 16)]))
        ledger.restart(changes: .empty, wanted: RangeList([ByteRange(offset: 16, count: 32)]))
        #expect(ledger.remaining.ranges == [ByteRange(offset: 32, count: 16)])
        #expect(ledger.toClear.ranges == [ByteRange(offset: 0, count: 16)])
        ledger.cleared(ByteRange(offset: 0, count: 16))
        #expect(ledger.toClear.isEmpty)
    }
}

/// All of it, one event after another.
private struct Model {
    struct Marks {
        var restarts = 0
        var deaths = 0
        /// Bytes that were written and not flushed, and lost.
        var losses = 0
        /// Originals that nobody preserved, because the copy had passed them.
        var gone = 0
        /// Bytes that an agent who came back did not copy again.
        var kept = 0
        /// Came back to a host of whose changes he cannot know all.
        var unknownChanges = 0

        mutating func add(_ other: Marks) {
            restarts += other.restarts
            deaths += other.deaths
            losses += other.losses
            gone += other.gone
            kept += other.kept
            unknownChanges += other.unknownChanges
        }
    }

    private struct Command {
        var pending: RangeList
        /// Of an agent who lives.
        var isCounted = true
    }

    private let size: UInt64
    private let chunk: UInt64 = 8
    private let block: UInt64 = 4
    private var random: SeededGenerator
    private(set) var marks = Marks()

    // The host: contents are numbers of writes.
    private var source: [UInt64]
    private var writes: UInt64 = 0
    private var epoch: UInt64 = 0
    private var instant: [UInt64]
    private var log: [UInt64: [UInt64]] = [:]
    private var preserved: Set<UInt64> = []
    private var hostPassed: Set<UInt64> = []
    /// Chunks changed before the epoch, since the last instant of which the changes had been asked to their end by then.
    private var changed: Set<UInt64> = []
    private var isAsked = false

    // The copy, as it is read and as a crash of its storage leaves it.
    private var copy: [UInt64]
    private var stable: [UInt64]
    private var flushing: [UInt64]?
    private var commands: [UInt8: Command] = [:]

    // The agent.
    private var ledger: CopyLedger
    private var known: UInt64 = 0
    private var record: (epoch: UInt64, durable: RangeList) = (0, .empty)

    init(seed: UInt64) {
        random = SeededGenerator(seed: seed)
        size = UInt64.random(in: 200...400, using: &random)
        source = (0..<Int(size)).map { _ in 0 }
        instant = source
        copy = source.map { _ in .max }
        stable = copy
        ledger = CopyLedger(size: size, chunkSize: chunk, block: block, wanted: .whole(size))
    }

    mutating func run() throws {
        var steps = 0
        while true {
            steps += 1
            // After a while nothing disturbs any more.
            try step(mayDisturb: steps < 300)
            if known == epoch, ledger.remaining.isEmpty, commands.isEmpty { break }
            guard steps < 5_000 else { throw TestFailed(what: "it never ends") }
        }
        for (chunk, originals) in log {
            copy.replaceSubrange(
                Int(chunk * self.chunk)..<Int(chunk * self.chunk) + originals.count, with: originals)
        }
        #expect(copy == instant, "\(size) bytes, epoch \(epoch)")
    }

    private struct TestFailed: Error { var what: String }

    private mutating func step(mayDisturb: Bool) throws {
        switch Int.random(in: 0..<(mayDisturb ? 20 : 12), using: &random) {
        case 0..<3: send()
        case 3..<6: advance()
        case 6: if known != epoch { follow() }
        case 7, 11: if flushing == nil { beginFlush() }
        case 8: endFlush()
        case 9: note()
        case 10: pass()
        case 12..<19: write()
        case 19: disturb()
        default: advance()
        }
    }

    private mutating func disturb() {
        switch Int.random(in: 0..<6, using: &random) {
        case 0, 1: beginAnew()
        case 2: die()
        case 3: loseStorage()
        default: write()
        }
    }

    // MARK: Host

    private mutating func write() {
        let start = UInt64.random(in: 0..<size, using: &random)
        let range = start..<min(size, start + UInt64.random(in: 1...12, using: &random))
        for number in range.lowerBound / chunk...(range.upperBound - 1) / chunk
        where preserved.insert(number).inserted {
            if hostPassed.contains(number) {
                marks.gone += 1
            } else {
                log[number] = Array(source[Int(number * chunk)..<Int(min(size, (number + 1) * chunk))])
            }
        }
        writes += 1
        for place in range { source[Int(place)] = writes }
    }

    private mutating func beginAnew() {
        marks.restarts += 1
        if isAsked { changed = [] }
        isAsked = false
        changed.formUnion(preserved)
        epoch += 1
        instant = source
        (log, preserved, hostPassed) = ([:], [], [])
    }

    private mutating func askChanges() -> RangeList {
        isAsked = true
        return RangeList(
            merging: changed.map { ByteRange(offset: $0 * chunk, count: min(chunk, size - $0 * chunk)) })
    }

    // MARK: Bridge

    private mutating func send() {
        guard commands.count < 2 else { return }
        let remaining = ledger.remaining.subtracting(
            RangeList(merging: commands.values.filter(\.isCounted).flatMap(\.pending.ranges)))
        guard !remaining.isEmpty else { return }
        // A pass is planned when it begins: nothing is copied twice in one.
        guard commands.values.allSatisfy(\.isCounted) else { return }
        let first = remaining.ranges.randomElement(using: &random)!
        let blocks = (first.count + block - 1) / block
        let start = first.offset + UInt64.random(in: 0..<blocks, using: &random) * block
        let range = ByteRange(
            offset: start, count: min(block * UInt64.random(in: 1...6, using: &random), first.end - start))
        let number = UInt8((0...1).first { commands[UInt8($0)] == nil }!)
        guard !commands.values.contains(where: { $0.pending.overlaps(range) }), !isRunning(range) else {
            return
        }
        ledger.begin(number, writing: [range])
        commands[number] = Command(pending: RangeList([range]))
        running[number] = range
    }

    private var running: [UInt8: ByteRange] = [:]
    private func isRunning(_ range: ByteRange) -> Bool { running.values.contains { $0.overlaps(range) } }

    private mutating func advance() {
        guard let number = commands.keys.sorted().randomElement(using: &random),
            var command = commands[number]
        else { return }
        guard let range = command.pending.ranges.first else {
            commands[number] = nil
            running[number] = nil
            if command.isCounted { ledger.end(number, isDone: true) }
            return
        }
        let part = ByteRange(
            offset: range.offset, count: UInt64.random(in: 1...range.count, using: &random))
        for place in part.offset..<part.end { copy[Int(place)] = source[Int(place)] }
        command.pending = command.pending.subtracting(RangeList([part]))
        commands[number] = command
    }

    private mutating func beginFlush() {
        ledger.beginFlush()
        flushing = copy
    }

    private mutating func endFlush() {
        guard let bytes = flushing else { return }
        flushing = nil
        let isDone = Int.random(in: 0..<4, using: &random) > 0
        if isDone { stable = bytes }
        ledger.endFlush(isDone: isDone)
        // Most often one follows the other, and sometimes something comes between.
        if Int.random(in: 0..<4, using: &random) > 0 { note() }
        if Int.random(in: 0..<4, using: &random) > 0 { pass() }
    }

    // MARK: Agent

    private mutating func follow() {
        ledger.restart(changes: askChanges())
        known = epoch
    }

    private mutating func note() { record = (known, ledger.durable) }

    private mutating func pass() {
        guard record.epoch == epoch, known == epoch else { return }
        let list = ledger.passable(record.durable)
        for range in list.ranges {
            for number in range.offset / chunk...(range.end - 1) / chunk { hostPassed.insert(number) }
        }
        ledger.pass(list)
    }

    /// The next one comes when the bridge of this one is gone: what its commands have not done is not done.
    private mutating func die() {
        marks.deaths += 1
        while Bool.random(using: &random), !commands.isEmpty { advance() }
        (commands, running) = ([:], [:])
        // Changes may have been asked for, and what was heard not noted.
        if known != epoch, Bool.random(using: &random) { follow() }
        while Int.random(in: 0..<3, using: &random) == 0 { write() }
        comeBack()
    }

    /// A bridge that is not ours may lose what was not flushed.
    private mutating func loseStorage() {
        marks.deaths += 1
        (commands, running) = ([:], [:])
        for place in copy.indices where copy[place] != stable[place] && Bool.random(using: &random) {
            copy[place] = stable[place]
            marks.losses += 1
        }
        stable = copy
        comeBack()
    }

    private mutating func comeBack() {
        flushing = nil
        ledger = CopyLedger(
            size: size, chunkSize: chunk, block: block, wanted: .whole(size), durable: record.durable)
        let missed = epoch - record.epoch
        known = epoch
        if missed > 0 {
            let changes = askChanges()
            // Those of an epoch between may have been told to the one who died.
            if missed > 1 { marks.unknownChanges += 1 }
            ledger.restart(changes: missed > 1 ? nil : changes)
        }
        marks.kept += Int(ledger.durable.total)
    }
}
