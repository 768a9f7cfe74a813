import Blocks
import Synchronization

/// One step of a copy plan: `length` bytes, 0 allowed, from one place to another. Both ranges lie within
/// their files; source and target may be the same file, and the ranges may overlap (then as memmove does).
public struct CopySegment: Sendable {
    public var source: StorageFile
    /// Bytes, any alignment.
    public var sourceOffset: UInt64
    public var target: StorageFile
    public var targetOffset: UInt64
    /// Bytes.
    public var length: UInt64
    /// Keep the copy apart from what others do in one go to these bytes of source or target: each piece is held,
    /// shared, while it is read, and from before it is read until it is written.
    public var sourceRanges: RangeLock?
    public var targetRanges: RangeLock?
    /// Told of what is written to the target, with the checksums of whole chunks.
    public var targetChecksums: ChecksumKeeper?

    public init(
        source: StorageFile, sourceOffset: UInt64, target: StorageFile, targetOffset: UInt64, length: UInt64,
        sourceRanges: RangeLock? = nil, targetRanges: RangeLock? = nil,
        targetChecksums: ChecksumKeeper? = nil
    ) {
        self.targetChecksums = targetChecksums
        self.sourceRanges = sourceRanges
        self.targetRanges = targetRanges
        self.source = source
        self.sourceOffset = sourceOffset
        self.target = target
        self.targetOffset = targetOffset
        self.length = length
    }

    /// What lies under both names must not be overwritten before it was read.
    var runsBackwards: Bool {
        guard length > 0, targetOffset > sourceOffset, targetOffset - sourceOffset < length else {
            return false
        }
        return source.identity == target.identity
    }
}

/// How far a copy is; may be read by any thread while it runs. Both numbers only grow.
public final class CopyProgress: Sendable {
    private let segments = Atomic<Int>(0)
    private let bytes = Atomic<UInt64>(0)
    private let requests = Atomic<Int>(0)

    public init() {}

    /// Segments from the first of the plan that are wholly done, none before them open.
    public var segmentsCompleted: Int { segments.load(ordering: .relaxed) }
    /// Bytes written to targets, in whatever order.
    public var bytesWritten: UInt64 { bytes.load(ordering: .relaxed) }
    /// Reads and writes that are under way.
    public var requestsInFlight: Int { requests.load(ordering: .relaxed) }

    func update(segments: Int, requests: Int) {
        self.segments.store(segments, ordering: .relaxed)
        self.requests.store(requests, ordering: .relaxed)
    }
    func add(bytes: Int) { self.bytes.wrappingAdd(UInt64(bytes), ordering: .relaxed) }
}

/// Bytes that copy engines have read of a file and written to it since it was opened; pieces that were given up are none.
public final class CopiedBytes: Sendable {
    private let read = Atomic<UInt64>(0)
    private let written = Atomic<UInt64>(0)

    public var from: UInt64 { read.load(ordering: .relaxed) }
    public var to: UInt64 { written.load(ordering: .relaxed) }

    func add(from bytes: Int) { read.wrappingAdd(UInt64(bytes), ordering: .relaxed) }
    func add(to bytes: Int) { written.wrappingAdd(UInt64(bytes), ordering: .relaxed) }
}

/// Why a copy did not come to its end. All that was before ``segment`` in the plan is written; of it and what
/// follows, some may be.
public struct CopyFailure: Error, Hashable, Sendable, CustomStringConvertible {
    public enum Reason: Hashable, Sendable { case cancelled, read, write, flush }

    public var reason: Reason
    /// Index in the plan of the first segment that failed; when cancelled or flushing, of the first that is
    /// not known to be done.
    public var segment: Int
    /// Bytes: where in the source (read) or the target (write) it failed.
    public var offset: UInt64
    /// Bytes: where in the target of a segment that failed all is written up to, from the segment's start (in one
    /// that runs backwards, because it overlaps itself, from there to its end). 0 when cancelled or flushing.
    public var writtenUpTo: UInt64 = 0
    /// The system's error number; 0 when cancelled.
    public var errno: Int32
    /// The path it failed on.
    public var path: String

    public var description: String {
        switch reason {
        case .cancelled: "cancelled in segment \(segment)"
        case .read: "cannot read \(path) at byte \(offset) in segment \(segment): \(Errno(errno))"
        case .write: "cannot write \(path) at byte \(offset) in segment \(segment): \(Errno(errno))"
        case .flush: "cannot flush \(path): \(Errno(errno))"
        }
    }
}

