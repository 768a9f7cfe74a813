import Blocks
import Glibc

/// Where a backup goes, record by record, in order: a new file, a device, a pipe. Sums up what passes.
public final class BackupOutput {
    private enum Place {
        /// Its name; something there that is to be replaced.
        case file(FileDraft, isReplacing: Bool)
        case device
        case stream
    }

    /// For people.
    public let name: String
    public let recordBytes: Int
    private let descriptor: Int32
    private let ownsDescriptor: Bool
    private let stream: StreamOutput
    /// Asked again and again; throws to stop.
    private let check: () throws(CopyError) -> Void
    private let place: Place
    private let record: ZeroedMemory
    private var filled = 0
    private var checksums = StreamChecksums()
    private var isSummed = true
    private var isOpen = true
    /// Bytes taken.
    private(set) var position: UInt64 = 0
    /// Why nothing more is taken.
    private(set) var failure: CopyError?

    /// - Parameters:
    ///   - recordBytes: within ``MediaLimits/recordBytes``, a multiple of 512.
    ///   - force: a file or block device that is there is overwritten.
    ///   - copy: what must not be overwritten.
    ///   - check: called before each write, and while a pipe's reader is waited for; throws to stop.
    public init(
        _ path: String, recordBytes: Int, force: Bool, backingUp copy: PhysicalCopy,
        check: @escaping () throws(CopyError) -> Void
    ) throws(CopyError) {
        self.check = check
        name = path
        let action = "write the backup \(path)"
        self.recordBytes = recordBytes
        record = ZeroedMemory(count: recordBytes)
        ownsDescriptor = true
        var information = stat()
        guard stat(path, &information) == 0 else {
            guard errno == ENOENT else { throw .system(errno, action, otherwise: .cannotCreate) }
            (descriptor, place) = try Self.draft(path, isReplacing: false, action)
            stream = StreamOutput(descriptor)
            return
        }
        let exists = CopyError(
            .cannotCreate, action, "it exists", advice: "choose another place, or overwrite it with --force")
        if case .path(let data) = copy.dataLocation {
            var other = stat()
            if stat(data, &other) == 0, Self.isSame(other, information) {
                throw CopyError(.cannotCreate, action, "it is the copy's own data")
            }
        }
        switch information.st_mode & S_IFMT {
        case S_IFREG:
            guard force else { throw exists }
            (descriptor, place) = try Self.draft(path, isReplacing: true, action)
        case S_IFBLK:
            guard force else { throw exists }
            (descriptor, place) = (try Self.open(path, O_WRONLY | O_EXCL, action), .device)
        case S_IFCHR:
            (descriptor, place) = (try Self.open(path, O_WRONLY, action), .device)
        case S_IFIFO:
            (descriptor, place) = (try Self.openPipe(path, action, check), .stream)
        default:
            throw CopyError(.cannotCreate, action, "it is neither a file nor a device")
        }
        stream = StreamOutput(descriptor)
    }

    /// Standard output, or whatever else is open already.
    public init(
        descriptor: Int32, name: String, recordBytes: Int, check: @escaping () throws(CopyError) -> Void
    ) {
        self.name = name
        self.check = check
        stream = StreamOutput(descriptor)
        self.recordBytes = recordBytes
        self.descriptor = descriptor
        record = ZeroedMemory(count: recordBytes)
        ownsDescriptor = false
        place = .stream
    }

    deinit { if ownsDescriptor { close(descriptor) } }

    private static func draft(
        _ path: String, isReplacing: Bool, _ action: String
    ) throws(CopyError) -> (Int32, Place) {
        let draft = try FileDraft(for: path)
        let descriptor = try open(draft.path, O_WRONLY, action)
        return (descriptor, .file(draft, isReplacing: isReplacing))
    }

    private static func open(_ path: String, _ flags: Int32, _ action: String) throws(CopyError) -> Int32 {
        do throws(CopyError) { return try Files().open(path, flags, action) } catch {
            guard errno == EBUSY else { throw error }
            throw CopyError(.cannotCreate, action, "it is in use", advice: "unmount it, or name another")
        }
    }

    /// Opens a named pipe when somebody reads it.
    private static func openPipe(
        _ path: String, _ action: String, _ check: () throws(CopyError) -> Void
    ) throws(CopyError) -> Int32 {
        while true {
            let descriptor = Glibc.open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC)
            if descriptor >= 0 { return descriptor }
            guard errno == ENXIO || errno == EINTR else { throw .system(errno, action) }
            try check()
            usleep(100_000)
        }
    }

    private static func isSame(_ a: stat, _ b: stat) -> Bool {
        guard a.st_mode & S_IFMT == b.st_mode & S_IFMT else { return false }
        if a.st_mode & S_IFMT == S_IFBLK { return a.st_rdev == b.st_rdev }
        return a.st_dev == b.st_dev && a.st_ino == b.st_ino
    }

    /// Whether what was there, if anything, is overwritten in part when it ends here.
    public var isHalfWritten: Bool {
        if case .file = place { return false }
        return position > 0
    }

    /// - Precondition: nothing was taken yet.
    func sum(bySlicesOf size: UInt64) {
        precondition(position == 0)
        checksums.sliceSize = size
    }

    /// Takes the next bytes.
    /// - Returns: false when that failed, now or before; ``failure`` says why. False, too, after ``takeNothingMore()``.
    func take(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard failure == nil, isOpen else { return false }
        if isSummed { checksums.update(bytes) }
        position += UInt64(bytes.count)
        var rest = bytes
        do throws(CopyError) {
            while !rest.isEmpty {
                if filled == 0, rest.count >= recordBytes {
                    try writeRecord(UnsafeRawBufferPointer(rebasing: rest[..<recordBytes]))
                    rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(recordBytes))
                    continue
                }
                let part = UnsafeRawBufferPointer(rebasing: rest.prefix(recordBytes - filled))
                UnsafeMutableRawBufferPointer(rebasing: record.buffer[filled..<filled + part.count])
                    .copyMemory(from: part)
                filled += part.count
                rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(part.count))
                if filled == recordBytes { try writeRecord() }
            }
        } catch {
            failure = error
            return false
        }
        return true
    }

    /// Whatever comes now is none of the backup's.
    func takeNothingMore() { isOpen = false }

    private func writeRecord() throws(CopyError) {
        try writeRecord(UnsafeRawBufferPointer(record.buffer))
        filled = 0
    }

    private func writeRecord(_ bytes: UnsafeRawBufferPointer) throws(CopyError) {
        let number = try stream.write(bytes, check: check)
        guard number == 0 else { throw .system(number, "write the backup \(name)") }
    }

    /// What has been taken sums to this; what comes is not summed up.
    func endSum() -> SliceChecksums {
        isSummed = false
        return checksums.finish()
    }

    /// The last record is filled up with zeros, everything flushed; a file gets its name.
    func finish() throws(CopyError) {
        if let failure { throw failure }
        if filled > 0 {
            let rest = UnsafeMutableRawBufferPointer(rebasing: record.buffer[filled...])
            rest.initializeMemory(as: UInt8.self, repeating: 0)
            position += UInt64(rest.count)
            try writeRecord()
        }
        let action = "write the backup \(name)"
        switch place {
        case .stream: return
        case .device:
            // A tape has nothing to flush, and says so.
            guard fsync(descriptor) == 0 || errno == EINVAL || errno == ENOTSUP else {
                throw .system(errno, action)
            }
        case .file(let draft, let isReplacing):
            guard fsync(descriptor) == 0 else { throw .system(errno, action) }
            try draft.commit(replacing: isReplacing)
        }
    }
}
