import Blocks
import Glibc

/// What making, opening and changing a copy does with files and directories, each failure told in words. Members of a
/// directory are opened relative to it and links in their place are not followed: who can write into a copy's
/// directory shall not lead us out of it.
struct Files: Sendable {
    /// A directory's descriptor, or ``FileSystemCalls/noDirectory`` with an absolute path.
    typealias Directory = Int32

    var calls = FileSystemCalls()

    init() {}
    init(_ calls: FileSystemCalls) { self.calls = calls }

    /// `open(2)`, close-on-exec, continued after signals.
    func open(
        _ path: String, in directory: Directory = FileSystemCalls.noDirectory, _ flags: Int32,
        mode: mode_t = 0o644, _ action: String
    ) throws(CopyError) -> Int32 {
        while true {
            switch calls.openat(directory, path, flags, mode) {
            case .success(let descriptor): return descriptor
            case .failure(Errno(EINTR)): continue
            case .failure(Errno(ELOOP)) where flags & O_NOFOLLOW != 0:
                throw CopyError(.damaged, action, "it is a symbolic link, and those are not followed there")
            case .failure(let error): throw .system(error.code, action)
            }
        }
    }

    /// Opens a regular file; a link at the path's end is not followed, and what is no regular file is not waited for.
    func openRegular(
        _ path: String, in directory: Directory = FileSystemCalls.noDirectory, _ flags: Int32,
        _ action: String
    ) throws(CopyError) -> (descriptor: Int32, size: UInt64) {
        let descriptor = try open(path, in: directory, flags | O_NOFOLLOW | O_NONBLOCK, action)
        do throws(CopyError) {
            let status = try status(of: descriptor, action)
            guard status.st_mode & S_IFMT == S_IFREG else {
                throw CopyError(.damaged, action, "it is not a regular file")
            }
            return (descriptor, UInt64(status.st_size))
        } catch {
            calls.close(descriptor)
            throw error
        }
    }

    func status(of descriptor: Int32, _ action: String) throws(CopyError) -> stat {
        do throws(Errno) { return try calls.fstat(descriptor).get() } catch {
            throw .system(error.code, action)
        }
    }

    /// Makes what was written to the descriptor's file, or done in its directory, durable.
    func synchronize(_ descriptor: Int32, _ action: String) throws(CopyError) {
        do throws(Errno) { try calls.fsync(descriptor).get() } catch { throw .system(error.code, action) }
    }

    /// Cuts or lengthens a file.
    func truncate(_ descriptor: Int32, to size: UInt64, _ action: String) throws(CopyError) {
        while true {
            switch calls.ftruncate(descriptor, size) {
            case .success: return
            case .failure(Errno(EINTR)): continue
            case .failure(let error): throw .system(error.code, action)
            }
        }
    }

    /// Makes what was done in a directory durable.
    func synchronizeDirectory(_ path: String) throws(CopyError) {
        let action = "flush \(path)"
        let descriptor = try open(path, O_RDONLY | O_DIRECTORY, action)
        defer { calls.close(descriptor) }
        try synchronize(descriptor, action)
    }

    /// Makes a regular file's bytes durable.
    func synchronizeFile(
        _ path: String, in directory: Directory = FileSystemCalls.noDirectory
    ) throws(CopyError) {
        let action = "flush \(path)"
        let descriptor = try openRegular(path, in: directory, O_RDONLY, action).descriptor
        defer { calls.close(descriptor) }
        try synchronize(descriptor, action)
    }

    /// Writes a file under a temporary name beside it, flushes it, renames it to `name`, flushes the directory: the
    /// name holds the old bytes or the new ones, whatever happens.
    func replace(
        _ name: String, in directory: Directory, with bytes: [UInt8], _ action: String
    ) throws(CopyError) {
        let temporary = Self.temporaryName(of: name)
        // What a dead process left, or somebody put there, is removed rather than opened.
        try remove(temporary, in: directory, action)
        let descriptor = try open(
            temporary, in: directory, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, action)
        do throws(CopyError) {
            defer { calls.close(descriptor) }
            try write(bytes, to: descriptor, action)
            try synchronize(descriptor, action)
        } catch {
            _ = calls.unlinkat(directory, temporary, 0)
            throw error
        }
        do throws(Errno) { try calls.renameat(directory, temporary, name, 0).get() } catch {
            _ = calls.unlinkat(directory, temporary, 0)
            throw .system(error.code, action)
        }
        try synchronize(directory, action)
    }

    /// The name under which ``replace(_:in:with:_:)`` writes.
    static func temporaryName(of name: String) -> String { ".\(name).new" }

    private func write(
        _ bytes: [UInt8], to descriptor: Int32, _ action: String
    ) throws(CopyError) {
        var written = 0
        while written < bytes.count {
            let result = bytes[written...].withUnsafeBytes {
                calls.pwrite(descriptor, $0, UInt64(written))
            }
            switch result {
            case .success(let count) where count > 0: written += count
            case .success: throw .system(EIO, action)
            case .failure(Errno(EINTR)): continue
            case .failure(let error): throw .system(error.code, action)
            }
        }
    }

