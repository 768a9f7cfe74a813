import Blocks
import Foundation
import PhysicalCopy
import TestSupport
import Testing

/// Whether a copy is what its writers' oracles allow.
enum CopyJudge {
    /// It verifies, and what a restore brings back of it is the volume after exactly k writes of each writer.
    static func expectRight(
        _ copy: String, _ writers: [Writer], in scratch: ScratchDirectory,
        _ comment: @autoclosure () -> String = ""
    ) throws {
        let verified = try Outboard.run(["verify", copy])
        #expect(verified.isSuccess, "\(comment()): \(verified)")
        let place = scratch("judged")
        defer { unlink(place) }
        let restored = try Outboard.run(["restore", "volume", copy, "--to", place])
        guard restored.isSuccess else { throw TestFailure("\(comment()): \(restored)") }
        let bytes = try contents(place)
        let epoch = try CopiedEpoch(of: copy)
        for oracle in writers.map(\.oracle) {
            let verdict = oracle.judge(
                Array(bytes[Int(oracle.region.offset)..<Int(oracle.region.end)]),
                within: oracle.bounds(at: epoch.institutedAt))
            #expect(verdict.isConsistent, "\(comment()): \(verdict)")
        }
    }

    /// Nothing is left in the directory but, at `copy`, why the copy that failed did.
    static func expectReasonAlone(_ directory: String, _ status: Int32) throws {
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory) == ["copy"])
        let left = try AbandonedCopy.find(directory + "/copy")
        #expect(left?.postMortem.exitStatus == status)
        let refused = try Outboard.run(["verify", directory + "/copy"])
        #expect(refused.status == 75, "\(refused)")
    }

    /// The source has everything that was answered.
    static func expectKept(_ source: String, _ writers: [Writer], _ comment: @autoclosure () -> String = "")
        throws
    {
        let bytes = try contents(source)
        for oracle in writers.map(\.oracle) {
            let verdict = oracle.judgeSource(Array(bytes[Int(oracle.region.offset)..<Int(oracle.region.end)]))
            #expect(verdict.isConsistent, "\(comment()): \(verdict)")
        }
    }
}
