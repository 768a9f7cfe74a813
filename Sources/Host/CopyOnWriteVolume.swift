import Blocks
import FoundationEssentials
import HostControl
import Logging
import OriginalImage
import Synchronization

/// What a volume under copy-on-write is made with.
public struct VolumeSettings: Sendable {
    /// The volume's identity; the cache remembers it.
    public var uuid: UUID
    /// Bytes; a power of two, 4 KiB to 1 MiB.
    public var chunkSize: UInt64
    public var durability: Durability
    /// Bytes of the cache to use; nil: all.
    public var cacheCapacity: UInt64?
    public var onCacheFull: CacheFullPolicy
    /// Seconds that a write waits under the policy `block`.
    public var blockSeconds: Double
    /// Seconds that an institution or a freeze waits for the writes in flight, while all others wait at the gate.
    public var drainSeconds: Double
    /// The machine's boot id.
    public var boot: UUID
    /// Where what an administrator has to know is said.
    public var logger: Logger?
    /// Nanoseconds since 1970.
    public var realTime: @Sendable () -> Int64 = { VolumeSettings.systemTime }

    public init(
        uuid: UUID, chunkSize: UInt64, durability: Durability, cacheCapacity: UInt64? = nil,
        onCacheFull: CacheFullPolicy = .abandon, blockSeconds: Double = HostLimits.blockSeconds,
        drainSeconds: Double = HostLimits.drainSeconds, boot: UUID, logger: Logger? = nil
    ) {
        self.uuid = uuid
        self.chunkSize = chunkSize
        self.durability = durability
        self.cacheCapacity = cacheCapacity
        self.onCacheFull = onCacheFull
        self.blockSeconds = blockSeconds
        self.drainSeconds = drainSeconds
        self.boot = boot
        self.logger = logger
    }
}

/// The live volume: the source, with copy-on-write into the original image cache while an epoch is open (design
/// §3). An application's write is never refused or harmed for the sake of a copy.
///
/// The order on which everything rests: claim the chunks, read their originals, commit them to the log, set
/// their bits, and only then write to the source.
public final class CopyOnWriteVolume: BlockStore {
    public let settings: VolumeSettings
    public let size: UInt64
    public let geometry: ChunkGeometry
    public let log: OriginalImageLog
    let source: any BlockStore
    let gate = Gate()
    let meters = Meters()
    let buffers = BufferPool()
    let flushFailure = FlushFailure()
    let blockedWrites = Atomic<Int>(0)
    /// Counts how often the cache has grown.
    let growths = Atomic<UInt64>(0)
    /// Whether an epoch is open: all that a write without one looks at.
    let isEpochOpen = Atomic<Bool>(false)
    /// The last epoch. Changed only while the gate is closed and drained, or before the volume is used; read
    /// inside the gate, or by those who hold `control`'s turn.
    nonisolated(unsafe) var epoch: Epoch?
    let control = Monitor(ControlState())
    let defects: Defects
    let hook: CheckpointHook?

    /// Opens the cache and resumes an open epoch; `log.finding` says what was found.
    /// - Throws: when the cache is not for this volume (``LogError``).
    public convenience init(
        source: any BlockStore, cache: any BlockStore, settings: VolumeSettings
    ) throws(LogError) {
        try self.init(
            source: source, cache: cache, settings: settings, defects: .ofEnvironment, hook: nil)
    }

    package init(
        source: any BlockStore, cache: any BlockStore, settings: VolumeSettings, defects: Defects,
        hook: CheckpointHook? = nil
    ) throws(LogError) {
        guard let geometry = ChunkGeometry(volumeSize: source.size, chunkSize: settings.chunkSize) else {
            throw .otherGeometry("a volume size or chunk size out of bounds")
        }
        log = try OriginalImageLog(
            cache,
            settings: OriginalImageLog.Settings(
                volume: settings.uuid, geometry: geometry,
                durability: settings.durability == .power ? .power : .process,
                capacity: settings.cacheCapacity, boot: settings.boot))
        self.source = source
        self.settings = settings
        self.geometry = geometry
        self.defects = defects
        self.hook = hook
        size = source.size
        if case .resumed = log.finding, let found = log.epoch {
            let resumed = Epoch(
                number: found.number, uuid: found.uuid, holder: nil, chunkCount: geometry.chunkCount,
                isResumed: true)
            log.forEachChunk { chunk in
                resumed.claimed.insert(chunk)
                resumed.preserved.insert(chunk)
            }
            resumed.instant.store(found.institutedAt, ordering: .relaxed)
            epoch = resumed
            control.withLock { $0.epoch = resumed }
            isEpochOpen.store(true, ordering: .releasing)
        }
    }

    public var capabilities: StoreCapabilities { source.capabilities }

    public var isPrompt: Bool {
        !gate.isClosed && blockedWrites.load(ordering: .relaxed) == 0 && source.isPrompt
    }

