import Blocks
import Foundation
import Glibc
import SimulatedFiles
import TestSupport
import Testing

@testable import PhysicalCopy

/// A copy on a simulated file system.
struct SimulatedCopy {
    let image: SampleImage
    /// The version of its manifest.
    let version: Int
    let uuid = UUID().uuidString

    init(seed: UInt64, size: Int = 18_000, version: Int = 2) {
        image = SampleImage(seed: seed, size: size, preserved: 2)
        self.version = version
    }

    func manifest(in draft: CopyDraft) throws -> Manifest {
        var manifest = try image.manifest(in: draft, version: version)
        manifest.uuid = uuid
        return manifest
    }

    /// Puts the bytes into a draft, as a bridge does: nothing is flushed.
    func fill(_ draft: CopyDraft, _ calls: FileSystemCalls) throws {
        try draft.makeData(size: image.logBase + UInt64(image.log.bytes.count) + 100_000)
        let store = try SimulatedFileStore(draft.path(of: DataLocation.usualName), writable: true, calls)
        try store.write(image.data, at: 0)
        try store.write(image.log.bytes, at: image.logBase)
        try draft.resizeData(to: image.logBase + UInt64(image.log.bytes.count))
    }

    /// A draft, ready to be committed.
    func draft(at destination: String, _ calls: FileSystemCalls) throws -> CopyDraft {
        let draft = try CopyDraft(destination: destination, force: true, files: calls)
        try fill(draft, calls)
        return draft
    }

    static func opener(_ calls: FileSystemCalls) -> DataOpener {
        { location, writable throws(CopyError) in
            guard case .path(let path) = location else { preconditionFailure() }
            do throws(StoreError) {
                return try SimulatedFileStore(path, writable: writable, calls)
            } catch { throw .store(error, "open \(path)") }
        }
    }
}

extension SimulatedFileSystem {
    /// With an empty directory `/copies` that survives.
    static func place() throws -> SimulatedFileSystem {
        let files = SimulatedFileSystem()
        let user = files.makeUser(1)
        try files.calls(for: user).mkdirat(FileSystemCalls.noDirectory, "/copies", 0o755).get()
        files.synchronize()
        return files
    }

    /// Makes a copy that survives.
    func add(_ copy: SimulatedCopy, at path: String) throws {
        let user = makeUser(2)
        let calls = calls(for: user)
        let draft = try copy.draft(at: path, calls)
        try draft.commit(try copy.manifest(in: draft))
        synchronize()
    }
}

/// Committing copies, each to its name in `/copies`, where others may be.
private struct Commit {
    var new: [(name: String, copy: SimulatedCopy)]
    var old: [String: SimulatedCopy] = [:]

    func place(exchanges: Bool) throws -> SimulatedFileSystem {
        let files = try SimulatedFileSystem.place()
        files.lacksRenameFlags = !exchanges
        for name in old.keys.sorted() { try files.add(old[name]!, at: "/copies/\(name)") }
        return files
    }

    var scenario: CrashScenario {
        CrashScenario { calls, _ in
            var group: [(draft: CopyDraft, manifest: Manifest)] = []
            for (name, copy) in new {
                let draft = try copy.draft(at: "/copies/\(name)", calls)
                group.append((draft, try copy.manifest(in: draft)))
            }
            try CopyDraft.commit(group)
        } judge: { calls, files, isDone in
            new.flatMap { judge($0.name, $0.copy, calls, files, isDone) }
        }
    }

    /// What is under a copy's name.
    enum Found: Equatable {
        case nothing
        case abandoned
        case copy(uuid: String)
        case damaged(String)
    }

    static func look(at path: String, _ calls: FileSystemCalls, _ files: SimulatedFileSystem) -> Found {
        if files.names(at: path) == nil { return .nothing }
        do throws(CopyError) {
            let copy = try PhysicalCopy(path, files: calls)
            let report = try copy.verify(SimulatedCopy.opener(calls))
            guard let finding = report.findings.first else { return .copy(uuid: copy.manifest.uuid) }
            return .damaged(finding.problem)
        } catch { return error.kind == .abandoned ? .abandoned : .damaged("\(error)") }
    }

    /// The old whole copy or the new whole copy, and nothing where nothing was; the next draft leaves nothing else.
    private func judge(
        _ name: String, _ copy: SimulatedCopy, _ calls: FileSystemCalls, _ files: SimulatedFileSystem,
        _ isDone: Bool
    ) -> [String] {
        let path = "/copies/\(name)"
        let was = old[name].map { Found.copy(uuid: $0.uuid) } ?? .nothing
        let new = Found.copy(uuid: copy.uuid)
        var problems: [String] = []
        let before = Self.look(at: path, calls, files)
        // For a moment, on a file system that cannot exchange, the old one is aside.
        let isAside = files.lacksRenameFlags && before == .nothing && !isDone
        if before != new, isDone || before != was, !isAside { problems.append("\(name) is \(before)") }
        do throws(CopyError) {
            try CopyDraft(destination: path, force: true, files: calls).abandon()
        } catch { problems.append("no next draft of \(name): \(error)") }
        let after = Self.look(at: path, calls, files)
        if after != before, !isAside || after != was {
            problems.append("\(name) is \(after) once the next draft was there, and was \(before)")
        }
        let left = (files.names(at: "/copies") ?? []).filter { $0.hasPrefix(".\(name).") }
        if !left.isEmpty { problems.append("left behind: \(left)") }
        return problems
    }
}

