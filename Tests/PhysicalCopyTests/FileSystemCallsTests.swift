import Blocks
import Glibc
import SimulatedFiles
import TestSupport
import Testing

@testable import PhysicalCopy

/// The simulated file system answers as the real one does.
@Suite struct FileSystemCallsTests {
    enum Kind: CaseIterable { case real, simulated }

    /// An empty directory, and the file system as two processes see it.
    private struct Place {
        let path: String
        let calls: FileSystemCalls
        let others: FileSystemCalls
        private let keep: [AnyObject]

        init(_ kind: Kind) {
            switch kind {
            case .real:
                let directory = TemporaryDirectory()
                (path, calls, others, keep) = (
                    directory.path, FileSystemCalls(), FileSystemCalls(), [directory]
                )
            case .simulated:
                let files = SimulatedFileSystem()
                let users = [files.makeUser(1), files.makeUser(2)]
                (path, keep) = ("/place", [files] + users)
                (calls, others) = (files.calls(for: users[0]), files.calls(for: users[1]))
                #expect(calls.mkdirat(FileSystemCalls.noDirectory, path, 0o755).code == 0)
            }
        }

        func make(_ name: String, _ bytes: [UInt8] = []) throws {
            let file = try calls.openat(
                FileSystemCalls.noDirectory, path + "/" + name, O_WRONLY | O_CREAT | O_EXCL, 0o600
            ).get()
            defer { calls.close(file) }
            #expect(try bytes.withUnsafeBytes { try calls.pwrite(file, $0, 0).get() } == bytes.count)
        }

        func openDirectory() throws -> Int32 {
            try calls.openat(FileSystemCalls.noDirectory, path, O_RDONLY | O_DIRECTORY, 0).get()
        }
    }

