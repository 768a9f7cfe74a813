import Blocks
import Foundation
import Glibc
import PhysicalCopy
import TestSupport
import Testing

@testable import Agent

/// The directory of a group's copies is there after a power cut, when they are.
@Suite struct GroupDirectoryTests {
    private static func inode(_ descriptor: Int32) -> UInt64 {
        var status = stat()
        return fstat(descriptor, &status) == 0 ? UInt64(status.st_ino) : 0
    }

    @Test(arguments: [false, true]) func itsNameIsFlushed(isThere: Bool) throws {
        let scratch = try ScratchDirectory()
        let parent = open(scratch.path, O_RDONLY | O_DIRECTORY)
        defer { close(parent) }
        let path = scratch.path + "/group"
        if isThere { mkdir(path, 0o755) }
        let flushed = Monitor<[(inode: UInt64, isMade: Bool)]>([])
        var files = FileSystemCalls()
        files.fsync = { descriptor in
            flushed.withLock { $0.append((Self.inode(descriptor), access(path, F_OK) == 0)) }
            return .success(())
        }
        var directory = GroupDirectory()
        let members = ["a", "b"].map { CopyRequest.Member(control: $0, destination: "\(path)/\($0)") }
        try directory.make(for: members, files)
        #expect(flushed.withLock { $0.count == 1 && $0[0] == (Self.inode(parent), true) })
        directory.removeIfMade(files)
        #expect((access(path, F_OK) == 0) == isThere)
    }

    @Test func aFailedFlushIsTold() throws {
        let scratch = try ScratchDirectory()
        let path = scratch.path + "/group"
        var files = FileSystemCalls()
        files.fsync = { _ in .failure(Errno(EIO)) }
        var directory = GroupDirectory()
        let members = ["a", "b"].map { CopyRequest.Member(control: $0, destination: "\(path)/\($0)") }
        #expect(throws: AgentError.self) { try directory.make(for: members, files) }
        directory.removeIfMade(files)
        #expect(access(path, F_OK) != 0)
    }
}
