import Blocks
import Glibc

/// Copies by asynchronous direct I/O: `depth` buffers of `chunkSize` in flight through one libaio context, on
/// the calling thread. A completed read becomes a write, a completed write frees its buffer for the next
/// read. The order of the plan is kept where segments overlap and ignored where they do not.
///
/// A request owns its buffer until its event has come, also when the copy fails or is cancelled. One copy
/// at a time; the engine can be used again afterwards, whatever happened.
public final class CopyEngine {
    /// Buffers in flight.
    public let depth: Int
    /// Bytes of each.
    public let chunkSize: Int

    enum Phase { case idle, reading, writing }

    /// A buffer and what it is used for.
    struct Slot {
        var phase = Phase.idle
        var piece: CopyPiece?
        /// Bytes of the phase that are done.
        var done = 0
        /// What was told to the target's checksums, while it is written.
        var summed: (checksums: ChunkChecksums, write: ChunkChecksums.Write)?
    }

    let system: SystemCalls
    let slots: UnsafeMutableBufferPointer<Slot>
    private let context: AIOContext
    private let buffers: AlignedBuffer
    private let blocks: UnsafeMutablePointer<ControlBlock>
    private let queue: UnsafeMutablePointer<UnsafeMutablePointer<ControlBlock>?>
    private let events: UnsafeMutableBufferPointer<CompletionEvent>
    private var queued = 0
    private var inKernel = 0
    private var idle: [Int]
    private var busy: Int { depth - idle.count }

    // Of the copy that runs.
    private var progress = CopyProgress()
    private var failure: (sequence: UInt64, what: CopyFailure)?
    private var isCancelled = false
    /// No segment from this on counts as done: a piece of it was given up.
    private var firstGivenUp = Int.max

    /// - Parameters:
    ///   - depth: within ``AsyncIOLimits/depth``.
    ///   - chunkSize: bytes, a power of two within ``AsyncIOLimits/chunkSize``.
    /// - Throws: ``StorageError/Kind/exhausted`` when the system has no room for that many requests.
    public convenience init(
        depth: Int = AsyncIOLimits.defaultDepth, chunkSize: Int = AsyncIOLimits.defaultChunkSize
    ) throws(StorageError) {
        try self.init(depth: depth, chunkSize: chunkSize, system: .live)
    }

    package init(depth: Int, chunkSize: Int, system: SystemCalls) throws(StorageError) {
        precondition(AsyncIOLimits.depth.contains(depth), "depth out of bounds")
        precondition(
            AsyncIOLimits.chunkSize.contains(chunkSize) && chunkSize & (chunkSize - 1) == 0,
            "chunk size out of bounds")
        precondition(depth * chunkSize <= AsyncIOLimits.engineBuffers, "too much memory for buffers")
        var created: AIOContext?
        switch system.ioSetup(depth, &created) {
        case .success: break
        case .failure(let error) where error.code == EAGAIN:
            throw StorageError(
                .exhausted, operation: "set up", path: "asynchronous I/O", errno: error.code,
                reason: "the system's asynchronous requests are used up: raise fs.aio-max-nr "
                    + "(/proc/sys/fs/aio-max-nr), or use a depth below \(depth)")
        case .failure(let error):
            throw StorageError(operation: "set up", path: "asynchronous I/O", error)
        }
        guard let created else { preconditionFailure("io_setup gave no context") }
        context = created
        self.depth = depth
        self.chunkSize = chunkSize
        self.system = system
        buffers = AlignedBuffer(count: depth * chunkSize, alignment: AsyncIOLimits.greatestAlignment)
        slots = .allocate(capacity: depth)
        slots.initialize(repeating: Slot())
        blocks = .allocate(capacity: depth)
        blocks.initialize(repeating: ControlBlock(), count: depth)
        queue = .allocate(capacity: depth)
        queue.initialize(repeating: nil, count: depth)
        events = .allocate(capacity: depth)
        events.initialize(repeating: CompletionEvent())
        idle = Array((0..<depth).reversed())
    }

    deinit {
        precondition(inKernel == 0, "an engine was let go with requests in flight")
        system.ioDestroy(context)
        slots.deinitialize()
        slots.deallocate()
        blocks.deallocate()
        queue.deallocate()
        events.deallocate()
    }

