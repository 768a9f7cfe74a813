import Blocks
import Glibc

extension StorageFile {
    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        let range = ByteRange(offset: offset, count: UInt64(buffer.count))
        requireWithin(range)
        try requireOpen()
        guard isDirect else { return try readWhole(bufferedDescriptor, buffer, offset) }
        if isAligned(range), isAligned(UnsafeRawBufferPointer(buffer)) {
            return try readWhole(descriptor, buffer, offset)
        }
        let bounce = makeBounceBuffer(for: range)
        var done = 0
        while done < buffer.count {
            let piece = nextPiece(from: offset + UInt64(done), to: range.end)
            let aligned = outward(piece)
            let space = UnsafeMutableRawBufferPointer(rebasing: bounce.bytes[..<Int(aligned.count)])
            let skip = Int(piece.offset - aligned.offset)
            try readWhole(descriptor, space, aligned.offset, needed: skip + Int(piece.count))
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + Int(piece.count)])
            part.copyMemory(from: UnsafeRawBufferPointer(rebasing: space[skip..<skip + part.count]))
            done += part.count
        }
    }

    public func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        let result = withUnsafePointer(to: buffer) { pointer -> StoreError? in
            let one = UnsafeBufferPointer(start: pointer, count: 1)
            do throws(StoreError) {
                try write(gathering: one, at: offset, durable: durable)
                return nil
            } catch { return error }
        }
        if let result { throw result }
    }

    public func write(
        gathering buffers: UnsafeBufferPointer<UnsafeRawBufferPointer>, at offset: UInt64, durable: Bool
    ) throws(StoreError) {
        var count = 0
        var memoryIsAligned = true
        for buffer in buffers {
            count += buffer.count
            memoryIsAligned = memoryIsAligned && isAligned(buffer)
        }
        let range = ByteRange(offset: offset, count: UInt64(count))
        requireWithin(range)
        try requireWritable()
        guard count > 0 else {
            if durable { try sync() }
            return
        }
        guard isDirect else {
            return try writeVectors(bufferedDescriptor, buffers, offset, durable: durable)
        }
        if memoryIsAligned, isAligned(range) {
            ranges.lock(range, exclusive: false)
            defer { ranges.unlock(range, exclusive: false) }
            return try writeVectors(descriptor, buffers, offset, durable: durable)
        }
        try writeBounced(GatherCursor(buffers), range)
        // The pieces were written without; one flush at the end is as good and cheaper.
        if durable { try sync() }
    }

    public func flush() throws(StoreError) {
        try requireWritable()
        try sync()
    }

    func sync() throws(StoreError) {
        let failure = flushes.flush {
            while true {
                let outcome = system.fdatasync(bufferedDescriptor)
                if case .failure(let error) = outcome, error.code == EINTR { continue }
                return outcome
            }
        }
        if let failure { throw StoreError(failure) }
    }

    public func forgetLostData() throws(StoreError) {
        guard flushes.hasLost else { return }
        // It may tell once more of what was lost, and of nothing else.
        _ = system.fdatasync(bufferedDescriptor)
        flushes.forget()
        try sync()
    }

    public func prefetch(_ range: ByteRange) throws(StoreError) {
        requireWithin(range)
        guard !isDirect, !range.isEmpty else { return }
        // Advice: what it answers does not matter.
        _ = posix_fadvise(bufferedDescriptor, off_t(range.offset), off_t(range.count), POSIX_FADV_WILLNEED)
    }

    // MARK: Unaligned requests

    /// Writes what does not suit direct I/O: whole blocks through a bounce buffer, blocks in part by reading
    /// them first, and the file's last partial block through the page cache.
    private func writeBounced(_ cursor: consuming GatherCursor, _ range: ByteRange) throws(StoreError) {
        let wholeBlocks = size.roundedDown(to: UInt64(alignment))
        let bounce = makeBounceBuffer(for: range)
        var cursor = cursor
        var position = range.offset
        while position < min(range.end, wholeBlocks) {
            let piece = nextPiece(from: position, to: min(range.end, wholeBlocks))
            let aligned = outward(piece)
            let isPartial = aligned != piece
            let space = UnsafeMutableRawBufferPointer(rebasing: bounce.bytes[..<Int(aligned.count)])
            ranges.lock(aligned, exclusive: isPartial)
            defer { ranges.unlock(aligned, exclusive: isPartial) }
            if isPartial { try readEdges(of: piece, aligned, space) }
            let skip = Int(piece.offset - aligned.offset)
            cursor.copyNext(
                to: UnsafeMutableRawBufferPointer(rebasing: space[skip..<skip + Int(piece.count)]))
            try writeWhole(descriptor, UnsafeRawBufferPointer(space), aligned.offset)
            position = piece.end
        }
        guard position < range.end else { return }
        let tail = UnsafeMutableRawBufferPointer(rebasing: bounce.bytes[..<Int(range.end - position)])
        cursor.copyNext(to: tail)
        let shared = pageCacheRange(ByteRange(offset: position, count: UInt64(tail.count)))
        ranges.lock(shared, exclusive: true)
        defer { ranges.unlock(shared, exclusive: true) }
        try writeWhole(bufferedDescriptor, UnsafeRawBufferPointer(tail), position)
    }

    /// Reads the first and the last block of `aligned` where `piece` covers them in part.
    private func readEdges(
        of piece: ByteRange, _ aligned: ByteRange, _ space: UnsafeMutableRawBufferPointer
    ) throws(StoreError) {
        if piece.offset != aligned.offset {
            try readWhole(
                descriptor, UnsafeMutableRawBufferPointer(rebasing: space[..<alignment]), aligned.offset)
        }
        if piece.end != aligned.end, aligned.count > UInt64(alignment) || piece.offset == aligned.offset {
            try readWhole(
                descriptor, UnsafeMutableRawBufferPointer(rebasing: space.suffix(alignment)),
                aligned.end - UInt64(alignment))
        }
    }

    /// What must be left alone while `range` is written through the page cache, which reads, changes and
    /// writes back whole pages.
    func pageCacheRange(_ range: ByteRange) -> ByteRange {
        let unit = max(AsyncIOLimits.page, UInt64(alignment))
        let start = range.offset.roundedDown(to: unit)
        return ByteRange(offset: start, count: range.end.roundedUp(to: unit) - start)
    }

    func isAligned(_ range: ByteRange) -> Bool { (range.offset | range.count) & UInt64(alignment - 1) == 0 }

    private func isAligned(_ buffer: UnsafeRawBufferPointer) -> Bool {
        buffer.count & (alignment - 1) == 0 && system.isAligned(buffer.baseAddress, alignment)
    }

    private func outward(_ range: ByteRange) -> ByteRange {
        let start = range.offset.roundedDown(to: UInt64(alignment))
        return ByteRange(offset: start, count: range.end.roundedUp(to: UInt64(alignment)) - start)
    }

    private func makeBounceBuffer(for range: ByteRange) -> AlignedBuffer {
        let wanted = min(Int(outward(range).count), AsyncIOLimits.bounceBuffer)
        return AlignedBuffer(count: wanted, alignment: alignment)
    }

    /// The next part of a request whose aligned surroundings fit a bounce buffer.
    private func nextPiece(from start: UInt64, to end: UInt64) -> ByteRange {
        let limit = start.roundedDown(to: UInt64(alignment)) + UInt64(AsyncIOLimits.bounceBuffer)
        return ByteRange(offset: start, count: min(end, limit) - start)
    }

    // MARK: Whole transfers

    func retrying(_ call: () -> Result<Int, Errno>) throws(StoreError) -> Int {
        while true {
            switch call() {
            case .success(let value): return value
            case .failure(let error) where error.code == EINTR: continue
            case .failure(let error): throw StoreError(error)
            }
        }
    }

    /// Reads until `needed` bytes (all unless said) are there. The direct descriptor may give less at the end
    /// of the file; what it gives before is a multiple of the alignment or is read again.
    private func readWhole(
        _ fd: Int32, _ buffer: UnsafeMutableRawBufferPointer, _ offset: UInt64, needed: Int? = nil
    ) throws(StoreError) {
        let needed = needed ?? buffer.count
        var fd = fd
        var done = 0
        while done < needed {
            let part = UnsafeMutableRawBufferPointer(
                rebasing: buffer[done...].prefix(AsyncIOLimits.transfer))
            let count = try retrying { system.pread(fd, part, offset + UInt64(done)) }
            // The file was cut by somebody else.
            guard count > 0 else { throw StoreError(.io, errno: ENODATA) }
            done += count
            if done < needed, done % alignment != 0 { fd = bufferedDescriptor }
        }
    }

    private func writeWhole(
        _ fd: Int32, _ buffer: UnsafeRawBufferPointer, _ offset: UInt64
    ) throws(StoreError) {
        var fd = fd
        var done = 0
        while done < buffer.count {
            let part = UnsafeRawBufferPointer(rebasing: buffer[done...].prefix(AsyncIOLimits.transfer))
            let count = try retrying { system.pwrite(fd, part, offset + UInt64(done)) }
            guard count > 0 else { throw StoreError(.io, errno: EIO) }
            done += count
            if done % alignment != 0 { fd = bufferedDescriptor }
        }
    }

    /// Writes all buffers, as many as the system takes at a time.
    private func writeVectors(
        _ fd: Int32, _ buffers: UnsafeBufferPointer<UnsafeRawBufferPointer>, _ offset: UInt64, durable: Bool
    ) throws(StoreError) {
        let capacity = min(buffers.count, AsyncIOLimits.vectors)
        let failure = withUnsafeTemporaryAllocation(of: iovec.self, capacity: capacity) { vectors in
            do throws(StoreError) {
                try writeVectors(fd, GatherCursor(buffers), vectors, offset, durable: durable)
                return nil as StoreError?
            } catch { return error }
        }
        if let failure { throw failure }
    }

    private func writeVectors(
        _ fd: Int32, _ cursor: consuming GatherCursor, _ vectors: UnsafeMutableBufferPointer<iovec>,
        _ offset: UInt64, durable: Bool
    ) throws(StoreError) {
        var cursor = cursor
        var fd = fd
        var done: UInt64 = 0
        var durableByCall = durable
        while true {
            let count = cursor.fill(vectors)
            if count == 0 { break }
            let batch = UnsafeBufferPointer(rebasing: vectors[..<count])
            let written: Int
            switch system.pwritev(fd, batch, offset + done, durableByCall) {
            case .success(let value): written = value
            case .failure(let error) where error.code == EINTR: continue
            case .failure(let error) where durableByCall && error.code == EOPNOTSUPP:
                durableByCall = false
                continue
            case .failure(let error):
                // Through the page cache, it may be what became of others' data that is told here, once.
                let failure = StoreError(error)
                if durableByCall, fd == bufferedDescriptor, failure.code == .io { flushes.lose(error) }
                throw failure
            }
            guard written > 0 else { throw StoreError(.io, errno: EIO) }
            cursor.advance(written)
            done += UInt64(written)
            // After a short direct write the rest may lie where direct I/O cannot begin.
            if done % UInt64(alignment) != 0 { fd = bufferedDescriptor }
        }
        if durable, !durableByCall { try sync() }
    }
}

