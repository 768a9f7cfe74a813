import Blocks
import Glibc
import SimulatedFiles
import TestSupport
import Testing

@testable import PhysicalCopy

/// Changing a copy that is there: cut off anywhere, it is the volume as of the instant all along.
@Suite struct IntegrateCrashTests {
    private static let path = "/copies/copy"

    private func place(_ copy: SimulatedCopy) throws -> SimulatedFileSystem {
        let files = try SimulatedFileSystem.place()
        try files.add(copy, at: Self.path)
        return files
    }

    /// What keeps the copy from being read as the volume.
    private func problems(
        _ sample: SimulatedCopy, _ calls: FileSystemCalls, _ problem: (PhysicalCopy) throws -> String?
    ) -> [String] {
        do {
            let copy = try PhysicalCopy(Self.path, files: calls)
            let volume = try copy.openVolume(SimulatedCopy.opener(calls))
            let found = try volume.bytes(at: 0, count: sample.image.instant.count)
            if found != sample.image.instant { return ["it is not the instant, \(copy.manifest.state)"] }
            return try problem(copy).map { [$0] } ?? []
        } catch { return ["\(error)"] }
    }

    private func integration(_ sample: SimulatedCopy) -> CrashScenario {
        CrashScenario { calls, _ in
            try PhysicalCopy(Self.path, for: .changing, files: calls)
                .integrate(SimulatedCopy.opener(calls))
        } judge: { calls, files, isDone in
            var found = problems(sample, calls) { copy in
                isDone && copy.manifest.state != .integrated ? "it is \(copy.manifest.state)" : nil
            }
            do {
                try PhysicalCopy(Self.path, for: .changing, files: calls)
                    .integrate(SimulatedCopy.opener(calls))
            } catch { found.append("not integrated again: \(error)") }
            found += problems(sample, calls) { copy in
                let report = try copy.verify(SimulatedCopy.opener(calls))
                let size = files.contents(at: Self.path + "/" + DataLocation.usualName)?.size
                guard copy.manifest.state == .integrated, size == sample.image.instant.count else {
                    return "\(copy.manifest.state), \(size ?? 0) bytes"
                }
                return report.findings.first?.problem
            }
            return found
        }
    }

    /// Gives the copy a table of contents.
    private func attachment(_ sample: SimulatedCopy, _ bytes: [UInt8], old: [UInt8]?) -> CrashScenario {
        CrashScenario { calls, _ in
            let copy = try PhysicalCopy(Self.path, files: calls)
            let draft = try copy.tocDraft()
            try write(bytes, to: draft.path, calls)
            try copy.attachToc(draft)
        } judge: { calls, files, isDone in
            problems(sample, calls) { copy in
                let report = try copy.verify(SimulatedCopy.opener(calls))
                if let finding = report.findings.first { return finding.problem }
                let now = copy.manifest.toc.map { _ in self.bytes(of: "/copies/copy/toc.sqlite", files) }
                if now != bytes, isDone || now != nil && now != old {
                    return "it has another table of contents"
                }
                try copy.tocDraft().abandon()
                let left = (files.names(at: Self.path) ?? []).filter { $0.hasPrefix(".toc") }
                return left.isEmpty ? nil : "left behind: \(left)"
            }
        }
    }

    private func write(_ bytes: [UInt8], to path: String, _ calls: FileSystemCalls) throws {
        let file = try calls.openat(FileSystemCalls.noDirectory, path, O_WRONLY, 0).get()
        defer { calls.close(file) }
        _ = try bytes.withUnsafeBytes { try calls.pwrite(file, $0, 0).get() }
    }

    private func bytes(of path: String, _ files: SimulatedFileSystem) -> [UInt8]? {
        guard let contents = files.contents(at: path) else { return nil }
        var bytes = [UInt8](repeating: 0, count: contents.size)
        _ = bytes.withUnsafeMutableBytes { contents.read(at: 0, into: $0) }
        return bytes
    }

    private func expectNone(_ lab: CrashLab, atLeast count: Int) {
        #expect(lab.problems.isEmpty, "\(lab.problems.count) of \(lab.judged): \(lab.problems.prefix(5))")
        #expect(lab.judged >= count)
    }

    @Test("Integrate is cut off anywhere", arguments: 1...3)
    func integrate(seed: UInt64) throws {
        let sample = SimulatedCopy(seed: seed, version: seed == 3 ? 1 : 2)
        var lab = CrashLab(seed: seed)
        lab.run(integration(sample), from: try place(sample))
        lab.outcomes = 2
        lab.runTwice(integration(sample), from: try place(sample))
        expectNone(lab, atLeast: 500)
    }

    @Test("Whatever call of integrate fails, it can be run again", arguments: [EIO, ENOSPC])
    func integrateFails(code: Int32) throws {
        let sample = SimulatedCopy(seed: 4)
        var lab = CrashLab(seed: 4)
        lab.failEverywhere(integration(sample), from: try place(sample), code)
        expectNone(lab, atLeast: 300)
    }

    @Test("A table of contents comes whole or not at all", arguments: [false, true])
    func tableOfContents(replaces: Bool) throws {
        let sample = SimulatedCopy(seed: 5)
        let (old, new) = (seededBytes(3000, seed: 1), seededBytes(2000, seed: 2))
        let files = try place(sample)
        if replaces {
            let user = files.makeUser(3)
            try attachment(sample, old, old: nil).act(files.calls(for: user), files)
            files.synchronize()
        }
        var lab = CrashLab(seed: 5)
        lab.run(attachment(sample, new, old: replaces ? old : nil), from: files)
        lab.failEverywhere(attachment(sample, new, old: replaces ? old : nil), from: files, EIO)
        expectNone(lab, atLeast: 300)
    }

    @Test("What would be forgotten is found")
    func defectsAreFound() throws {
        let defects: [CrashDefect] = [
            .unsynchronized("the data's flush") { $0 == DataLocation.usualName },
            .unsynchronized("the manifest is renamed before its flush") { $0 == ".manifest.json.new" },
            .unsynchronized("the copy's directory's fsync") { $0 == "copy" },
        ]
        for defect in defects {
            let sample = SimulatedCopy(seed: 6)
            var lab = CrashLab(seed: 6)
            lab.defect = defect
            lab.run(integration(sample), from: try place(sample))
            #expect(!lab.problems.isEmpty, "\(defect.name): not found in \(lab.judged)")
        }
    }
}