    /// Copies the plan; returns when all is written, and with `flush` on stable storage.
    /// - Parameters:
    ///   - progress: a fresh one; updated while the copy runs.
    ///   - isCancelled: asked often; once true, nothing more is begun, and the call throws as soon as what
    ///     is in flight has come back.
    public func run(
        _ plan: some Sequence<CopySegment>, flush: Bool, progress: CopyProgress = CopyProgress(),
        isCancelled cancelled: () -> Bool = { false }
    ) throws(CopyFailure) {
        self.progress = progress
        failure = nil
        isCancelled = false
        firstGivenUp = .max
        var targets: [StorageFile] = []
        var pieces = CopyPieces(plan.makeIterator(), chunkSize: chunkSize)
        while true {
            if !isCancelled, cancelled() { isCancelled = true }
            if failure == nil, !isCancelled { issue(&pieces, &targets, cancelled) }
            submit()
            report(pieces.segmentsIssued)
            if busy == 0 {
                let isOver = pieces.next == nil || failure != nil || isCancelled
                if isOver { break } else { continue }
            }
            reap()
            report(pieces.segmentsIssued)
        }
        if let failure { throw failure.what }
        if isCancelled {
            throw CopyFailure(
                reason: .cancelled, segment: progress.segmentsCompleted, offset: 0, errno: 0, path: "")
        }
        if flush { for target in targets { try sync(target) } }
    }

    // MARK: From the plan to requests

    private func issue(
        _ pieces: inout CopyPieces<some IteratorProtocol<CopySegment>>, _ targets: inout [StorageFile],
        _ cancelled: () -> Bool
    ) {
        while let piece = pieces.next, let index = idle.last {
            guard !slots.contains(where: { Self.blocks(piece, $0) }), lock(piece, cancelled) else { return }
            idle.removeLast()
            _ = pieces.take()
            if targets.last !== piece.target, !targets.contains(where: { $0 === piece.target }) {
                targets.append(piece.target)
            }
            slots[index] = Slot(phase: .reading, piece: piece)
            enqueue(index)
        }
    }

    private static func blocks(_ piece: CopyPiece, _ slot: Slot) -> Bool {
        guard let other = slot.piece else { return false }
        return piece.mustWait(for: other, isRead: slot.phase == .writing)
    }

    /// Takes the locks that a piece holds while it is under way, or none: those that the plan gives, then the
    /// target file's, which keeps apart from the file's own read-modify-writes (only files that are written past
    /// the page cache need it). While other pieces are under way it does not wait.
    private func lock(_ piece: CopyPiece, _ cancelled: () -> Bool) -> Bool {
        let file = piece.target.isDirect ? piece.target.ranges : nil
        guard lockUnits(piece, cancelled) else { return false }
        // Who holds ranges of a file waits for nothing but the device: so holding others does no harm.
        if Self.isTaken(file, piece.lockRange, exclusive: piece.writesBuffered)
            || busy == 0
                && file?.lock(piece.lockRange, exclusive: piece.writesBuffered, unless: cancelled) == true
        {
            return true
        }
        piece.sourceRanges?.unlock(piece.sourceRange, exclusive: false)
        piece.targetRanges?.unlock(piece.targetRange, exclusive: false)
        return false
    }

    /// Both of what the plan gives, or none. It waits its turn for one of them only, holding nothing; for the other it
    /// does not, because who is before it there may wait for the first.
    private func lockUnits(_ piece: CopyPiece, _ cancelled: () -> Bool) -> Bool {
        let (source, target) = (piece.sourceRanges, piece.targetRanges)
        if Self.isTaken(source, piece.sourceRange) {
            if Self.isTaken(target, piece.targetRange) { return true }
            source?.unlock(piece.sourceRange, exclusive: false)
            guard busy == 0, let target else { return false }
            guard target.lock(piece.targetRange, exclusive: false, unless: cancelled) else { return false }
            if source?.lockPassing(piece.sourceRange, unless: cancelled) ?? true { return true }
            target.unlock(piece.targetRange, exclusive: false)
            return false
        }
        guard busy == 0, let source else { return false }
        guard source.lock(piece.sourceRange, exclusive: false, unless: cancelled) else { return false }
        if target?.lockPassing(piece.targetRange, unless: cancelled) ?? true { return true }
        source.unlock(piece.sourceRange, exclusive: false)
        return false
    }