/// A place in a list of buffers.
private struct GatherCursor: ~Copyable {
    private let buffers: UnsafeBufferPointer<UnsafeRawBufferPointer>
    private var index = 0
    private var offset = 0

    init(_ buffers: UnsafeBufferPointer<UnsafeRawBufferPointer>) { self.buffers = buffers }

    /// Describes what comes next to the system, as much as fits.
    func fill(_ vectors: UnsafeMutableBufferPointer<iovec>) -> Int {
        var count = 0
        var total = 0
        var skip = offset
        for buffer in buffers[index...] {
            guard count < vectors.count, total < AsyncIOLimits.transfer else { break }
            defer { skip = 0 }
            guard buffer.count > skip, let base = buffer.baseAddress else { continue }
            vectors[count] = iovec(
                iov_base: UnsafeMutableRawPointer(mutating: base + skip), iov_len: buffer.count - skip)
            total += buffer.count - skip
            count += 1
        }
        return count
    }

    mutating func advance(_ count: Int) {
        var rest = count
        while rest > 0 {
            let here = min(rest, buffers[index].count - offset)
            offset += here
            rest -= here
            if offset == buffers[index].count {
                index += 1
                offset = 0
            }
        }
    }

    /// Copies the next bytes, as many as fit `target`.
    mutating func copyNext(to target: UnsafeMutableRawBufferPointer) {
        var done = 0
        while done < target.count {
            let buffer = buffers[index]
            let here = min(target.count - done, buffer.count - offset)
            UnsafeMutableRawBufferPointer(rebasing: target[done..<done + here])
                .copyMemory(from: UnsafeRawBufferPointer(rebasing: buffer[offset..<offset + here]))
            done += here
            advance(here)
            if here == 0, offset == buffer.count {
                index += 1
                offset = 0
            }
        }
    }
}

extension StoreError {
    init(_ error: Errno) {
        switch error.code {
        case ENOSPC, EDQUOT, EFBIG: self.init(.noSpace, errno: error.code)
        case EROFS, EPERM: self.init(.readOnly, errno: error.code)
        case EOPNOTSUPP: self.init(.notSupported, errno: error.code)
        default: self.init(.io, errno: error.code)
        }
    }
}