    /// Reads into all of `buffer`, or up to the end of the file.
    func read(
        _ descriptor: Int32, at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer, _ action: String
    ) throws(CopyError) -> Int {
        var filled = 0
        while filled < buffer.count {
            let rest = UnsafeMutableRawBufferPointer(rebasing: buffer[filled...])
            switch calls.pread(descriptor, rest, offset + UInt64(filled)) {
            case .success(0): return filled
            case .success(let count): filled += count
            case .failure(Errno(EINTR)): continue
            case .failure(let error): throw .system(error.code, action)
            }
        }
        return filled
    }

    /// Reads a whole regular file of at most `limit` bytes.
    func read(
        _ path: String, in directory: Directory = FileSystemCalls.noDirectory, limit: Int, _ action: String
    ) throws(CopyError) -> [UInt8] {
        let (descriptor, size) = try openRegular(path, in: directory, O_RDONLY, action)
        defer { calls.close(descriptor) }
        guard size <= limit else {
            throw CopyError(.damaged, action, "it is longer than \(limit) bytes")
        }
        var bytes = [UInt8](repeating: 0, count: Int(size))
        let count = try bytes.withUnsafeMutableBufferPointer { (buffer) throws(CopyError) in
            try read(descriptor, at: 0, into: UnsafeMutableRawBufferPointer(buffer), action)
        }
        return Array(bytes[..<count])
    }

    /// Reads a whole regular file of any length, part after part.
    /// - Parameter buffer: what the parts are read into.
    func forEachPart(
        of path: String, in directory: Directory = FileSystemCalls.noDirectory,
        _ buffer: UnsafeMutableRawBufferPointer, _ body: (UnsafeRawBufferPointer) throws(CopyError) -> Void
    ) throws(CopyError) {
        let action = "read \(path)"
        let descriptor = try openRegular(path, in: directory, O_RDONLY, action).descriptor
        defer { calls.close(descriptor) }
        var offset: UInt64 = 0
        while true {
            let count = try read(descriptor, at: offset, into: buffer, action)
            if count == 0 { return }
            offset += UInt64(count)
            try body(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
        }
    }

    /// What is at `path`, links not followed; nil when nothing is.
    func kind(
        of path: String, in directory: Directory = FileSystemCalls.noDirectory, _ action: String
    ) throws(CopyError) -> mode_t? {
        switch calls.fstatat(directory, path, AT_SYMLINK_NOFOLLOW) {
        case .success(let status): return status.st_mode & S_IFMT
        case .failure(Errno(ENOENT)): return nil
        case .failure(let error): throw .system(error.code, action)
        }
    }

    /// Whether a path leads to what is open as `descriptor`.
    /// - Parameter flags: `AT_SYMLINK_NOFOLLOW`, or 0.
    func leads(
        _ path: String, to descriptor: Int32, _ flags: Int32, _ action: String
    ) throws(CopyError) -> Bool {
        let own = try status(of: descriptor, action)
        switch calls.fstatat(FileSystemCalls.noDirectory, path, flags) {
        case .success(let found): return own.st_dev == found.st_dev && own.st_ino == found.st_ino
        case .failure(Errno(ENOENT)): return false
        case .failure(let error): throw .system(error.code, action)
        }
    }

    /// The names in a directory, without `.` and `..`.
    func names(inDirectory descriptor: Int32, _ action: String) throws(CopyError) -> [String] {
        do throws(Errno) { return try calls.names(descriptor).get() } catch {
            throw .system(error.code, action)
        }
    }

    /// The same of one that is not open.
    func names(in directory: String, _ action: String) throws(CopyError) -> [String] {
        let descriptor = try open(directory, O_RDONLY | O_DIRECTORY, action)
        defer { calls.close(descriptor) }
        return try names(inDirectory: descriptor, action)
    }

    /// Removes a flat directory: its files, then itself. Absent is as good as removed.
    func removeFlat(_ directory: String) throws(CopyError) {
        let action = "remove \(directory)"
        guard try kind(of: directory, action) != nil else { return }
        let descriptor = try open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, action)
        defer { calls.close(descriptor) }
        for name in try names(inDirectory: descriptor, action) { try remove(name, in: descriptor, action) }
        try remove(directory, flags: AT_REMOVEDIR, action)
    }

    /// Removes a file, or by `AT_REMOVEDIR` an empty directory. Absent is as good as removed.
    func remove(
        _ path: String, in directory: Directory = FileSystemCalls.noDirectory, flags: Int32 = 0,
        _ action: String
    ) throws(CopyError) {
        switch calls.unlinkat(directory, path, flags) {
        case .success, .failure(Errno(ENOENT)): return
        case .failure(let error): throw .system(error.code, action)
        }
    }

    /// `path` made absolute, without `.` and slashes at its end as far as text can tell.
    static func absolute(_ path: String) -> String {
        var full = path
        if !path.hasPrefix("/"), let current = getcwd(nil, 0) {
            full = String(cString: current) + "/" + path
            free(current)
        }
        var parts: [Substring] = []
        for part in full.split(separator: "/") where part != "." {
            // `a/..` is resolved by text only when `a` is no link; keep it otherwise for the system to do.
            parts.append(part)
        }
        return "/" + parts.joined(separator: "/")
    }
}

extension FileSystemCalls {
    /// Makes what was done in a directory durable.
    package func synchronizeDirectory(_ path: String) throws(CopyError) {
        try Files(self).synchronizeDirectory(path)
    }
}
