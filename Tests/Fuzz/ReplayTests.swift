import Blocks
import Foundation
import Testing

@testable import TableOfContents

/// Every seed goes through its target once, in any build: what the fuzzer runs compiles and holds at its start.
@Suite struct ReplayTests {
    @Test(arguments: FuzzTarget.allCases)
    func seedsPass(_ target: FuzzTarget) throws {
        let seeds = URL(filePath: #filePath).deletingLastPathComponent().appending(
            path: "seeds/\(target.rawValue)")
        let files = try FileManager.default.contentsOfDirectory(at: seeds, includingPropertiesForKeys: nil)
        #expect(!files.isEmpty)
        for file in files { target.run(Array(try Data(contentsOf: file))) }
    }

    /// The image that is patched is one that a reader takes all of, with a log to replay.
    @Test func imageIsWhole() throws {
        let store = PatchedImage(.xfs)
        let range = ByteRange(offset: 0, count: store.size)
        let reader = try #require(try XFSReader(store, range, index: 0))
        #expect(reader.description.knowsUse, "\(reader.description.remark)")
        let sector = XFSBuffer(count: 512)
        let disk = XFSDisk(store, range)
        try disk.read(0, sector.memory)
        guard case .replayed(_, let unfinished) = try XFSLog(#require(XFSGeometry(sector.view)), disk).state()
        else {
            Issue.record("there is nothing to replay")
            return
        }
        #expect(unfinished.isEmpty)
    }
}
