import Blocks
import FoundationEssentials

/// The writer of an original image log (article <doc:OriginalImageLog>): one per cache, for the host.
///
/// Many threads may append and read at once. Concurrent appenders join one batch; the first of them writes it
/// for all while the next batch gathers (group commit). Superblock operations wait for each other.
public final class OriginalImageLog: Sendable {
    /// What the log is for.
    public struct Settings: Sendable {
        public var volume: UUID
        public var geometry: ChunkGeometry
        public var durability: LogDurability
        /// Bytes of the log; nil: all of the store.
        public var capacity: UInt64?
        /// The running machine's boot id.
        public var boot: UUID
        /// Nanoseconds until a superblock that could not be written is tried again, at first and at last.
        public var recordRetry: ClosedRange<UInt64>

        public init(
            volume: UUID, geometry: ChunkGeometry, durability: LogDurability, capacity: UInt64? = nil,
            boot: UUID, recordRetry: ClosedRange<UInt64> = LogLimits.recordRetry
        ) {
            self.volume = volume
            self.geometry = geometry
            self.durability = durability
            self.capacity = capacity
            self.boot = boot
            self.recordRetry = recordRetry
        }
    }

    /// What was found in the cache.
    public enum Finding: Hashable, Sendable {
        /// It was blank and is now a log.
        case blank
        /// No epoch, or a released one.
        case unused
        /// The originals of an ended or void epoch are retained.
        case retained
        /// An open epoch goes on with so many entries.
        case resumed(entries: UInt64)
        /// An open epoch cannot go on and is void now. Its reason says why: a power cut, a damaged or smaller
        /// cache, another chunk size.
        case lost
    }

    struct State {
        var superblock: LogSuperblock
        /// Whether a start that reads the cache finds this superblock, and no other.
        var isRecorded = true
        /// Where the next batch goes.
        var head: LogPosition
        var isCommitting = false
        /// Batches that gather, the one to be written next first.
        var queue: [GatheringBatch] = []
        /// Bytes that an epoch may take that is begun now.
        var capacity: UInt64
    }

    public let store: any BlockStore
    public let settings: Settings
    public let finding: Finding
    let state: Monitor<State>
    let index = OriginalIndex()
    let gather = GatherBuffers()
    /// True while somebody writes a superblock.
    let superblockTurn = Monitor(false)
    let recorder = Monitor(Recorder())

    deinit { recorder.withLockAndNotify { $0.isClosed = true } }

    /// Opens the log in `store`, makes one there if the store is blank, and recovers an open epoch. At return what was found is on
    /// stable storage.
    public init(_ store: any BlockStore, settings: Settings) throws(LogError) {
        let available = min(settings.capacity ?? store.size, store.size)
        let capacity = min(available, LogLimits.volumeBytes).roundedDown(to: LogFormat.blockSize)
        let needed = LogFormat.minimumCapacity(chunkSize: settings.geometry.chunkSize)
        guard capacity >= needed else { throw .tooSmall(needed: needed, available: available) }
        if let asked = settings.capacity, asked > store.size {
            throw .tooSmall(needed: asked, available: store.size)
        }
        self.store = store
        self.settings = settings
        if let (superblock, isAlone) = try Self.existing(in: store) {
            guard superblock.volume == settings.volume else {
                throw .otherVolume(found: superblock.volume, expected: settings.volume)
            }
            state = Monitor(
                State(
                    superblock: superblock, head: superblock.epoch?.marker ?? .start, capacity: capacity))
            switch superblock.epoch?.state {
            case nil, .released: finding = .unused
            case .ended, .void: finding = .retained
            case .open:
                switch try Self.recover(superblock, isAlone: isAlone, store, settings, index) {
                case .resumed(let head):
                    finding = .resumed(entries: head.entries)
                    state.withLock { $0.head = head }
                case .lost(let reason):
                    finding = .lost
                    index.removeAll()
                    // It stands on the cache before anybody writes to the source without preserving.
                    try update { superblock throws(LogError) in
                        superblock.epoch?.state = .void
                        superblock.epoch?.voidReason = reason
                    }
                }
            }
            // What a host that was killed had in flight reads as what is safe does. It has to be safe, too, before the source
            // is overwritten because of it: a power cut would take it, and leave what it followed.
            try onStore { () throws(StoreError) in try store.flush() }
        } else {
            finding = .blank
            state = Monitor(
                State(
                    superblock: LogSuperblock(
                        generation: 0, volume: settings.volume, geometry: settings.geometry,
                        capacity: capacity, durability: settings.durability), head: .start,
                    capacity: capacity))
            for _ in 0..<2 { try update { _ throws(LogError) in } }
        }
    }

