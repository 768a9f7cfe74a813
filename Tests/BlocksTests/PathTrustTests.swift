import Blocks
import Glibc
import TestSupport
import Testing

/// Who may change what a path leads to.
@Suite struct PathTrustTests {
    let scratch: ScratchDirectory
    init() throws { scratch = try ScratchDirectory() }

    private static let somebody: uid_t = 65_534

    private func directory(_ name: String, _ mode: mode_t = 0o755, owner: uid_t = geteuid()) throws {
        try #require(mkdir(scratch(name), 0o755) == 0)
        try #require(chown(scratch(name), owner, gid_t.max) == 0 && chmod(scratch(name), mode) == 0)
    }

    private func file(_ name: String, owner: uid_t = geteuid()) throws {
        let descriptor = open(scratch(name), O_CREAT | O_WRONLY, 0o600)
        try #require(descriptor >= 0 && fchown(descriptor, owner, gid_t.max) == 0)
        close(descriptor)
    }

    private func flaw(_ name: String) -> String? { PathTrust.flaw(of: scratch(name))?.path }

    @Test func whatOnlyWeMayChangeHasNoFlaw() throws {
        try directory("own")
        try file("own/file")
        #expect(flaw("own/file") == nil)
        #expect(flaw("own/not-there") == nil)
        #expect(flaw("neither/this") == nil)
        #expect(PathTrust.flaw(of: "/") == nil)
        #expect(PathTrust.flaw(of: "/dev/null") == nil)
        // What scratch directories themselves lie in: everybody writes there, and the sticky bit is set.
        #expect(flaw(".") == nil)
    }

    @Test func aDirectoryThatEverybodyMayWriteIsAFlaw() throws {
        try directory("open", 0o777)
        try directory("open/below")
        #expect(flaw("open") == nil, "it is what is in it that others may change")
        #expect(flaw("open/file") == scratch("open"))
        #expect(flaw("open/below/file") == scratch("open"))
        #expect(flaw("open/../open/file") == scratch("open"))
        try directory("sticky", 0o1777)
        try file("sticky/own")
        #expect(flaw("sticky/own") == nil)
        #expect(flaw("sticky/new") == nil)
        try directory("group", 0o775)
        #expect(flaw("group/file") == nil)
    }

    @Test func linksAreFollowedToWhereTheyLead() throws {
        try directory("open", 0o777)
        try directory("own")
        #expect(symlink(scratch("open") + "/file", scratch("own/absolute")) == 0)
        #expect(symlink("../open/file", scratch("own/relative")) == 0)
        #expect(symlink("../own", scratch("open/back")) == 0)
        #expect(flaw("own/absolute") == scratch("open"))
        #expect(flaw("own/relative") == scratch("open"))
        #expect(flaw("open/back/file") == scratch("open"), "the link itself is one that others may change")
        #expect(symlink("round", scratch("own/round")) == 0)
        #expect(flaw("own/round") == nil, "the system says by itself that it does not end")
    }

    @Test(.enabled(if: Machine.isRoot, "LEFT OUT: giving files to another user needs root"))
    func whatBelongsToSomebodyElseIsAFlaw() throws {
        try directory("theirs", owner: Self.somebody)
        try file("theirs/file")
        #expect(flaw("theirs/file") == scratch("theirs"))
        try directory("sticky", 0o1777)
        try file("sticky/theirs", owner: Self.somebody)
        #expect(flaw("sticky/theirs") == scratch("sticky/theirs"))
        #expect(symlink("/", scratch("sticky/link")) == 0)
        #expect(lchown(scratch("sticky/link"), Self.somebody, gid_t.max) == 0)
        #expect(flaw("sticky/link/etc/passwd") == scratch("sticky/link"))
    }
}
