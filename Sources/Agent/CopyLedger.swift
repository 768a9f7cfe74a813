import Blocks

/// Account of one volume's raw pass: which bytes need not be copied any more, which of them are on stable storage, and of which
/// the host knows that. Bookkeeping only; nothing here waits or does anything.
///
/// The rules on which a copy's rightness rests:
/// - A command counts when it has ended well; what was changed between two epochs counts only if its command began
///   when the later one was known.
/// - A flush makes durable what counted when it began, and of that only what still counts when it ends.
/// - What the host was told to be passed is never copied again as of the same epoch: its original may be gone.
struct CopyLedger: Sendable {
    /// Bytes of the volume, of its chunks, and of the larger block of the bridge's two units.
    let size: UInt64
    let chunkSize: UInt64
    let block: UInt64
    /// What is to be copied, in whole blocks; the rest is in use by nobody.
    private(set) var wanted: RangeList
    /// What need not be copied (any more): what is not wanted, and what is on the copy as of the epoch in force.
    private(set) var settled: RangeList
    /// Of the settled: what is on stable storage.
    private(set) var durable: RangeList
    /// What counted when the flush that runs began, and counts still; nil: none runs.
    private var flushing: RangeList?
    /// What the host was told, in whole chunks.
    private(set) var passed = RangeList.empty
    /// What running commands write, and what of it will count.
    private var running: [UInt8: RangeList] = [:]
    /// What of the copy may hold something else than zeros or what is wanted.
    private(set) var dirty: RangeList

    /// - Parameters:
    ///   - wanted: whole blocks.
    ///   - durable: of an earlier run, as of the epoch in force.
    ///   - dirty: what the copy may hold already.
    init(
        size: UInt64, chunkSize: UInt64, block: UInt64, wanted: RangeList, durable: RangeList = .empty,
        dirty: RangeList = .empty
    ) {
        (self.size, self.chunkSize, self.block) = (size, chunkSize, block)
        self.wanted = wanted
        settled = durable.union(RangeList(wanted.complement(upTo: size)))
        self.durable = settled
        self.dirty = dirty
    }

    /// Whether what an earlier run has made durable is whole blocks.
    var isAligned: Bool { durable.wholeBlocks(of: block, upTo: size) == durable }

    /// What must be copied, in whole blocks.
    var remaining: RangeList { RangeList(settled.complement(upTo: size)) }

    /// What must read as zeros and may not.
    var toClear: RangeList { dirty.subtracting(wanted) }

    // MARK: Commands

    /// A command is about to be sent.
    mutating func begin(_ command: UInt8, writing ranges: [ByteRange]) {
        // The last block may end behind the volume.
        let list = RangeList(merging: ranges).intersection(.whole(size))
        precondition(running.updateValue(list, forKey: command) == nil, "a command's number is in use")
    }

    /// It has ended.
    mutating func end(_ command: UInt8, isDone: Bool) {
        guard let list = running.removeValue(forKey: command), isDone else { return }
        settled = settled.union(list)
    }

    mutating func cleared(_ range: ByteRange) { dirty = dirty.subtracting(RangeList([range])) }

    // MARK: Stable storage

    /// Whether a flush would make anything durable.
    var needsFlush: Bool { settled.total > durable.total }

    mutating func beginFlush() {
        precondition(flushing == nil, "one flush at a time")
        flushing = settled
    }

    mutating func endFlush(isDone: Bool) {
        guard let list = flushing else { preconditionFailure("no flush runs") }
        flushing = nil
        if isDone { durable = durable.union(list) }
    }

    /// What the host may be told of what was noted as durable: whole chunks that it was not told yet.
    func passable(_ noted: RangeList) -> RangeList {
        noted.intersection(durable).wholeBlocks(of: chunkSize, upTo: size).subtracting(passed)
    }

    mutating func pass(_ chunks: RangeList) { passed = passed.union(chunks) }

    // MARK: Epochs

    /// Another epoch is in force. What was changed until then must be copied again, by commands that begin from now on.
    /// - Parameters:
    ///   - changes: since the instant as of which the account was; nil: not known, so all.
    ///   - wanted: what is to be copied as of the later instant.
    mutating func restart(changes: RangeList?, wanted later: RangeList? = nil) {
        let unwanted = RangeList(wanted.complement(upTo: size))
        if let later {
            dirty = dirty.union(wanted)
            wanted = later
        }
        let unwantedNow = RangeList(wanted.complement(upTo: size))
        let changes = (changes ?? .whole(size)).touchedBlocks(of: block, upTo: size)
        func asOfNow(_ list: RangeList) -> RangeList {
            list.subtracting(unwanted).subtracting(changes).union(unwantedNow)
        }
        settled = asOfNow(settled)
        durable = asOfNow(durable)
        flushing = flushing.map(asOfNow)
        for (command, list) in running { running[command] = list.subtracting(changes) }
        passed = .empty
    }
}
