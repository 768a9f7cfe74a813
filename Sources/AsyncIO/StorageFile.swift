import Blocks
import Glibc
import Synchronization

public enum StorageAccess: Hashable, Sendable { case readOnly, readWrite }

/// How data are moved.
public enum StorageMode: Hashable, Sendable {
    /// Past the page cache (O_DIRECT) where the file system or device allows it, else through it.
    case direct
    /// Through the page cache.
    case pageCache
}

/// What other processes may do with the file meanwhile. The locks are advisory (flock); on a block device
/// `exclusive` also claims the device from the kernel, so that it is neither mounted nor part of an array.
public enum StorageLock: Hashable, Sendable { case none, shared, exclusive }

/// What becomes of a symbolic link at a path's end.
public enum StorageLinks: Hashable, Sendable {
    case followed
    /// Followed to a block device only: administrators name those by links (/dev/disk/by-id, /dev/mapper), and links to
    /// files are for others to plant.
    case toDevices
    case refused
}

/// What a path leads to, whatever its name: equal for two paths exactly if they are the same file or device.
public struct StorageIdentity: Hashable, Sendable {
    /// The device number: of the device itself, or of the one the file lies on.
    public let device: UInt64
    /// The file's inode number; 0 for a block device.
    public let inode: UInt64
    public let isBlockDevice: Bool

    init(_ status: stat) {
        isBlockDevice = status.st_mode & S_IFMT == S_IFBLK
        device = isBlockDevice ? UInt64(status.st_rdev) : UInt64(status.st_dev)
        inode = isBlockDevice ? 0 : UInt64(status.st_ino)
    }

    /// Asks without opening.
    public static func of(path: String) throws(StorageError) -> StorageIdentity {
        var status = stat()
        guard stat(path, &status) == 0 else {
            throw StorageError(operation: "look at", path: path, Errno(errno))
        }
        return StorageIdentity(status)
    }
}

/// A regular file or block device as a ``BlockStore``.
///
/// In direct mode, requests whose offset, length or memory do not suit the device go through bounce buffers;
/// blocks that are covered in part are read, changed and written, kept apart from all other writes of
/// this store to the same block. (Another process that writes a different part of the same block at that
/// moment is not seen: that is what locks are for.) The last bytes of a file whose size is not a multiple of
/// ``alignment`` are written through the page cache.
///
/// After a flush has failed, all that follow fail: what the system could not write it forgets, and a later flush
/// that succeeded would hide that. Open the file again to go on.
public final class StorageFile: GrowableStore, RenewableStore {
    public let path: String
    public var size: UInt64 { length.load(ordering: .relaxed) }
    public let access: StorageAccess
    public let identity: StorageIdentity
    /// The user whose file or device it is, and the permission bits, as they were when it was opened.
    public let owner: UInt32
    public let permissions: UInt32
    public let capabilities: StoreCapabilities

    /// Whether data go past the page cache. False in direct mode where that was refused: ``directRefusal``.
    public var isDirect: Bool { directRefusal == nil && mode == .direct }
    /// In direct mode, why the page cache is used after all.
    public let directRefusal: String?
    public var isBlockDevice: Bool { identity.isBlockDevice }

    /// The descriptor that data go through: past the page cache if ``isDirect``.
    public let descriptor: Int32
    /// Bytes, a power of two: offsets, lengths and memory addresses of direct I/O are multiples. 1 through
    /// the page cache.
    public let alignment: Int

    /// Always through the page cache; the same as ``descriptor`` where there is no direct I/O.
    package let bufferedDescriptor: Int32
    let mode: StorageMode
    /// What copy engines moved of this file.
    public let copied = CopiedBytes()
    let ranges = RangeLock()
    let flushes = FlushQueue()
    let system: SystemCalls
    let length: Atomic<UInt64>
    private let isClosed = Atomic(false)

    /// Opens what `path` leads to.
    /// - Parameters:
    ///   - links: another one than is followed is refused (``StorageError/Kind/notPermitted``).
    ///   - lock: taken at once or refused (``StorageError/Kind/locked``), held until ``close()``.
    ///   - minimumSize: bytes; less is refused (``StorageError/Kind/tooSmall``).
    public static func open(
        _ path: String, access: StorageAccess, mode: StorageMode, lock: StorageLock,
        links: StorageLinks = .followed, minimumSize: UInt64? = nil
    ) throws(StorageError) -> StorageFile {
        try StorageFile(
            path, access: access, mode: mode, lock: lock, links: links, minimumSize: minimumSize,
            system: .live)
    }

    /// Makes a regular file of `size` bytes that read as zeros. At return its name and size are on stable storage.
    /// - Parameter preallocate: take the space now, so that no write fails later for want of it.
    /// - Throws: ``StorageError/Kind/exists`` when there is something of that name. Leaves nothing behind.
    public static func create(_ path: String, size: UInt64, preallocate: Bool) throws(StorageError) {
        try create(path, size: size, preallocate: preallocate, system: .live)
    }