    private static func isTaken(_ ranges: RangeLock?, _ range: ByteRange, exclusive: Bool = false) -> Bool {
        ranges?.tryLock(range, exclusive: exclusive) ?? true
    }

    /// Puts the rest of a slot's phase into the queue.
    private func enqueue(_ index: Int) {
        let slot = slots[index]
        guard let piece = slot.piece else { preconditionFailure("an idle slot in the queue") }
        let isWrite = slot.phase == .writing
        let buffer = UnsafeMutableRawBufferPointer(
            rebasing: buffers.bytes[(index * chunkSize + slot.done)..<(index * chunkSize + piece.length)])
        blocks[index].prepare(
            isWrite: isWrite, descriptor: isWrite ? piece.writeDescriptor : piece.readDescriptor,
            buffer: buffer, offset: (isWrite ? piece.targetOffset : piece.sourceOffset) + UInt64(slot.done),
            tag: index)
        queue[queued] = blocks + index
        queued += 1
    }

    /// Hands the queue to the system: as much as it takes now; what it refuses fails alone.
    private func submit() {
        var sent = 0
        var tries = 0
        while sent < queued {
            switch system.ioSubmit(context, queued - sent, queue + sent) {
            case .success(let count) where count > 0:
                sent += count
                inKernel += count
            case .failure(let error) where error.code == EINTR: continue
            case .failure(let error) where error.code != EAGAIN:
                complete(tag(ofQueued: sent), .failure(error))
                sent += 1
            default:
                // No room: room comes with completions; without any in flight, only with time.
                if inKernel > 0 {
                    keepQueue(from: sent)
                    return
                }
                tries += 1
                if tries < AsyncIOLimits.submissionTries {
                    BlockingThread.sleep(nanoseconds: 1_000_000)
                } else {
                    complete(tag(ofQueued: sent), .failure(Errno(EAGAIN)))
                    sent += 1
                }
            }
        }
        queued = 0
    }

    private func tag(ofQueued position: Int) -> Int {
        guard let block = queue[position] else { preconditionFailure("a hole in the queue") }
        return block - blocks
    }

    private func keepQueue(from sent: Int) {
        for position in sent..<queued { queue[position - sent] = queue[position] }
        queued -= sent
    }

    // MARK: From events to the next requests

    private func reap() {
        guard inKernel > 0 else { return }
        switch system.ioGetEvents(context, events, AsyncIOLimits.cancellationPoll) {
        case .success(let count):
            inKernel -= count
            for event in events[..<count] { complete(event.tag, event.outcome) }
        case .failure(let error):
            // Anything but an interruption means that the context is not one: our bug.
            precondition(error.code == EINTR, "io_getevents failed: \(error)")
        }
    }

    private func complete(_ index: Int, _ outcome: Result<Int, Errno>) {
        guard let piece = slots[index].piece else { preconditionFailure("an event for an idle slot") }
        let isWrite = slots[index].phase == .writing
        switch outcome {
        case .failure(let error) where error.code == EINTR: enqueueUnlessGivenUp(index, piece)
        case .failure(let error): fail(index, piece, isWrite: isWrite, error.code)
        case .success(let count):
            let before = slots[index].done
            slots[index].done += count
            if slots[index].done == piece.length {
                if isWrite { finish(index, piece) } else { beginWrite(index, piece) }
                return
            }
            // Direct I/O goes on at whole blocks.
            let file = isWrite ? piece.target : piece.source
            let isBuffered =
                (isWrite ? piece.writeDescriptor : piece.readDescriptor) == file.bufferedDescriptor
            if !isBuffered { slots[index].done -= slots[index].done % file.alignment }
            if slots[index].done > before {
                enqueueUnlessGivenUp(index, piece)
            } else {
                fail(index, piece, isWrite: isWrite, isWrite ? EIO : ENODATA)
            }
        }
    }

