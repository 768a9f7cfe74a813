import Blocks
import Foundation
import Glibc
import Testing

@testable import PhysicalCopy

@Suite struct PlacementTests {
    @Test(
        "A file gets its name where there are no exclusive renames, and no hard links",
        arguments: [(true, true), (false, true), (false, false)])
    func places(hasFlags: Bool, hasLinks: Bool) throws {
        let parent = TemporaryDirectory()
        let (made, name) = (parent.path + "/.made", parent.path + "/name")
        var placement = Placement()
        if !hasFlags { placement.calls.lackFlags() }
        if !hasLinks { placement.calls.linkat = { _, _, _ in .failure(Errno(EPERM)) } }
        try Data([1]).write(to: URL(fileURLWithPath: made))
        #expect(placement.place(made, at: name) == 0)
        #expect(try Files().names(in: parent.path, "") == ["name"])
        // What is there stays.
        try Data([2]).write(to: URL(fileURLWithPath: made))
        #expect(placement.place(made, at: name) == EEXIST)
        #expect(FileManager.default.contents(atPath: name) == Data([1]))
        #expect(placement.place(made, at: parent.path + "/absent/name") == ENOENT)
    }
}