    /// The superblock in force, and whether the other one is not valid; nil when the store is blank.
    private static func existing(
        in store: any BlockStore
    ) throws(LogError) -> (LogSuperblock, isAlone: Bool)? {
        do throws(LogError) {
            let found = try LogSuperblock.read(from: store)
            return (found[0], found.count == 1)
        } catch {
            guard error == .noValidSuperblock else { throw error }
        }
        let memory = ZeroedMemory(count: Int(min(LogLimits.blankBytes, store.size)))
        try onStore { () throws(StoreError) in try store.read(at: 0, into: memory.buffer) }
        guard UnsafeRawBufferPointer(memory.buffer).isAllZeros else { throw .foreignContents }
        return nil
    }
}

extension OriginalImageLog.State {
    fileprivate var isHoldingOriginals: Bool {
        guard let state = superblock.epoch?.state else { return false }
        return state != .released
    }
}

// MARK: Epochs

extension OriginalImageLog {
    /// The current epoch or the last one.
    public var epoch: LogEpoch? { state.withLock { $0.superblock.epoch } }

    /// The chunks of the epoch's volume: the settings' once a new epoch begins.
    public var geometry: ChunkGeometry { state.withLock { $0.superblock.geometry } }

    /// Bytes that the log may take, superblocks included: of the epoch whose originals it holds, else of the next.
    public var totalCapacity: UInt64 {
        state.withLock { $0.isHoldingOriginals ? $0.superblock.capacity : $0.capacity }
    }

    /// Bytes of it that are taken: the superblocks, and whole batches of an epoch that is not released.
    public var usedBytes: UInt64 {
        state.withLock { $0.isHoldingOriginals ? $0.head.position : LogFormat.firstBatch }
    }

    /// Where the next batch goes: bytes used, batches and entries there.
    public var head: LogPosition { state.withLock { $0.head } }

    /// Opens an epoch: its superblock is on stable storage at return. An instant that is known later only is
    /// ``LogEpoch/notInstituted`` until ``stamp(institutedAt:)``.
    /// - Throws: ``LogError/wrongState(_:)`` unless there is none or the last is released;
    ///   ``LogError/corrupt(_:)`` when `number` is beyond ``LogLimits/counter``.
    public func begin(number: UInt64, uuid: UUID, institutedAt: Int64) throws(LogError) {
        try open(number, uuid, institutedAt) { $0 == nil || $0?.state == .released }
    }

    /// The same in place of the epoch `old`, which is void and whose originals are needed no more.
    /// - Throws: ``LogError/wrongState(_:)`` unless that is so; else as ``begin(number:uuid:institutedAt:)``.
    public func begin(
        number: UInt64, uuid: UUID, institutedAt: Int64, inPlaceOf old: UUID
    ) throws(LogError) {
        try open(number, uuid, institutedAt) { $0?.state == .void && $0?.uuid == old }
    }

    private func open(
        _ number: UInt64, _ uuid: UUID, _ institutedAt: Int64, if isAllowed: (LogEpoch?) -> Bool
    ) throws(LogError) {
        guard (1...LogLimits.counter).contains(number) else { throw .corrupt("the epoch's number") }
        let volume = settings
        // Nobody joins a batch of an epoch that is not open; the last one of the epoch before may be on its way.
        let capacity = state.wait { !$0.isCommitting && $0.queue.isEmpty ? $0.capacity : nil }
        // What the cache's device lost of earlier epochs is no concern of this one.
        if isAllowed(epoch), let store = store as? any RenewableStore {
            try onStore { () throws(StoreError) in try store.forgetLostData() }
        }
        do throws(LogError) {
            try update { superblock throws(LogError) in
                guard isAllowed(superblock.epoch) else { throw .wrongState(superblock.epoch?.state) }
                superblock.geometry = volume.geometry
                superblock.durability = volume.durability
                superblock.capacity = capacity
                superblock.epoch = LogEpoch(
                    number: number, uuid: uuid, institutedAt: institutedAt, boot: volume.boot)
            } adopt: { state in
                state.head = .start
                self.index.removeAll()
            }
        } catch {
            // What failed may be there nevertheless, and a start must not find an epoch that nobody has.
            if !isRecorded { recordState() }
            throw error
        }
    }

