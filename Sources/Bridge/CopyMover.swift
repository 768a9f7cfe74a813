import AsyncIO
import Blocks
import Glibc
import SCSI

/// Why a copy ended before its end.
struct MoveFailure: Error {
    enum Reason: Hashable, Sendable {
        case cancelled
        case store(StoreError, SenseTable.Direction)
        /// The copy engine could not be had.
        case engine(StorageError)
    }
    var reason: Reason
    /// The segment that was being processed.
    var segment: Int
    /// Bytes at that segment's start that are written for certain; others behind them may be.
    var written: UInt64 = 0
}

/// What a running copy asks and tells: whether it shall end, and how far it is.
struct CopyControl: Sendable {
    let record: CopyRecord
    let isCancelled: @Sendable () -> Bool
}

/// Moves the bytes of a plan.
protocol CopyMover: Sendable {
    /// Does all pieces; where one reads or writes what another writes, in their order. Tells
    /// `control.record` the bytes and segments that are done. After it threw nothing runs on.
    func move(_ plan: CopyPlan, _ control: CopyControl) throws(MoveFailure)
}

/// Engines and how many copies use one: the more there are when a copy begins, the shallower its queue
/// (``BridgeLimits/engineDepth``). Those that are idle are kept, because touching fresh memory costs as much as copying
/// through it.
final class EnginePool: Sendable {
    private struct State {
        var idle: [CopyEngine] = []
        var running = 0
    }
    private let state = Monitor(State())
    private let chunkSize: Int
    private let system: SystemCalls?

    /// - Parameter system: what takes the system's place; nil: nothing.
    init(chunkSize: Int = AsyncIOLimits.defaultChunkSize, system: SystemCalls? = nil) {
        self.chunkSize = chunkSize
        self.system = system
    }

    /// Runs `body` with an engine that nobody else uses.
    /// - Parameter bytes: what there is to copy, in `pieces` pieces: less gets a shallower queue.
    func withEngine(
        bytes: UInt64, pieces: Int, _ body: (CopyEngine) throws(MoveFailure) -> Void
    ) throws(MoveFailure) {
        let running = state.withLock { state in
            state.running += 1
            return state.running
        }
        defer { state.withLock { $0.running -= 1 } }
        let wanted = Int(clamping: min(bytes / UInt64(chunkSize), 1 << 20)) + pieces
        let depth = Self.depth(running: running, wanted: wanted)
        let engine = try take(depth)
        defer { give(engine) }
        try body(engine)
    }

    /// A power of two, so that engines fit again.
    static func depth(running: Int, wanted: Int) -> Int {
        var depth = 1
        let most = min(AsyncIOLimits.defaultDepth, max(1, BridgeLimits.engineDepth / running))
        while depth < wanted, depth * 2 <= most { depth *= 2 }
        return depth
    }

    private func take(_ depth: Int) throws(MoveFailure) -> CopyEngine {
        let idle = state.withLock { state -> CopyEngine? in
            guard let index = state.idle.firstIndex(where: { $0.depth == depth }) else { return nil }
            return state.idle.remove(at: index)
        }
        if let idle { return idle }
        do throws(StorageError) {
            guard let system else { return try CopyEngine(depth: depth, chunkSize: chunkSize) }
            return try CopyEngine(depth: depth, chunkSize: chunkSize, system: system)
        } catch {
            throw MoveFailure(reason: .engine(error), segment: 0)
        }
    }

    private func give(_ engine: CopyEngine) {
        state.withLock { state in
            let kept = state.idle.reduce(0) { $0 + $1.depth }
            if kept + engine.depth <= BridgeLimits.engineDepth { state.idle.append(engine) }
        }
    }
}

/// The copy engine where both ends lie in files, which keeps the order where pieces overlap; the rest, which is
/// zeros that fill up a block and blocks that end in padding, piece by piece.
struct EngineMover: CopyMover {
    private let pool: EnginePool

    init(_ pool: EnginePool = EnginePool()) { self.pool = pool }

    func move(_ plan: CopyPlan, _ control: CopyControl) throws(MoveFailure) {
        guard !plan.pieces.isEmpty else { return }
        try pool.withEngine(bytes: plan.totalBytes, pieces: plan.pieces.count) {
            engine throws(MoveFailure) in
            try move(plan, engine, control)
        }
    }

    private func move(
        _ plan: CopyPlan, _ engine: CopyEngine, _ control: CopyControl
    ) throws(MoveFailure) {
        let serial = SerialMover()
        var index = 0
        while index < plan.pieces.count {
            let end = plan.pieces[index...].firstIndex { !$0.suitsEngine } ?? plan.pieces.count
            if end > index {
                try run(engine, plan, index..<end, control)
                index = end
            } else {
                try serial.move(plan, index, control)
                index += 1
            }
        }
    }

