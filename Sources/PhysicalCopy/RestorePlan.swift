import Blocks
import OriginalImage

/// Bytes of the volume and where they are wanted.
public struct RestorePiece: Hashable, Sendable {
    /// Not empty.
    public var volume: ByteRange
    /// The number of what takes them: of a file of the restored set; 0 where there is one target only.
    public var target: Int
    /// Where in the target, bytes.
    public var offset: UInt64

    public init(volume: ByteRange, target: Int = 0, offset: UInt64) {
        self.volume = volume
        self.target = target
        self.offset = offset
    }

    /// - Returns: the part of it that lies in `range`; nil when there is none.
    func part(in range: ByteRange) -> RestorePiece? {
        volume.intersection(range).map {
            RestorePiece(volume: $0, target: target, offset: offset + ($0.offset - volume.offset))
        }
    }
}

/// Bytes of a copy's data location and where they are wanted.
public struct RestoreRun: Hashable, Sendable {
    /// From the start of the data location, bytes.
    public var source: UInt64
    public var target: Int
    /// Where in the target, bytes.
    public var offset: UInt64
    public var count: UInt64

    public init(source: UInt64, target: Int = 0, offset: UInt64, count: UInt64) {
        self.source = source
        self.target = target
        self.offset = offset
        self.count = count
    }
}

/// What of a volume is restored, and to where: all of it, named extents, the extents of files. There is no other way
/// from a copy to what is restored:
///
/// - from a copy that is consistent as it stands (FIG. 7B), ``dataRuns(in:)`` are what is to be copied;
/// - from one with original images (FIG. 7A), these first, and then ``originals(in:)`` over them;
/// - from a stream, ``pieces(in:)`` says of each range of the volume that passes by, whether as data or, later, as an
///   original (``ChunkGeometry/range(of:)``), which bytes of it go where: nothing has to be sought.
///
/// Pieces may overlap in the volume (files that share extents), but not on a target.
public struct RestorePlan: Sendable {
    /// Sorted by their place in the volume.
    public let pieces: [RestorePiece]
    /// Of all pieces together.
    public let bytes: UInt64
    /// A tree over the pieces: the greatest end of those below each node. Found are so the pieces of a range in a
    /// time that does not grow with those which begin before it, whoever laid them out.
    private let ends: [UInt64]

    public init(_ pieces: [RestorePiece]) {
        precondition(pieces.allSatisfy { !$0.volume.isEmpty }, "an empty piece")
        self.pieces = pieces.sorted {
            ($0.volume.offset, $0.target, $0.offset) < ($1.volume.offset, $1.target, $1.offset)
        }
        bytes = pieces.reduce(0) { $0 + $1.volume.count }
        var width = 1
        while width < pieces.count { width <<= 1 }
        var ends = [UInt64](repeating: 0, count: 2 * width)
        for (index, piece) in self.pieces.enumerated() { ends[width + index] = piece.volume.end }
        for node in stride(from: width - 1, to: 0, by: -1) {
            ends[node] = max(ends[2 * node], ends[2 * node + 1])
        }
        self.ends = ends
    }

    /// A volume of `size` bytes, as a whole.
    public init(volumeOf size: UInt64) {
        self.init([RestorePiece(volume: ByteRange(offset: 0, count: size), offset: 0)])
    }

    /// Named extents, each at its own offset. What is named twice is restored once.
    public init(extents: [ByteRange]) {
        var pieces: [RestorePiece] = []
        for range in extents.filter({ !$0.isEmpty }).sorted(by: { $0.offset < $1.offset }) {
            let start = max(range.offset, pieces.last?.volume.end ?? 0)
            guard start < range.end else { continue }
            let rest = ByteRange(offset: start, count: range.end - start)
            if let last = pieces.last, last.volume.end == start {
                pieces[pieces.count - 1].volume = ByteRange(
                    offset: last.volume.offset, count: last.volume.count + rest.count)
            } else {
                pieces.append(RestorePiece(volume: rest, offset: start))
            }
        }
        self.init(pieces)
    }

