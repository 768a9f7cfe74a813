import Foundation
import Testing

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
}