    /// Lets the log take more bytes of its store, also while an epoch is open: what failed as ``LogError/full`` may then
    /// be tried again. A store that can be made longer is, if need be, before the superblock says so.
    /// - Parameter capacity: bytes, superblocks included; rounded down to a multiple of 4096.
    /// - Returns: bytes that it may take now.
    /// - Throws: ``LogError/tooSmall(needed:available:)`` when it may take more already, or the store has not that many
    ///   and cannot be made longer; ``LogError/store(_:)``.
    public func grow(to capacity: UInt64) throws(LogError) -> UInt64 {
        let capacity = min(capacity, LogLimits.volumeBytes).roundedDown(to: LogFormat.blockSize)
        let current = totalCapacity
        guard capacity >= current else { throw .tooSmall(needed: current, available: capacity) }
        if capacity > store.size, let store = store as? any GrowableStore {
            try onStore { () throws(StoreError) in try store.grow(to: capacity) }
        }
        guard capacity <= store.size else { throw .tooSmall(needed: capacity, available: store.size) }
        // An ended log is left as it is, since copies of it may be under way.
        if epoch?.state == .open {
            do throws(LogError) {
                try update { superblock throws(LogError) in
                    guard superblock.epoch?.state == .open else { throw .wrongState(superblock.epoch?.state) }
                    superblock.capacity = capacity
                }
            } catch {
                // Over at that moment: the next one has it.
                guard case .wrongState = error else { throw error }
            }
        }
        state.withLock { $0.capacity = capacity }
        return capacity
    }

    /// Has the open epoch say that originals may be missing (``LogFlags/passed``), on stable storage at return.
    public func notePassed(epoch: UUID) throws(LogError) {
        let isNoted = state.withLock { state in
            let found = state.superblock.epoch
            return found?.uuid == epoch && found?.state == .open && found?.flags.contains(.passed) == true
        }
        guard !isNoted else { return }
        try update { superblock throws(LogError) in
            guard let found = superblock.epoch, found.state == .open else {
                throw .wrongState(superblock.epoch?.state)
            }
            guard found.uuid == epoch else { throw .wrongState(.released) }
            superblock.epoch?.flags.insert(.passed)
        }
    }

    /// Corrects the time of institution, which is known only when the gate was closed.
    public func stamp(institutedAt: Int64) throws(LogError) {
        try update { superblock throws(LogError) in
            guard superblock.epoch?.state == .open else { throw .wrongState(superblock.epoch?.state) }
            superblock.epoch?.institutedAt = institutedAt
        }
    }

    /// Makes the log durable up to here, records the place in the superblock and returns it.
    /// - Throws: ``LogError/wrongState(_:)`` also when the epoch becomes void meanwhile.
    public func mark() throws(LogError) -> LogPosition { try settle(.open) }

    /// Makes the log durable and its epoch `ended`. Nobody appends any more when this is called.
    /// - Throws: ``LogError/wrongState(_:)`` also when the epoch becomes void meanwhile.
    public func end() throws(LogError) -> LogPosition { try settle(.ended) }

    private func settle(_ newState: LogState) throws(LogError) -> LogPosition {
        let place = head
        try onStore { () throws(StoreError) in try store.flush() }
        try update { superblock throws(LogError) in
            guard superblock.epoch?.state == .open else { throw .wrongState(superblock.epoch?.state) }
            superblock.epoch?.state = newState
            superblock.epoch?.marker = place
        }
        return place
    }

    /// The originals are needed no more.
    public func release() throws(LogError) {
        try update { superblock throws(LogError) in
            guard let state = superblock.epoch?.state, state == .ended || state == .void else {
                throw .wrongState(superblock.epoch?.state)
            }
            superblock.epoch?.state = .released
        }
    }
}
