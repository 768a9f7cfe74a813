import Blocks
import Glibc

/// Zeroing, giving back space, and knowing where there is any.
extension StorageFile {
    public func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        requireWithin(range)
        try requireWritable()
        if !range.isEmpty {
            // In units of the page cache: the system zeroes parts of a block through it.
            let kept = pageCacheRange(range)
            let exclusive = kept != range
            if isDirect { ranges.lock(kept, exclusive: exclusive) }
            defer { if isDirect { ranges.unlock(kept, exclusive: exclusive) } }
            let isDone =
                isBlockDevice ? try zeroDevice(range, options) : try zeroFile(range, options)
            if !isDone {
                if options.contains(.onlyIfFast) { throw StoreError(.notSupported) }
                try writeZeros(range)
            }
        }
        if options.contains(.durable) { try sync() }
    }

    /// Whether space that is given back is really gone, and reads as zeros. A file is asked to give back what lies
    /// behind its end, which changes nothing. A device is not asked, because that would zero something: its driver
    /// states it.
    static func canUnmap(
        _ descriptor: Int32, _ identity: StorageIdentity, size: UInt64, _ system: SystemCalls
    ) -> Bool {
        guard !identity.isBlockDevice else {
            return DeviceAttributes.discardsToZeros(device: identity.device)
        }
        let page = AsyncIOLimits.page
        guard size <= UInt64(Int64.max) - 2 * page else { return false }
        while true {
            switch system.fallocate(descriptor, .punchHole, size.roundedUp(to: page), page) {
            case .success: return true
            case .failure(let error) where error.code == EINTR: continue
            // Whatever it is: then it is not known that it can.
            case .failure: return false
            }
        }
    }

    /// The same for something that is not open: what ``StoreCapabilities/unmaps`` would say if it were opened for
    /// writing. A file is opened for that, and not changed.
    public static func canUnmap(path: String) throws(StorageError) -> Bool {
        let identity = try StorageIdentity.of(path: path)
        if identity.isBlockDevice { return DeviceAttributes.discardsToZeros(device: identity.device) }
        let file = try StorageFile.open(path, access: .readWrite, mode: .pageCache, lock: .none)
        defer { file.close() }
        return file.capabilities.contains(.unmaps)
    }

    /// Makes a file longer; its new bytes are a hole. A device is measured anew: its owner makes it longer.
    ///
    /// It is done on the descriptor that is open, which has the lock and leads to the file that was found suitable:
    /// whatever the path leads to by now. Direct writes to a file's last partial block assume that it stays the
    /// last, so in direct mode it is refused.
    public func grow(to size: UInt64) throws(StoreError) {
        try requireWritable()
        guard size > self.size else { return }
        guard size <= UInt64(Int64.max) else { throw StoreError(.noSpace, errno: EFBIG) }
        if isBlockDevice {
            switch OpenCalls.deviceSize(bufferedDescriptor) {
            case .success(let found): length.max(found, ordering: .relaxed)
            case .failure(let error): throw StoreError(error)
            }
            guard self.size >= size else { throw StoreError(.noSpace, errno: ENOSPC) }
            return
        }
        guard !isDirect else { throw StoreError(.notSupported) }
        // Never shorter: somebody else may have made it longer.
        if try fileSize() < size {
            _ = try retrying { system.truncate(bufferedDescriptor, size) }
            if case .failure(let error) = system.fsync(bufferedDescriptor) {
                flushes.lose(error)
                throw StoreError(error)
            }
        }
        length.max(size, ordering: .relaxed)
    }

    private func fileSize() throws(StoreError) -> UInt64 {
        var status = stat()
        guard fstat(bufferedDescriptor, &status) == 0 else { throw StoreError(Errno(errno)) }
        return UInt64(status.st_size)
    }

    /// Only whole pages are given back. A device's discard would be allowed to leave anything at all to be
    /// read, so devices are asked for zeros with unmapping instead.
    public func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
        requireWithin(range)
        try requireWritable()
        let start = range.offset.roundedUp(to: AsyncIOLimits.page)
        let end = range.end == size ? size : range.end.roundedDown(to: AsyncIOLimits.page)
        if start < end {
            let inner = ByteRange(offset: start, count: end - start)
            if isDirect { ranges.lock(inner, exclusive: false) }
            defer { if isDirect { ranges.unlock(inner, exclusive: false) } }
            _ = try allocate(.punchHole, inner)
        }
        if durable { try sync() }
    }

    public func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        requireWithin(range)
        try requireOpen()
        precondition(limit > 0 && !range.isEmpty)
        guard !isBlockDevice else {
            return [AllocationExtent(count: range.count, isHole: false, readsAsZeros: false)]
        }
        var extents: [AllocationExtent] = []
        var position = range.offset
        while position < range.end, extents.count < limit {
            let data = try seek(position, .data) ?? range.end
            if data > position {
                let end = min(data, range.end)
                extents.append(AllocationExtent(count: end - position, isHole: true, readsAsZeros: true))
                position = end
                continue
            }
            let end = min(try seek(position, .hole) ?? range.end, range.end)
            // A file that changes meanwhile may answer anything.
            guard end > position else {
                extents.append(
                    AllocationExtent(count: range.end - position, isHole: false, readsAsZeros: false))
                break
            }
            extents.append(AllocationExtent(count: end - position, isHole: false, readsAsZeros: false))
            position = end
        }
        return extents
    }

    /// Nil when there is nothing of that kind up to the end of the file.
    private func seek(_ offset: UInt64, _ target: SeekTarget) throws(StoreError) -> UInt64? {
        switch system.seek(bufferedDescriptor, offset, target) {
        case .success(let value): return UInt64(value)
        case .failure(let error) where error.code == ENXIO: return nil
        // A file system that cannot tell: everything is data.
        case .failure(let error) where error.code == EINVAL || error.code == EOPNOTSUPP:
            return target == .data ? offset : nil
        case .failure(let error): throw StoreError(error)
        }
    }

    // MARK: Ways to make zeros

    private func zeroFile(_ range: ByteRange, _ options: ZeroOptions) throws(StoreError) -> Bool {
        if !options.contains(.keepAllocated), try allocate(.punchHole, range) { return true }
        return try allocate(.zeroRange, range)
    }

    /// On devices, punching is zeroing by the device itself or not at all; BLKZEROOUT writes if it must.
    private func zeroDevice(_ range: ByteRange, _ options: ZeroOptions) throws(StoreError) -> Bool {
        let unit = UInt64(max(OpenCalls.deviceBlockSize(bufferedDescriptor) ?? 4096, 512))
        guard (range.offset | range.count) & (unit - 1) == 0 else { return false }
        if !options.contains(.keepAllocated), try allocate(.punchHole, range) { return true }
        if options.contains(.onlyIfFast) { return false }
        while true {
            switch system.deviceRange(bufferedDescriptor, .zeroOut, range.offset, range.count) {
            case .success: return true
            case .failure(let error) where error.code == EINTR: continue
            case .failure(let error) where error.isRefusal: return false
            case .failure(let error): throw StoreError(error)
            }
        }
    }

    /// - Returns: false when the file system or device cannot.
    private func allocate(_ mode: FallocateMode, _ range: ByteRange) throws(StoreError) -> Bool {
        while true {
            switch system.fallocate(bufferedDescriptor, mode, range.offset, range.count) {
            case .success: return true
            case .failure(let error) where error.code == EINTR: continue
            case .failure(let error) where error.isRefusal: return false
            case .failure(let error): throw StoreError(error)
            }
        }
    }

    /// Writes them, through the page cache: the caller holds the pages' ranges.
    private func writeZeros(_ range: ByteRange) throws(StoreError) {
        let zeros = AlignedBuffer(
            count: Int(min(range.count, UInt64(AsyncIOLimits.bounceBuffer))), alignment: alignment)
        zeros.bytes.initializeMemory(as: UInt8.self, repeating: 0)
        var position = range.offset
        while position < range.end {
            let count = Int(min(UInt64(zeros.bytes.count), range.end - position))
            let part = UnsafeRawBufferPointer(rebasing: zeros.bytes[..<count])
            let useDirect = isAligned(ByteRange(offset: position, count: UInt64(count)))
            let fd = useDirect ? descriptor : bufferedDescriptor
            let written = try retrying { system.pwrite(fd, part, position) }
            guard written > 0 else { throw StoreError(.io, errno: EIO) }
            position += UInt64(written)
        }
    }
}

extension Errno {
    /// The operation as such cannot be done here, whereas others can.
    fileprivate var isRefusal: Bool {
        code == EOPNOTSUPP || code == ENOSYS || code == EINVAL || code == ENOTTY || code == EPERM
            || code == ENODEV
    }
}