    private func run(
        _ engine: CopyEngine, _ plan: CopyPlan, _ range: Range<Int>, _ control: CopyControl
    ) throws(MoveFailure) {
        let pieces = plan.pieces[range]
        let progress = CopyProgress()
        control.record.follow(progress, segments: pieces.map(\.segment))
        defer { control.record.settle() }
        do throws(CopyFailure) {
            try engine.run(
                pieces.lazy.map(\.engineSegment), flush: false, progress: progress,
                isCancelled: control.isCancelled)
        } catch {
            let index = min(pieces.startIndex + error.segment, pieces.endIndex - 1)
            let piece = pieces[index]
            let reason: MoveFailure.Reason =
                switch error.reason {
                case .cancelled: .cancelled
                case .read: .store(StoreError(system: error.errno), .read)
                case .write, .flush: .store(StoreError(system: error.errno), .write)
                }
            // One that overlaps itself may have been begun at its end.
            let isCounted = reason != .cancelled && !piece.overlapsItself
            let written = isCounted ? error.writtenUpTo - piece.targetOffset : 0
            throw MoveFailure(
                reason: reason, segment: piece.segment, written: plan.bytesOfSegment(before: index) + written)
        }
    }
}

extension CopyPiece {
    /// Whether both ends lie wholly in files.
    fileprivate var suitsEngine: Bool {
        guard let source, source.file != nil, target.file != nil else { return false }
        return sourceRange.end <= source.backedBytes && targetRange.end <= target.backedBytes
    }

    fileprivate var engineSegment: AsyncIO.CopySegment {
        guard let from = source?.file, let to = target.file else {
            preconditionFailure("a piece without files for the engine")
        }
        return AsyncIO.CopySegment(
            source: from, sourceOffset: sourceOffset, target: to, targetOffset: targetOffset, length: count,
            sourceRanges: source?.ranges, targetRanges: target.ranges, targetChecksums: target.checksums)
    }
}

extension StoreError {
    /// What the system's error number means to a store.
    fileprivate init(system code: Int32) {
        switch code {
        case ENOSPC, EDQUOT, EFBIG: self.init(.noSpace, errno: code)
        case EROFS, EPERM: self.init(.readOnly, errno: code)
        default: self.init(.io, errno: code)
        }
    }
}

/// One piece after another through one buffer: the order is the plan's by itself.
struct SerialMover: CopyMover {
    func move(_ plan: CopyPlan, _ control: CopyControl) throws(MoveFailure) {
        for index in plan.pieces.indices { try move(plan, index, control) }
    }

    /// Moves one piece.
    func move(_ plan: CopyPlan, _ index: Int, _ control: CopyControl) throws(MoveFailure) {
        let piece = plan.pieces[index]
        control.record.processed(segments: piece.segment)
        do throws(MoveFailure) { try SerialPiece(control).move(piece) } catch {
            var failure = error
            failure.written += plan.bytesOfSegment(before: index)
            throw failure
        }
    }
}

/// A buffer and what to do with it.
struct SerialPiece: ~Copyable {
    private let control: CopyControl
    private let buffer: UnsafeMutableRawBufferPointer

    init(_ control: CopyControl) {
        self.control = control
        // Page-aligned, so that direct I/O needs no second buffer.
        buffer = .allocate(byteCount: BridgeLimits.serialBuffer, alignment: 4096)
    }

    deinit { buffer.deallocate() }

    func move(_ piece: CopyPiece) throws(MoveFailure) {
        // Like memmove: from the end where the destination lies behind in the same bytes.
        let backwards = piece.overlapsItself && piece.targetOffset > piece.sourceOffset
        var done: UInt64 = 0
        while done < piece.count {
            if control.isCancelled() { throw MoveFailure(reason: .cancelled, segment: piece.segment) }
            let most = piece.source == nil ? BridgeLimits.writeSameStep : UInt64(buffer.count)
            let count = min(most, piece.count - done)
            let offset = backwards ? piece.count - done - count : done
            do throws(MoveFailure) { try step(piece, offset, Int(count)) } catch {
                throw MoveFailure(
                    reason: error.reason, segment: error.segment, written: backwards ? 0 : done)
            }
            done += count
            control.record.wrote(count)
            piece.source?.meters.copiedFrom(count)
            piece.target.meters.copiedTo(count)
        }
    }

    private func step(_ piece: CopyPiece, _ offset: UInt64, _ count: Int) throws(MoveFailure) {
        let written = ByteRange(offset: piece.targetOffset + offset, count: UInt64(count))
        guard let source = piece.source else { return try zero(piece, written) }
        let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
        do {
            let range = ByteRange(offset: piece.sourceOffset + offset, count: UInt64(count))
            source.ranges.lock(range, exclusive: false)
            defer { source.ranges.unlock(range, exclusive: false) }
            do throws(StoreError) { try source.store.read(at: range.offset, into: part) } catch {
                throw MoveFailure(reason: .store(error, .read), segment: piece.segment)
            }
        }
        piece.target.ranges.lock(written, exclusive: false)
        defer { piece.target.ranges.unlock(written, exclusive: false) }
        do throws(StoreError) {
            try piece.target.store.write(UnsafeRawBufferPointer(part), at: written.offset, durable: false)
        } catch { throw MoveFailure(reason: .store(error, .write), segment: piece.segment) }
    }

    /// Zeros, which are read from nowhere.
    private func zero(_ piece: CopyPiece, _ range: ByteRange) throws(MoveFailure) {
        piece.target.ranges.lock(range, exclusive: false)
        defer { piece.target.ranges.unlock(range, exclusive: false) }
        do throws(StoreError) {
            try piece.target.store.writeZeroes(range, options: piece.target.zeroOptions)
        } catch { throw MoveFailure(reason: .store(error, .write), segment: piece.segment) }
    }
}