/// A part of a segment that fits one buffer.
struct CopyPiece {
    var source: StorageFile
    var target: StorageFile
    var sourceOffset: UInt64
    var targetOffset: UInt64
    var length: Int
    /// Index of the segment in the plan.
    var segment: Int
    /// Counts pieces; tells earlier from later.
    var sequence: UInt64
    var sourceRanges: RangeLock?
    var targetRanges: RangeLock?
    var targetChecksums: ChecksumKeeper?

    var sourceRange: ByteRange { ByteRange(offset: sourceOffset, count: UInt64(length)) }
    var targetRange: ByteRange { ByteRange(offset: targetOffset, count: UInt64(length)) }

    /// Through the page cache: pages at the edges are shared with neighbours.
    var writesBuffered: Bool { !target.isAligned(targetRange) }
    var lockRange: ByteRange { writesBuffered ? target.pageCacheRange(targetRange) : targetRange }

    var readDescriptor: Int32 {
        source.isAligned(sourceRange) ? source.descriptor : source.bufferedDescriptor
    }
    var writeDescriptor: Int32 { writesBuffered ? target.bufferedDescriptor : target.descriptor }

    /// Whether this one must wait for an earlier one.
    /// - Parameter isRead: the earlier one has its data; its source may be overwritten.
    func mustWait(for earlier: CopyPiece, isRead: Bool) -> Bool {
        if target.identity == earlier.target.identity, lockRange.overlaps(earlier.lockRange) { return true }
        if source.identity == earlier.target.identity, sourceRange.overlaps(earlier.targetRange) {
            return true
        }
        return !isRead && target.identity == earlier.source.identity
            && lockRange.overlaps(earlier.sourceRange)
    }
}

/// Cuts a plan into pieces, in order, aligned where the segments allow it. Allocates nothing per piece.
struct CopyPieces<Plan: IteratorProtocol> where Plan.Element == CopySegment {
    private var plan: Plan
    private let chunkSize: UInt64
    private var current: CopySegment?
    private var backwards = false
    /// Bytes of the current segment already handed out.
    private var done: UInt64 = 0
    private var sequence: UInt64 = 0
    /// Segments of which every piece was handed out.
    private(set) var segmentsIssued = 0
    /// The next piece, until it is taken.
    private(set) var next: CopyPiece?

    init(_ plan: Plan, chunkSize: Int) {
        self.plan = plan
        self.chunkSize = UInt64(chunkSize)
        advance()
    }

    /// Takes ``next`` and prepares the one after.
    mutating func take() -> CopyPiece? {
        guard let piece = next else { return nil }
        done += UInt64(piece.length)
        advance()
        return piece
    }

    private mutating func advance() {
        next = nil
        while true {
            if let segment = current {
                if done < segment.length {
                    next = cut(segment)
                    sequence += 1
                    return
                }
                segmentsIssued += 1
                current = nil
            }
            guard let segment = plan.next() else { return }
            segment.source.requireWithin(ByteRange(offset: segment.sourceOffset, count: segment.length))
            segment.target.requireWithin(ByteRange(offset: segment.targetOffset, count: segment.length))
            current = segment
            backwards = segment.runsBackwards
            done = 0
        }
    }

    private func cut(_ segment: CopySegment) -> CopyPiece {
        let rest = segment.length - done
        // Where both can be aligned at once they are; else the target is, since partial blocks cost it more.
        let greatest = UInt64(max(segment.source.alignment, segment.target.alignment))
        let isCongruent = (segment.sourceOffset ^ segment.targetOffset) & (greatest - 1) == 0
        let unit = isCongruent ? greatest : UInt64(segment.target.alignment)
        let edge = segment.targetOffset + (backwards ? rest : done)
        var ragged = edge & (unit - 1)
        if !backwards, ragged != 0 { ragged = unit - ragged }
        var length = min(rest, ragged != 0 ? min(ragged, chunkSize) : chunkSize)
        if ragged == 0, length > unit { length = length.roundedDown(to: unit) }
        if let summed = segment.targetChecksums?.current?.chunkSize, summed <= chunkSize {
            // A piece that ends within a chunk leaves it to the next, and neither has the whole of it.
            let stop =
                backwards ? (edge - length).roundedUp(to: summed) : (edge + length).roundedDown(to: summed)
            let whole = backwards ? edge - min(stop, edge) : stop - min(edge, stop)
            if whole > 0 { length = whole }
        }
        let start = backwards ? rest - length : done
        return CopyPiece(
            source: segment.source, target: segment.target, sourceOffset: segment.sourceOffset + start,
            targetOffset: segment.targetOffset + start, length: Int(length), segment: segmentsIssued,
            sequence: sequence, sourceRanges: segment.sourceRanges, targetRanges: segment.targetRanges,
            targetChecksums: segment.targetChecksums)
    }
}