    static func create(
        _ path: String, size: UInt64, preallocate: Bool, system: SystemCalls
    ) throws(StorageError) {
        let operation = "create"
        let fd: Int32
        switch OpenCalls.open(path, flags: O_RDWR | O_CREAT | O_EXCL) {
        case .success(let opened): fd = opened
        case .failure(let error): throw StorageError(operation: operation, path: path, error)
        }
        defer { _ = Glibc.close(fd) }
        var failure: Errno?
        if size > UInt64(Int64.max) || ftruncate(fd, off_t(size)) != 0 {
            failure = Errno(size > UInt64(Int64.max) ? EFBIG : errno)
        } else if preallocate, size > 0 {
            let code = posix_fallocate(fd, 0, off_t(size))
            if code != 0 { failure = Errno(code) }
        }
        if failure == nil { failure = makeDurable(fd, of: path, system) }
        if let failure {
            unlink(path)
            throw StorageError(operation: operation, path: path, failure)
        }
    }

    /// A file's own flush need not save its name: that is in its directory.
    private static func makeDurable(_ fd: Int32, of path: String, _ system: SystemCalls) -> Errno? {
        if case .failure(let error) = system.fsync(fd) { return error }
        let end = path.lastIndex(of: "/")
        let directory = end.map { String(path[...$0]) } ?? "."
        switch OpenCalls.open(directory, flags: O_RDONLY | O_DIRECTORY) {
        case .success(let opened):
            defer { _ = Glibc.close(opened) }
            guard case .failure(let error) = system.fsync(opened) else { return nil }
            // Some file systems have no such thing.
            return error.code == EINVAL ? nil : error
        // A directory in which files may be made, but which must not be read: the file's flush has to do.
        case .failure(let error) where error.code == EACCES: return nil
        case .failure(let error): return error
        }
    }

    package init(
        _ path: String, access: StorageAccess, mode: StorageMode, lock: StorageLock,
        links: StorageLinks = .followed, minimumSize: UInt64? = nil, system: SystemCalls
    ) throws(StorageError) {
        let opening = try OpenedFile(path, access: access, lock: lock, links: links)
        let size: UInt64
        do throws(StorageError) {
            size = try opening.size()
            if let minimumSize, size < minimumSize {
                throw StorageError(
                    .tooSmall, operation: "use", path: path,
                    reason: "it has \(size) bytes, \(minimumSize) are needed")
            }
        } catch {
            opening.close()
            throw error
        }
        let direct =
            mode == .direct
            ? DirectDescriptor.open(path, access: access, identity: opening.identity) : nil
        length = Atomic(size)
        self.path = path
        self.access = access
        self.mode = mode
        self.system = system
        identity = opening.identity
        owner = opening.status.st_uid
        permissions = opening.status.st_mode & 0o7777
        bufferedDescriptor = opening.descriptor
        switch direct {
        case .usable(let fd, let alignment):
            descriptor = fd
            self.alignment = alignment
            directRefusal = nil
        case .refused(let why):
            descriptor = opening.descriptor
            alignment = 1
            directRefusal = why
        case nil:
            descriptor = opening.descriptor
            alignment = 1
            directRefusal = nil
        }
        var capabilities: StoreCapabilities = access == .readWrite ? [.writable, .trims, .zeroesFast] : []
        if !opening.identity.isBlockDevice { capabilities.insert(.knowsAllocation) }
        if access == .readWrite, Self.canUnmap(opening.descriptor, identity, size: size, system) {
            capabilities.insert(.unmaps)
        }
        self.capabilities = capabilities
    }

    deinit { close() }

    /// Gives back descriptors and lock. Nothing may be in flight; later operations throw
    /// ``StoreError/Code/gone``. Harmless when done twice.
    public func close() {
        guard !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        if descriptor != bufferedDescriptor { _ = Glibc.close(descriptor) }
        _ = Glibc.close(bufferedDescriptor)
    }

    func requireOpen() throws(StoreError) {
        if isClosed.load(ordering: .relaxed) { throw StoreError(.gone) }
    }

    func requireWritable() throws(StoreError) {
        try requireOpen()
        guard access == .readWrite else { throw StoreError(.readOnly) }
    }
}

/// An opened, locked file or device, while it is being looked at.
private struct OpenedFile {
    let path: String
    let descriptor: Int32
    let identity: StorageIdentity
    let status: stat