    @Test(arguments: Kind.allCases) func files(kind: Kind) throws {
        let place = Place(kind)
        let calls = place.calls
        let directory = try place.openDirectory()
        defer { calls.close(directory) }
        #expect(calls.openat(directory, "a", O_RDONLY, 0).code == ENOENT)
        let file = try calls.openat(directory, "a", O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600).get()
        #expect(calls.openat(directory, "a", O_RDWR | O_CREAT | O_EXCL, 0o600).code == EEXIST)
        #expect(calls.openat(directory, "a/b", O_RDWR | O_CREAT, 0o600).code == ENOTDIR)
        #expect(calls.openat(directory, "x/b", O_RDWR | O_CREAT, 0o600).code == ENOENT)
        #expect(calls.openat(directory, "a", O_RDONLY | O_DIRECTORY, 0).code == ENOTDIR)
        #expect(calls.openat(FileSystemCalls.noDirectory, place.path, O_RDWR, 0).code == EISDIR)
        let bytes = seededBytes(2000, seed: 1)
        #expect(bytes.withUnsafeBytes { calls.pwrite(file, $0, 700).code } == 0)
        #expect(calls.fsync(file).code == 0)
        let status = try calls.fstat(file).get()
        #expect(status.st_size == 2700 && status.st_mode == S_IFREG | 0o600)
        #expect(try calls.fstatat(directory, "a", AT_SYMLINK_NOFOLLOW).get().st_ino == status.st_ino)
        var found = [UInt8](repeating: 1, count: 3000)
        #expect(try found.withUnsafeMutableBytes { try calls.pread(file, $0, 0).get() } == 2700)
        #expect(Array(found[..<2700]) == [UInt8](repeating: 0, count: 700) + bytes)
        #expect(try found.withUnsafeMutableBytes { try calls.pread(file, $0, 2700).get() } == 0)
        // Cut, and lengthened again: zeros.
        #expect(calls.ftruncate(file, 1000).code == 0 && calls.ftruncate(file, 5000).code == 0)
        #expect(try found.withUnsafeMutableBytes { try calls.pread(file, $0, 0).get() } == 3000)
        #expect(
            Array(found) == [UInt8](repeating: 0, count: 700) + bytes[..<300]
                + .init(repeating: 0, count: 2000))
        let reader = try calls.openat(directory, "a", O_RDONLY, 0).get()
        #expect(bytes.withUnsafeBytes { calls.pwrite(reader, $0, 0).code } == EBADF)
        #expect(calls.ftruncate(reader, 0).code == EINVAL)
        #expect(try calls.availableSpace(reader).get() > 0)
        calls.close(reader)
        calls.close(file)
        #expect(calls.fsync(file).code == EBADF)
    }

    @Test(arguments: Kind.allCases) func directories(kind: Kind) throws {
        let place = Place(kind)
        let calls = place.calls
        let none = FileSystemCalls.noDirectory
        let directory = try place.openDirectory()
        defer { calls.close(directory) }
        #expect(calls.mkdirat(directory, "d", 0o755).code == 0)
        #expect(calls.mkdirat(directory, "d", 0o755).code == EEXIST)
        #expect(calls.mkdirat(none, place.path + "/x/d", 0o755).code == ENOENT)
        try place.make("a", [1])
        try place.make("d/b", [2])
        #expect(try calls.names(directory).get().sorted() == ["a", "d"])
        #expect(calls.unlinkat(directory, "d", AT_REMOVEDIR).code == ENOTEMPTY)
        #expect([EISDIR, EPERM].contains(calls.unlinkat(directory, "d", 0).code))
        #expect(calls.unlinkat(directory, "a", AT_REMOVEDIR).code == ENOTDIR)
        #expect(calls.unlinkat(directory, "x", 0).code == ENOENT)
        // A name more for the same file.
        #expect(calls.linkat(directory, "a", "c").code == 0)
        #expect(calls.linkat(directory, "a", "c").code == EEXIST)
        #expect(calls.linkat(directory, "d", "e").code == EPERM)
        let first = try calls.fstatat(directory, "a", 0).get().st_ino
        #expect(try calls.fstatat(directory, "c", 0).get().st_ino == first)
        // An open directory stays the same under another name.
        let inner = try calls.openat(directory, "d", O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0).get()
        #expect(calls.renameat(directory, "d", "e", 0).code == 0)
        #expect(try calls.names(inner).get() == ["b"])
        #expect(calls.unlinkat(inner, "b", 0).code == 0)
        #expect(calls.unlinkat(directory, "e", AT_REMOVEDIR).code == 0)
        #expect(calls.openat(inner, "b", O_RDWR | O_CREAT, 0o600).code == ENOENT)
        #expect(try calls.names(inner).get().isEmpty)
        calls.close(inner)
        #expect(calls.fsync(directory).code == 0)
    }

    @Test(arguments: Kind.allCases) func renames(kind: Kind) throws {
        let place = Place(kind)
        let calls = place.calls
        let directory = try place.openDirectory()
        defer { calls.close(directory) }
        func rename(_ old: String, _ new: String, _ flags: UInt32 = 0) -> Int32 {
            calls.renameat(directory, old, new, flags).code
        }
        func identity(_ name: String) throws -> UInt { try calls.fstatat(directory, name, 0).get().st_ino }
        try place.make("a")
        try place.make("b")
        for name in ["d", "e"] { #expect(calls.mkdirat(directory, name, 0o755).code == 0) }
        try place.make("e/full")
        let (a, b, d) = (try identity("a"), try identity("b"), try identity("d"))
        #expect(rename("x", "y") == ENOENT)
        #expect(rename("a", "b", FileSystemCalls.renameNoReplace) == EEXIST)
        #expect(rename("a", "d") == EISDIR)
        #expect(rename("d", "a") == ENOTDIR)
        #expect(rename("d", "e") == ENOTEMPTY)
        #expect(rename("a", "x", FileSystemCalls.renameExchange) == ENOENT)
        #expect(rename("a", "d", FileSystemCalls.renameExchange) == 0)
        #expect(try (identity("a"), identity("d")) == (d, a))
        #expect(rename("d", "b") == 0)
        #expect(try identity("b") == a && a != b)
        #expect(rename("e", "a") == 0)
        #expect(rename("b", "c", FileSystemCalls.renameNoReplace) == 0)
        #expect(try calls.names(directory).get().sorted() == ["a", "c"])
    }

    @Test(arguments: Kind.allCases) func locks(kind: Kind) throws {
        let place = Place(kind)
        let (calls, others) = (place.calls, place.others)
        let mine = try place.openDirectory()
        let again = try place.openDirectory()
        let theirs = try others.openat(FileSystemCalls.noDirectory, place.path, O_RDONLY | O_DIRECTORY, 0)
            .get()
        #expect(calls.flock(mine, LOCK_SH | LOCK_NB).code == 0)
        #expect(others.flock(theirs, LOCK_SH | LOCK_NB).code == 0)
        #expect(others.flock(theirs, LOCK_EX | LOCK_NB).code == EWOULDBLOCK)
        calls.close(mine)
        #expect(others.flock(theirs, LOCK_EX | LOCK_NB).code == 0)
        #expect(calls.flock(again, LOCK_SH | LOCK_NB).code == EWOULDBLOCK)
        #expect(others.flock(theirs, LOCK_UN | LOCK_NB).code == 0)
        #expect(calls.flock(again, LOCK_EX | LOCK_NB).code == 0)
        calls.close(again)
        others.close(theirs)
        try place.make("a")
        let file = place.path + "/a"
        let one = try calls.openat(FileSystemCalls.noDirectory, file, O_RDWR, 0).get()
        let two = try others.openat(FileSystemCalls.noDirectory, file, O_RDWR, 0).get()
        #expect(calls.lockByte(one, 1 << 40).code == 0)
        #expect(calls.lockByte(one, 1 << 40).code == 0)
        #expect(others.lockByte(two, 1 << 41).code == 0)
        #expect([EAGAIN, EACCES].contains(others.lockByte(two, 1 << 40).code))
        calls.close(one)
        #expect(others.lockByte(two, 1 << 40).code == 0)
        others.close(two)
    }
}

extension Result where Failure == Errno {
    /// The error's number; 0 for none.
    var code: Int32 {
        switch self {
        case .success: 0
        case .failure(let error): error.code
        }
    }
}