    // MARK: The live volume

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        let start = MonotonicClock.now
        try source.read(at: offset, into: buffer)
        meters.reads.wrappingAdd(1, ordering: .relaxed)
        meters.readBytes.wrappingAdd(UInt64(buffer.count), ordering: .relaxed)
        meters.readTime.count(since: start)
    }

    public func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        try change(ByteRange(offset: offset, count: UInt64(buffer.count))) { () throws(StoreError) in
            try put(durable: durable) { durable throws(StoreError) in
                try source.write(buffer, at: offset, durable: durable)
            }
        }
        meters.writes.wrappingAdd(1, ordering: .relaxed)
        meters.writtenBytes.wrappingAdd(UInt64(buffer.count), ordering: .relaxed)
    }

    public func write(
        gathering list: UnsafeBufferPointer<UnsafeRawBufferPointer>, at offset: UInt64, durable: Bool
    ) throws(StoreError) {
        let count = list.reduce(0) { $0 + UInt64($1.count) }
        try change(ByteRange(offset: offset, count: count)) { () throws(StoreError) in
            try put(durable: durable) { durable throws(StoreError) in
                try source.write(gathering: list, at: offset, durable: durable)
            }
        }
        meters.writes.wrappingAdd(1, ordering: .relaxed)
        meters.writtenBytes.wrappingAdd(count, ordering: .relaxed)
    }

    /// Declines what would wait at the gate or for the cache: a write that has to preserve something may wait for
    /// other writers, for a full cache, for stable storage.
    public func writePromptly(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64
    ) throws(StoreError) -> Bool {
        let range = ByteRange(offset: offset, count: UInt64(buffer.count))
        requireWithin(range)
        let start = MonotonicClock.now
        guard gate.tryEnter() else { return false }
        defer { gate.leave() }
        hook?(.passedGate)
        if isEpochOpen.load(ordering: .acquiring), let epoch,
            !geometry.chunks(touching: range).allSatisfy({ epoch.preserved.contains($0) })
        {
            return false
        }
        guard try source.writePromptly(buffer, at: offset) else { return false }
        hook?(.wroteSource)
        meters.writes.wrappingAdd(1, ordering: .relaxed)
        meters.writtenBytes.wrappingAdd(range.count, ordering: .relaxed)
        meters.writeTime.count(since: start)
        return true
    }

    public func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        let isDurable = options.contains(.durable)
        if isDurable { try flushFailure.check() }
        try change(range) { () throws(StoreError) in
            try source.writeZeroes(range, options: options.subtracting(.durable))
            if isDurable { try flushSource() }
        }
        meters.zeroes.wrappingAdd(1, ordering: .relaxed)
    }

    /// While an epoch is open, only chunks that are preserved are trimmed: advice must not cost cache space.
    public func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
        requireWithin(range)
        gate.enter()
        defer { gate.leave() }
        hook?(.passedGate)
        meters.trims.wrappingAdd(1, ordering: .relaxed)
        guard !range.isEmpty, isEpochOpen.load(ordering: .acquiring), let epoch else {
            try source.trim(range, durable: false)
            if durable { try flushSource() }
            return
        }
        var trimmed: UInt64 = 0
        var chunks = geometry.chunks(touching: range)[...]
        while let first = chunks.first {
            let run = chunks.prefix { epoch.preserved.contains($0) }
            if let last = run.last {
                let whole = ByteRange(
                    offset: geometry.range(of: first).offset,
                    count: geometry.range(of: last).end - geometry.range(of: first).offset)
                if let part = whole.intersection(range) {
                    try source.trim(part, durable: false)
                    trimmed += part.count
                }
            }
            chunks = chunks.dropFirst(max(run.count, 1))
        }
        if trimmed < range.count { meters.trimsIgnored.wrappingAdd(1, ordering: .relaxed) }
        if durable { try flushSource() }
    }

    public func flush() throws(StoreError) {
        let start = MonotonicClock.now
        try flushSource()
        meters.flushes.wrappingAdd(1, ordering: .relaxed)
        meters.flushTime.count(since: start)
    }

    public func prefetch(_ range: ByteRange) throws(StoreError) { try source.prefetch(range) }

    public func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        try source.allocation(of: range, limit: limit)
    }

    /// Every change of the source's bytes goes through here.
    @inline(__always)
    private func change(_ range: ByteRange, _ write: () throws(StoreError) -> Void) throws(StoreError) {
        requireWithin(range)
        let start = MonotonicClock.now
        gate.enter()
        defer {
            gate.leave()
            meters.writeTime.count(since: start)
        }
        hook?(.passedGate)
        guard isEpochOpen.load(ordering: .acquiring), let epoch, !range.isEmpty else { return try write() }
        if defects.contains(.preservesAfterWriting) {
            try write()
            hook?(.wroteSource)
            return preserve(range, epoch)
        }
        preserve(range, epoch)
        hook?(.preserved)
        try write()
        hook?(.wroteSource)
    }
}