    /// What of `range` is wanted, cut to it, sorted by the place in the volume.
    public func pieces(in range: ByteRange) -> [RestorePiece] {
        var found: [RestorePiece] = []
        forEach(in: range) { found.append($0) }
        return found
    }

    /// Whether any of `range` is wanted.
    public func wants(_ range: ByteRange) -> Bool {
        var isWanted = false
        forEach(in: range) { _ in isWanted = true }
        return isWanted
    }

    private func forEach(in range: ByteRange, _ body: (RestorePiece) -> Void) {
        guard !range.isEmpty else { return }
        let width = ends.count / 2
        // Depth first, from the left; a node's first piece is the leftmost leaf below it.
        var open: [(node: Int, first: Int, count: Int)] = [(1, 0, width)]
        while let (node, first, count) = open.popLast() {
            guard first < pieces.count, ends[node] > range.offset,
                pieces[first].volume.offset < range.end
            else { continue }
            if count == 1 {
                if let part = pieces[first].part(in: range) { body(part) }
                continue
            }
            open.append((2 * node + 1, first + count / 2, count / 2))
            open.append((2 * node, first, count / 2))
        }
    }

    /// What of the data portion goes where: sorted by its place there. Neighbours at both ends are one run.
    public func dataRuns(in map: VolumeMap) -> [RestoreRun] {
        var runs: [RestoreRun] = []
        for piece in pieces { Self.append(piece, from: map.dataPlace(of: piece.volume.offset), to: &runs) }
        return runs
    }

    /// The original images that come over the data.
    public struct Originals: Sendable {
        /// Those of which anything is wanted, by their chunks.
        public var entries: [LogEntry] = []
        /// Of the data location.
        public var runs: [RestoreRun] = []
        /// Become zeros.
        public var zeros: [RestorePiece] = []

        public init() {}
    }

    /// The original images that come over the data, and what of them goes where.
    public func originals(in map: VolumeMap) -> Originals {
        var result = Originals()
        var isSorted = true
        for piece in pieces {
            for part in map.originals(over: piece.volume) {
                guard let own = piece.part(in: part.volume) else { continue }
                let entry: LogEntry
                switch part.place {
                case .data: continue
                case .zeros(let original):
                    entry = original
                    Self.append(zeros: own, to: &result.zeros)
                case .original(let original, let source):
                    entry = original
                    Self.append(own, from: source, to: &result.runs)
                }
                // Pieces may overlap in the volume.
                if let last = result.entries.last {
                    guard last.chunk != entry.chunk else { continue }
                    isSorted = isSorted && last.chunk < entry.chunk
                }
                result.entries.append(entry)
            }
        }
        guard !isSorted else { return result }
        var once: [LogEntry] = []
        for entry in result.entries.sorted(by: { $0.chunk < $1.chunk })
        where once.last?.chunk != entry.chunk {
            once.append(entry)
        }
        result.entries = once
        return result
    }

    private static func append(_ piece: RestorePiece, from source: UInt64, to runs: inout [RestoreRun]) {
        if let last = runs.last, last.target == piece.target, last.source + last.count == source,
            last.offset + last.count == piece.offset
        {
            runs[runs.count - 1].count += piece.volume.count
        } else {
            runs.append(
                RestoreRun(
                    source: source, target: piece.target, offset: piece.offset, count: piece.volume.count))
        }
    }

    private static func append(zeros piece: RestorePiece, to zeros: inout [RestorePiece]) {
        if let last = zeros.last, last.target == piece.target, last.volume.end == piece.volume.offset,
            last.offset + last.volume.count == piece.offset
        {
            zeros[zeros.count - 1].volume = ByteRange(
                offset: last.volume.offset, count: last.volume.count + piece.volume.count)
        } else {
            zeros.append(piece)
        }
    }
}