    private func beginWrite(_ index: Int, _ piece: CopyPiece) {
        piece.sourceRanges?.unlock(piece.sourceRange, exclusive: false)
        slots[index].phase = .writing
        slots[index].done = 0
        // Once, here: what was read is in the caches still.
        if let checksums = piece.targetChecksums?.current {
            let bytes = UnsafeRawBufferPointer(
                rebasing: buffers.bytes[(index * chunkSize)..<(index * chunkSize + piece.length)])
            slots[index].summed = (checksums, checksums.begin(piece.targetRange, .bytes(bytes)))
        }
        enqueueUnlessGivenUp(index, piece)
    }

    /// After a failure, what comes before it in the plan is still written.
    private func enqueueUnlessGivenUp(_ index: Int, _ piece: CopyPiece) {
        if isCancelled || failure.map({ piece.sequence > $0.sequence }) ?? false {
            giveUp(index, piece)
        } else {
            enqueue(index)
        }
    }

    private func finish(_ index: Int, _ piece: CopyPiece) {
        progress.add(bytes: piece.length)
        piece.source.copied.add(from: piece.length)
        piece.target.copied.add(to: piece.length)
        release(index, piece, isDone: true)
    }

    private func fail(_ index: Int, _ piece: CopyPiece, isWrite: Bool, _ code: Int32) {
        if failure.map({ piece.sequence < $0.sequence }) ?? true {
            let done = UInt64(slots[index].done)
            failure = (
                piece.sequence,
                CopyFailure(
                    reason: isWrite ? .write : .read, segment: piece.segment,
                    offset: (isWrite ? piece.targetOffset : piece.sourceOffset) + done,
                    writtenUpTo: piece.targetOffset + (isWrite ? done : 0), errno: code,
                    path: isWrite ? piece.target.path : piece.source.path)
            )
        }
        giveUp(index, piece)
    }

    private func giveUp(_ index: Int, _ piece: CopyPiece) {
        firstGivenUp = min(firstGivenUp, piece.segment)
        release(index, piece, isDone: false)
    }

    private func release(_ index: Int, _ piece: CopyPiece, isDone: Bool) {
        // Before the range is given back: who changes what is kept has all of them.
        if let (checksums, write) = slots[index].summed { checksums.end(write, isDone: isDone) }
        if slots[index].phase == .reading {
            piece.sourceRanges?.unlock(piece.sourceRange, exclusive: false)
        }
        piece.targetRanges?.unlock(piece.targetRange, exclusive: false)
        if piece.target.isDirect {
            piece.target.ranges.unlock(piece.lockRange, exclusive: piece.writesBuffered)
        }
        slots[index] = Slot()
        idle.append(index)
    }

    private func report(_ segmentsIssued: Int) {
        var completed = min(segmentsIssued, firstGivenUp)
        for slot in slots { if let piece = slot.piece { completed = min(completed, piece.segment) } }
        progress.update(segments: completed, requests: busy)
    }

    // MARK: Flush

    /// Through the queue; by the calling thread where the file system refuses that.
    private func sync(_ file: StorageFile) throws(CopyFailure) {
        let failure = file.flushes.flush {
            blocks[0].prepareFlush(descriptor: file.bufferedDescriptor, tag: 0)
            queue[0] = blocks
            var outcome = submitFlush()
            if case .failure(let error) = outcome, [EINVAL, EOPNOTSUPP, EAGAIN].contains(error.code) {
                repeat { outcome = system.fdatasync(file.bufferedDescriptor) } while outcome.isInterrupted
            }
            return outcome
        }
        if let error = failure {
            throw CopyFailure(
                reason: .flush, segment: progress.segmentsCompleted, offset: 0, errno: error.code,
                path: file.path)
        }
    }

    private func submitFlush() -> Result<Int, Errno> {
        while true {
            switch system.ioSubmit(context, 1, queue) {
            case .success(1): break
            case .success: return .failure(Errno(EAGAIN))
            case .failure(let error) where error.code == EINTR: continue
            case .failure(let error): return .failure(error)
            }
            while true {
                switch system.ioGetEvents(context, events, AsyncIOLimits.cancellationPoll) {
                case .success(0): continue
                case .success: return events[0].outcome
                case .failure(let error):
                    precondition(error.code == EINTR, "io_getevents failed: \(error)")
                }
            }
        }
    }
}

extension Result where Failure == Errno {
    fileprivate var isInterrupted: Bool {
        if case .failure(let error) = self { error.code == EINTR } else { false }
    }
}
