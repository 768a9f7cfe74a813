import Blocks

/// CRC-32C of a data portion in the making, chunk by chunk, as far as they are known: from the bridge, from reading back,
/// from the record of a run that was interrupted. When all are known they are the copy's.
public struct ChecksumTable: Hashable, Sendable {
    /// Bytes that are summed up.
    public let length: UInt64
    /// Bytes of each chunk but the last, a power of two.
    public let chunkSize: UInt64
    private var values: [UInt32]
    private var states: [UInt8]

    private static let untouched: UInt8 = 0
    private static let unknown: UInt8 = 1
    private static let known: UInt8 = 2

    /// Nothing is known, and nothing was written.
    /// - Parameter length: bytes of the data portion, more than 0; the chunk size follows from it.
    public init(length: UInt64) {
        self.init(length: length, chunkSize: SliceChecksums.chunkSize(forLength: length))
    }

    public init(length: UInt64, chunkSize: UInt64) {
        precondition(length > 0 && SliceChecksums.isSize(chunkSize, least: CopyLimits.smallestChunk))
        self.length = length
        self.chunkSize = chunkSize
        let count = Int(SliceChecksums.count(length, chunkSize))
        values = [UInt32](repeating: 0, count: count)
        states = [UInt8](repeating: Self.untouched, count: count)
    }

    /// Chunks.
    public var count: Int { values.count }

    /// The bytes of a chunk.
    public func range(of chunk: Int) -> ByteRange {
        let offset = UInt64(chunk) * chunkSize
        return ByteRange(offset: offset, count: min(chunkSize, length - offset))
    }

    public subscript(chunk: Int) -> ChunkChecksums.Entry {
        get {
            switch states[chunk] {
            case Self.untouched: .untouched
            case Self.known: .known(values[chunk])
            default: .unknown
            }
        }
        set {
            (states[chunk], values[chunk]) =
                switch newValue {
                case .untouched: (Self.untouched, 0)
                case .unknown: (Self.unknown, 0)
                case .known(let value): (Self.known, value)
                }
        }
    }

    /// What `newer` says of a chunk that was written since it began counts; all else stays.
    /// - Precondition: of the same bytes.
    public mutating func merge(_ newer: ChecksumTable) {
        precondition(newer.length == length && newer.chunkSize == chunkSize, "checksums of something else")
        for chunk in 0..<count where newer.states[chunk] != Self.untouched {
            states[chunk] = newer.states[chunk]
            values[chunk] = newer.values[chunk]
        }
    }

    /// Nothing is known any more of the chunks that have a byte of `range`.
    public mutating func forget(_ range: ByteRange) {
        for chunk in chunks(touching: range) { self[chunk] = .unknown }
    }

    /// Only what lies wholly in one of these ranges counts, say because no more of it is on stable storage.
    public func only(_ ranges: RangeList) -> ChecksumTable {
        var result = self
        let joined = RangeList(merging: ranges.ranges)
        for chunk in 0..<count {
            let place = range(of: chunk)
            guard states[chunk] == Self.known, !joined.parts(of: place).contains(place) else { continue }
            result[chunk] = .unknown
        }
        return result
    }

    private func chunks(touching range: ByteRange) -> Range<Int> {
        let end = min(range.end, length)
        guard range.offset < end else { return 0..<0 }
        return Int(range.offset / chunkSize)..<Int((end - 1) / chunkSize) + 1
    }

    /// Bytes of the chunks that are not known.
    public var unknownBytes: UInt64 {
        (0..<count).reduce(0) { states[$1] == Self.known ? $0 : $0 + range(of: $1).count }
    }

    /// Reads those that are not known, whatever was written there.
    /// - Parameters:
    ///   - store: the data portion begins at its start.
    ///   - progress: told the bytes read since it was told last; may throw to stop.
    public mutating func readUnknown(
        in store: any BlockStore, progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) {
        let reader = SliceReader(store, ByteRange(offset: 0, count: length), sliceSize: chunkSize)
        let states = self.states
        try reader.read(
            only: { states[$0] != Self.known }, progress: progress,
            to: { chunk, value throws(CopyError) in self[chunk] = .known(value) })
    }

    /// Reads all of it, and learns what is not known.
    /// - Returns: the first chunk that was known and is not what is there; nil: all is as it was known.
    public mutating func readBack(
        in store: any BlockStore, progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) -> Int? {
        let reader = SliceReader(store, ByteRange(offset: 0, count: length), sliceSize: chunkSize)
        var first: Int?
        try reader.read(progress: progress) { chunk, value throws(CopyError) in
            if case .known(value) = self[chunk] { return }
            if case .known = self[chunk], first == nil { first = chunk }
            self[chunk] = .known(value)
        }
        return first
    }

    /// Nil unless all are known.
    public var complete: SliceChecksums? {
        states.allSatisfy { $0 == Self.known } ? SliceChecksums(sliceSize: chunkSize, values: values) : nil
    }

    /// The bytes of a file of checksums that is *partial* (<doc:PhysicalCopyFormat>).
    public func encoded() -> [UInt8] {
        ChecksumFile.encode(
            SliceChecksums(sliceSize: chunkSize, values: values), length: length, states: states)
    }

    /// - Throws: `damaged` where they are none.
    public init(decoding bytes: [UInt8]) throws(CopyError) {
        do throws(ChecksumFile.Malformed) {
            let content = try ChecksumFile.decode(bytes)
            length = content.length
            chunkSize = content.sums.sliceSize
            values = content.sums.values
            states = content.states ?? [UInt8](repeating: Self.known, count: values.count)
        } catch { throw CopyError(.damaged, "read checksums", error.reason) }
    }
}