    init(
        _ path: String, access: StorageAccess, lock: StorageLock, links: StorageLinks
    ) throws(StorageError) {
        self.path = path
        // Looked at before it is opened, because opening some things does something (a tape, a FIFO); and
        // afterwards, because the name may lead elsewhere by then.
        var before = stat()
        guard stat(path, &before) == 0 else {
            throw StorageError(operation: "open", path: path, Errno(errno))
        }
        try Self.requireSuitable(before, path)
        var flags = access == .readOnly ? O_RDONLY : O_RDWR
        flags |= O_NONBLOCK | O_NOCTTY
        let isDevice = before.st_mode & S_IFMT == S_IFBLK
        if lock == .exclusive, isDevice { flags |= O_EXCL }
        if links == .refused || links == .toDevices && !isDevice { flags |= O_NOFOLLOW }
        switch OpenCalls.open(path, flags: flags) {
        case .success(let fd): descriptor = fd
        case .failure(let error) where error.code == EBUSY:
            throw StorageError(
                .locked, operation: "open", path: path, errno: error.code,
                reason: "the device is in use: mounted, part of an array, or served by another process")
        case .failure(let error) where error.code == ELOOP && flags & O_NOFOLLOW != 0:
            throw StorageError(
                .notPermitted, operation: "open", path: path, errno: error.code,
                reason: "it is a symbolic link, which is not followed there; name the file itself")
        case .failure(let error): throw StorageError(operation: "open", path: path, error)
        }
        var status = stat()
        do throws(StorageError) {
            guard fstat(descriptor, &status) == 0 else {
                throw StorageError(operation: "look at", path: path, Errno(errno))
            }
            try Self.requireSuitable(status, path)
            guard links != .toDevices || !isDevice || status.st_mode & S_IFMT == S_IFBLK else {
                throw StorageError(
                    .notPermitted, operation: "open", path: path, reason: "the path leads elsewhere by now")
            }
            if access == .readWrite, status.st_mode & S_IFMT == S_IFBLK,
                OpenCalls.deviceIsReadOnly(descriptor)
            {
                throw StorageError(operation: "open", path: path, Errno(EROFS))
            }
            try Self.take(lock, descriptor, path)
        } catch {
            _ = Glibc.close(descriptor)
            throw error
        }
        self.status = status
        identity = StorageIdentity(status)
    }

    private static func requireSuitable(_ status: stat, _ path: String) throws(StorageError) {
        let what =
            switch status.st_mode & S_IFMT {
            case S_IFREG, S_IFBLK: nil as String?
            case S_IFDIR: "a directory"
            case S_IFIFO: "a FIFO"
            case S_IFSOCK: "a socket"
            case S_IFCHR: "a character device"
            default: "something else"
            }
        if let what {
            throw StorageError(
                .unsuitable, operation: "open", path: path,
                reason: "it is \(what), neither a regular file nor a block device")
        }
    }

    private static func take(
        _ lock: StorageLock, _ descriptor: Int32, _ path: String
    ) throws(StorageError) {
        guard lock != .none else { return }
        while flock(descriptor, (lock == .shared ? LOCK_SH : LOCK_EX) | LOCK_NB) != 0 {
            let code = errno
            if code == EINTR { continue }
            guard code == EWOULDBLOCK else {
                throw StorageError(operation: "lock", path: path, Errno(code))
            }
            throw StorageError(
                .locked, operation: "lock", path: path, errno: code,
                reason: "another process holds it: it is already served by another host or bridge")
        }
    }

    func size() throws(StorageError) -> UInt64 {
        // Asked again: it may have grown or shrunk before the lock was taken.
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            throw StorageError(operation: "look at", path: path, Errno(errno))
        }
        guard identity.isBlockDevice else { return UInt64(status.st_size) }
        switch OpenCalls.deviceSize(descriptor) {
        case .success(let size): return size
        case .failure(let error): throw StorageError(operation: "measure", path: path, error)
        }
    }

    func close() { _ = Glibc.close(descriptor) }
}

/// The second descriptor of a file in direct mode.
private enum DirectDescriptor {
    case usable(Int32, alignment: Int)
    case refused(String)

    static func open(_ path: String, access: StorageAccess, identity: StorageIdentity) -> Self {
        let flags = (access == .readOnly ? O_RDONLY : O_RDWR) | O_NONBLOCK | O_NOCTTY
        let fd: Int32
        switch OpenCalls.open(path, flags: flags | OpenCalls.oDirect) {
        case .success(let opened): fd = opened
        case .failure(let error): return .refused("the file system refuses O_DIRECT: \(error)")
        }
        var status = stat()
        guard fstat(fd, &status) == 0, StorageIdentity(status) == identity else {
            _ = Glibc.close(fd)
            return .refused("the path leads elsewhere by now")
        }
        guard let alignment = findAlignment(fd, isBlockDevice: identity.isBlockDevice) else {
            _ = Glibc.close(fd)
            return .refused("no alignment was found at which direct I/O works")
        }
        return .usable(fd, alignment: alignment)
    }

    /// What the system states; else what a read shows to work, from 4096 up: a smaller unit might be refused
    /// elsewhere in the file.
    private static func findAlignment(_ fd: Int32, isBlockDevice: Bool) -> Int? {
        var candidate = 4096
        if let stated = OpenCalls.statedAlignment(fd) {
            candidate = max(stated, 512)
            if stated == 0 { return nil }
        } else if isBlockDevice, let size = OpenCalls.deviceBlockSize(fd) {
            candidate = max(size, 512)
        }
        guard candidate & (candidate - 1) == 0 else { return nil }
        while candidate <= AsyncIOLimits.greatestAlignment {
            let buffer = AlignedBuffer(count: candidate, alignment: candidate)
            let count = pread(fd, buffer.bytes.baseAddress, candidate, 0)
            // Any other error is not about alignment, and whoever reads that place will hear of it.
            if count >= 0 || errno != EINVAL { return candidate }
            candidate *= 2
        }
        return nil
    }
}