extension AbandonedCopy {
    static func sample(_ copy: SimulatedCopy) -> AbandonedCopy {
        let image = copy.image
        return AbandonedCopy(
            tool: "test",
            volume: VolumeDescription(
                uuid: image.log.volume.uuidString, size: UInt64(image.instant.count),
                chunkSize: SampleImage.chunkSize, source: "/s"),
            mode: .append,
            postMortem: PostMortem(
                abandonedAt: 3, phase: "copying", reason: "the test says so", exitStatus: 74, epoch: 7,
                epochUUID: image.log.epoch.uuidString, institutedAt: 1, secondsSinceInstitution: 2,
                cacheUsed: 4096, cacheCapacity: 8192, bytesCopied: 4096))
    }
}

@Suite struct CommitCrashTests {
    private func commits() -> [Commit] {
        let copies = (1...4).map { SimulatedCopy(seed: $0, version: $0 == 3 ? 1 : 2) }
        return [
            Commit(new: [("a", copies[0])]),
            Commit(new: [("a", copies[0])], old: ["a": copies[1]]),
            Commit(new: [("a", copies[0]), ("b", copies[2])], old: ["a": copies[1]]),
        ]
    }

    private func expectNone(_ lab: CrashLab, atLeast count: Int) {
        #expect(lab.problems.isEmpty, "\(lab.problems.count) of \(lab.judged): \(lab.problems.prefix(5))")
        #expect(lab.judged >= count)
    }

    @Test("Cut off anywhere: the old copy or the new one, and nothing else", arguments: [true, false])
    func cutOff(exchanges: Bool) throws {
        var lab = CrashLab(seed: 1)
        for commit in commits() { lab.run(commit.scenario, from: try commit.place(exchanges: exchanges)) }
        expectNone(lab, atLeast: 500)
    }

    @Test("Cut off anywhere, and again while the next one sets things right", arguments: [true, false])
    func cutOffTwice(exchanges: Bool) throws {
        var lab = CrashLab(seed: 2)
        lab.outcomes = 4
        for commit in commits() {
            lab.runTwice(commit.scenario, from: try commit.place(exchanges: exchanges))
        }
        expectNone(lab, atLeast: 500)
    }

    @Test("Whatever call fails, nothing is lost and nothing stays open", arguments: [EIO, ENOSPC])
    func anyCallFails(code: Int32) throws {
        var lab = CrashLab(seed: 3)
        for commit in commits() {
            lab.failEverywhere(commit.scenario, from: try commit.place(exchanges: code == EIO), code)
        }
        expectNone(lab, atLeast: 500)
    }

    @Test("Why a copy was abandoned is left whole or not at all", arguments: [true, false])
    func abandons(exchanges: Bool) throws {
        let sample = SimulatedCopy(seed: 5)
        let path = "/copies/a"
        func scenario(_ old: Commit.Found) -> CrashScenario {
            CrashScenario { calls, _ in
                try sample.draft(at: path, calls).abandon(leaving: .sample(sample))
            } judge: { calls, files, isDone in
                let found = Commit.look(at: path, calls, files)
                let isAside = !exchanges && !isDone && found == .nothing
                guard found == .abandoned || !isDone && found == old || isAside else {
                    return ["it is \(found)"]
                }
                do throws(CopyError) {
                    try CopyDraft(destination: path, force: false, files: calls).abandon()
                } catch { return ["no next draft: \(error)"] }
                let after = Commit.look(at: path, calls, files)
                let left = (files.names(at: "/copies") ?? []).filter { $0 != "a" }
                return (after == found || isAside && after == old ? [] : ["it is \(after)"])
                    + (left.isEmpty ? [] : ["left behind: \(left)"])
            }
        }
        var lab = CrashLab(seed: 5)
        let files = try SimulatedFileSystem.place()
        files.lacksRenameFlags = !exchanges
        for old in [Commit.Found.nothing, .abandoned] {
            lab.run(scenario(old), from: files)
            lab.failEverywhere(scenario(old), from: files, ENOSPC)
            let user = files.makeUser(3)
            try scenario(old).act(files.calls(for: user), files)
            files.synchronize()
        }
        expectNone(lab, atLeast: 500)
    }

    @Test("What would be forgotten is found")
    func defectsAreFound() throws {
        let defects: [CrashDefect] = [
            .unsynchronized("the data's fsync") { $0 == DataLocation.usualName },
            .unsynchronized("the manifest is renamed before its flush") { $0 == ".manifest.json.new" },
            .unsynchronized("the copy's directory's fsync") { $0.hasPrefix(".a.partial-") },
            .unsynchronized("the parent's fsync") { $0 == "copies" },
        ]
        for defect in defects {
            var lab = CrashLab(seed: 4)
            lab.defect = defect
            for commit in commits() {
                lab.run(commit.scenario, from: try commit.place(exchanges: true))
            }
            #expect(!lab.problems.isEmpty, "\(defect.name): not found in \(lab.judged)")
        }
    }
}
