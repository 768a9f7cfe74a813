import Blocks
import Foundation
import HostControl
import PhysicalCopy
import SCSI
import TableOfContents
import TestSupport
import Testing

@testable import Agent

/// A copy whose bridge dies, and that goes on.
@Suite(.serialized) struct ResumeTests {
    private static let size = 4 << 20
    private static let step: UInt64 = 256 << 10

    /// A volume whose copy is cut off when six of its sixteen commands are done and something is noted, while all of it changes.
    private final class CutOff: @unchecked Sendable {  // `request` is changed while nothing runs
        let world = LocalWorld()
        let volumes: [LocalVolume]
        var volume: LocalVolume { volumes[0] }
        var request: CopyRequest
        let instants = Monitor<[String: [UInt8]]>([:])
        let commands = Monitor(0)
        let isNoted = Monitor(false)
        /// What was copied from the source when it went on.
        let copiedAgain = Monitor<[ByteRange]>([])

        init(_ names: [String] = ["a"], _ change: (inout CopyRequest, LocalWorld) -> Void = { _, _ in })
            throws
        {
            var volumes: [LocalVolume] = []
            for (seed, name) in names.enumerated() {
                volumes.append(try world.addVolume(name, size: ResumeTests.size, seed: UInt64(seed) + 1))
            }
            self.volumes = volumes
            request = CopyRequest(
                members: names.map { [world] name in
                    .init(
                        control: "\(name).ctl",
                        destination: world.path(names.count > 1 ? "copy-\(name)" : "copy"))
                }, wantsToc: false)
            change(&request, world)
            for volume in volumes {
                world.state.withLock { state in
                    state.before["snapshot.begin \(volume.name)"] = { [instants] in
                        instants.withLock { $0[volume.name] = volume.contents }
                    }
                    state.before["snapshot.passed \(volume.name)"] = { [isNoted] in
                        isNoted.withLockAndNotify { $0 = true }
                    }
                }
            }
        }

        /// Runs it until its bridge is gone.
        func cutOff(waitsForNote: Bool = true) async throws -> AgentError? {
            await #expect(throws: AgentError.self) {
                try await self.world.copy(self.request) { bridge in
                    bridge.commandBytes = ResumeTests.step
                    bridge.dies = { [self] in
                        for volume in volumes { volume.scribble(7, times: 3) }
                        let count = commands.next()
                        guard count >= 6 else { return false }
                        if waitsForNote { isNoted.wait { $0 ? () : nil } }
                        return true
                    }
                }
            }
        }

        /// What was noted.
        func record(_ destination: String? = nil) throws -> ResumeRecord {
            let left = try CopyDraft.resume(destination ?? world.path("copy"), force: true) { _ in true }
            guard case .draft(let draft, let record) = left else { throw Absent() }
            draft.keep()
            return record
        }

        func goOn(_ change: (inout CopyRequest) -> Void = { _ in }) async throws -> [CopyOutcome] {
            var request = request
            request.resumes = true
            change(&request)
            return try await world.copy(request) { bridge in
                bridge.commandBytes = ResumeTests.step
                bridge.copying = { [copiedAgain] in copiedAgain.withLock { [ranges = $0] in $0 += ranges } }
            }
        }

        func epoch(_ volume: LocalVolume? = nil) -> EpochStatus? {
            (volume ?? self.volume).volume.epochStatus
        }
    }
    private struct Absent: Error {}

    private func expectRight(_ copy: String, _ expected: [UInt8]?) throws {
        let opened = try PhysicalCopy(copy)
        let opener: DataOpener = { location, _ throws(CopyError) in
            guard case .path(let path) = location else { preconditionFailure("not here") }
            do throws(AgentError) { return try LocalWorld.open(path, false) } catch { throw error.copyError }
        }
        #expect(try opened.openVolume(opener).bytes(at: 0, count: Self.size) == expected)
        #expect(try opened.verify(opener).isClean)
    }

    @Test(
        "A copy goes on when its bridge has died: what is on stable storage is not read again",
        arguments: [Manifest.Mode.overlay, .append],
        [EpochDescription.Ending.endedBeforeCacheCopy, .endedAfterCacheCopy])
    func goesOn(mode: Manifest.Mode, ending: EpochDescription.Ending) async throws {
        let run = try CutOff { request, _ in
            (request.mode, request.ending, request.freeze) = (mode, ending, ["/x"])
        }
        let error = try await run.cutOff()
        #expect(error?.status == .unavailable && error?.advice?.contains("--resume") == true, "\(error!)")
        #expect(run.world.names.filter { $0.hasPrefix(".copy.partial-") }.count == 1)
        #expect(run.epoch()?.state == .open && run.epoch()?.isHeld == false)
        let record = try run.record()
        #expect(record.durable.list.total > 0 && record.epoch.uuid == run.epoch()?.uuid)

        run.volume.scribble(8)
        let outcome = try #require(try await run.goOn().first)
        let again = RangeList(merging: run.copiedAgain.withLock { $0 })
        #expect(again.intersection(record.durable.list).isEmpty, "copied again: \(again.ranges)")
        #expect(again.union(record.durable.list) == .whole(UInt64(Self.size)))
        #expect(outcome.resumedBytes == record.durable.list.total && outcome.epoch == record.epoch.number)
        // The second bridge has not seen what the first one wrote.
        #expect(outcome.readBackBytes >= record.durable.list.total)
        try expectRight(outcome.copy, run.instants.withLock { $0["a"] })
        let manifest = try PhysicalCopy(outcome.copy).manifest
        #expect(manifest.frozen == ["/x"] && manifest.epoch.institutedAt == record.epoch.institutedAt)
        #expect(run.world.names == ["a.cache", "a.source", "copy"])
        #expect(
            try FileManager.default.contentsOfDirectory(atPath: run.world.path("copy")).sorted() == [
                "checksums", "data.img", "manifest.json",
            ])
        #expect(run.epoch()?.state == .released)
        // What was frozen was for the instant.
        #expect(run.world.log.filter { $0 == "freeze /x" }.count == 1)
    }

    @Test func itMayBeCutOffAgain() async throws {
        let run = try CutOff()
        _ = try await run.cutOff()
        run.commands.withLock { $0 = 3 }
        run.request.resumes = true
        #expect(try await run.cutOff()?.status == .unavailable)
        _ = try await run.goOn()
        try expectRight(run.world.path("copy"), run.instants.withLock { $0["a"] })
    }

    @Test func severalVolumesGoOnAsOfTheirOneInstant() async throws {
        let run = try CutOff(["a", "b"])
        _ = try await run.cutOff()
        let alone = await #expect(throws: AgentError.self) {
            try await run.goOn { $0.members.removeLast() }
        }
        #expect(alone?.status == .usage && alone?.reason.contains("2 volumes") == true)
        let outcomes = try await run.goOn()
        let manifests = try outcomes.map { try PhysicalCopy($0.copy).manifest }
        #expect(manifests[0].group != nil && manifests[0].group == manifests[1].group)
        #expect(manifests[0].epoch.institutedAt == manifests[1].epoch.institutedAt)
        for name in ["a", "b"] {
            try expectRight(run.world.path("copy-\(name)"), run.instants.withLock { $0[name] })
        }
    }

    /// The snapshot has gaps when it goes on: the table of contents must be there already.
    @Test(arguments: [true, false]) func theTableOfContents(isBuilt: Bool) async throws {
        let isOver = Monitor(false)
        let run = try CutOff { request, world in
            request.wantsToc = true
            world.state.withLock { state in
                state.contents = [
                    .fileSystem(
                        FileSystemDescription(
                            index: 0, kind: .ext4, range: ByteRange(offset: 0, count: UInt64(Self.size)),
                            isListed: true, knowsUse: true)), .end,
                ]
                // Not before the bridge is gone.
                if !isBuilt { state.before["read files"] = { isOver.wait { $0 ? () : nil } } }
            }
        }
        run.world.state.withLock { state in
            let begin = state.before["bridge"]
            state.before["bridge"] = {
                begin?()
                isOver.withLockAndNotify { $0 = run.commands.withLock { $0 } >= 6 }
            }
        }
        let task = Task { try await run.cutOff(waitsForNote: isBuilt) }
        if !isBuilt {
            // Its end is waited for when the copy is cut off.
            try await onThread { run.commands.wait { $0 >= 6 ? () : nil } }
            isOver.withLockAndNotify { $0 = true }
        }
        #expect(try await task.value?.status == .unavailable)
        if case .built = try run.record().contents { #expect(isBuilt) } else { #expect(!isBuilt) }
        let outcome = try #require(try await run.goOn().first)
        #expect(outcome.toc?.counts.fileSystems == 1)
        #expect(run.world.log.filter { $0 == "read files" }.count == (isBuilt ? 1 : 2))
        let copy = try PhysicalCopy(outcome.copy)
        let path = try #require(copy.tocPath)
        #expect(try TableOfContentsFile.describe(path) == copy.manifest.toc)
        try expectRight(outcome.copy, run.instants.withLock { $0["a"] })
    }

    @Test func whatIsInUseIsNotReadAgain() async throws {
        let used = [ByteRange(offset: 0, count: 1 << 20), ByteRange(offset: 2 << 20, count: 1 << 20)]
        let run = try CutOff { request, world in
            request.usedOnly = true
            world.state.withLock {
                $0.contents = [
                    .fileSystem(
                        FileSystemDescription(
                            index: 0, kind: .ext4, range: ByteRange(offset: 0, count: UInt64(Self.size)),
                            isListed: true, knowsUse: true)), .used(used), .end,
                ]
            }
        }
        _ = try await run.cutOff()
        let record = try run.record()
        let outcome = try #require(try await run.goOn().first)
        #expect(run.world.log.filter { $0 == "read use" }.count == 1)
        let again = RangeList(merging: run.copiedAgain.withLock { $0 })
        #expect(again == RangeList(used).subtracting(record.durable.list))
        let data = Array(FileManager.default.contents(atPath: outcome.copy + "/data.img") ?? Data())
        let expected = try #require(run.instants.withLock { $0["a"] })
        for range in used {
            let place = Int(range.offset)..<Int(range.end)
            #expect(data[place] == expected[place])
        }
        #expect(outcome.usedBytes == 2 << 20)
    }

    @Test("A copy to a standing bridge's unit goes on on that unit") func onAStandingBridge() async throws {
        let run = try CutOff()
        let address = BridgeAddress(host: "127.0.0.1", port: 1, targetName: "iqn.2026-01.net.example:a")
        run.request.bridge = .standing(address, source: 0, cache: 1, copy: 2)
        for name in ["unit", "other"] {
            try Data(count: 16 << 20).write(to: URL(fileURLWithPath: run.world.path(name)))
        }
        func copy(onto unit: String, resumes: Bool, dies: (@Sendable () -> Bool)? = nil) async -> AgentError?
        {
            var request = run.request
            request.resumes = resumes
            do {
                _ = try await run.world.copy(request) { bridge in
                    bridge.replace = [
                        0: run.volume.sourcePath, 1: run.volume.cachePath, 2: run.world.path(unit),
                    ]
                    bridge.commandBytes = Self.step
                    bridge.copying = { ranges in
                        if resumes { run.copiedAgain.withLock { $0 += ranges } }
                    }
                    bridge.dies = dies
                }
                return nil
            } catch { return error as? AgentError }
        }
        let cut = await copy(onto: "unit", resumes: false) {
            let count = run.commands.next()
            guard count >= 6 else { return false }
            run.isNoted.wait { $0 ? () : nil }
            return true
        }
        #expect(cut?.status == .unavailable)
        let record = try run.record()
        #expect(record.durable.list.total > 0)
        let other = await copy(onto: "other", resumes: true)
        #expect(other?.status == .inputMissing && other?.reason.contains("another unit") == true, "\(other!)")
        #expect(run.epoch()?.state == .open && run.epoch()?.isHeld == false)
        #expect(await copy(onto: "unit", resumes: true) == nil)
        #expect(
            RangeList(merging: run.copiedAgain.withLock { $0 })
                == RangeList.whole(UInt64(Self.size)).subtracting(record.durable.list))
        let unit = Array(FileManager.default.contents(atPath: run.world.path("unit")) ?? Data())
        #expect(Array(unit[..<Self.size]) == run.instants.withLock { $0["a"] })
    }

    @Test func whatCannotGoOnIsRefusedAndStays() async throws {
        let run = try CutOff()
        func refusal(_ change: (inout CopyRequest) -> Void = { _ in }) async -> AgentError? {
            do {
                _ = try await run.goOn(change)
                return nil
            } catch { return error as? AgentError }
        }
        #expect(await refusal()?.status == .inputMissing)
        #expect(run.epoch() == nil)
        _ = try await run.cutOff()
        let draft = try #require(run.world.names.first { $0.hasPrefix(".copy.partial-") })
        #expect(await refusal { $0.mode = .append }?.status == .usage)
        #expect(await refusal { $0.usedOnly = true }?.status == .usage)
        _ = try run.world.addVolume("b", size: Self.size, seed: 9)
        #expect(await refusal { $0.members[0].control = "b.ctl" }?.status == .inputMissing)
        // Somebody else holds the epoch, or makes the copy.
        let line = LocalLine(run.volume, run.world)
        _ = try line.call(SnapshotAdoptMethod.self, EpochParameters(epoch: try #require(run.epoch()?.uuid)))
        #expect(await refusal()?.status == .tryAgain)
        line.close()
        do {
            let left = try CopyDraft.resume(run.world.path("copy"), force: false) { _ in true }
            guard case .draft(let held, _) = left else { throw Absent() }
            #expect(await refusal()?.status == .tryAgain)
            held.keep()
        }
        let path = run.world.path(draft) + "/resume.json"
        let bytes = try #require(FileManager.default.contents(atPath: path))
        try flip(path)
        #expect(await refusal()?.status == .corrupt)
        try bytes.write(to: URL(fileURLWithPath: path))
        #expect(run.world.names.contains(draft) && run.epoch()?.state == .open)
        // Its bridge cannot be had: nothing has happened.
        run.world.state.withLock { $0.failAt = "bridge" }
        #expect(await refusal()?.status == .io)
        run.world.state.withLock { $0.failAt = nil }
        #expect(run.epoch()?.state == .open && run.epoch()?.isHeld == false)
        // And it goes on after all.
        #expect(await refusal() == nil)
        try expectRight(run.world.path("copy"), run.instants.withLock { $0["a"] })
    }

    private func flip(_ path: String) throws {
        var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
        bytes[bytes.count / 2] ^= 1
        try bytes.write(to: URL(fileURLWithPath: path))
    }

    @Test func withoutItsEpochItIsCopiedAnew() async throws {
        let run = try CutOff()
        _ = try await run.cutOff()
        try run.volume.volume.release(epoch: try #require(UUID(uuidString: try run.record().epoch.uuid)))
        let error = await #expect(throws: AgentError.self) { try await run.goOn() }
        #expect(error?.status == .tryAgain && error?.advice == CopyDraft.copyAnew)
        let before = run.volume.contents
        _ = try await run.world.copy(run.request)
        try expectRight(run.world.path("copy"), before)
        #expect(run.world.names == ["a.cache", "a.source", "copy"])
    }

    @Test func aNewCopyClearsWhatWasCutOff() async throws {
        let run = try CutOff()
        _ = try await run.cutOff()
        let before = run.volume.contents
        _ = try await run.world.copy(run.request)
        try expectRight(run.world.path("copy"), before)
        #expect(run.world.names == ["a.cache", "a.source", "copy"])
        #expect(
            run.world.state.withLock { $0.notices.contains { $0.contains("was left by a copy that died") } })
    }

    @Test(
        "A flush that fails fails the copy, and nothing of it counts",
        arguments: [StoreError.Code.io, .noSpace])
    func aFlushThatFails(code: StoreError.Code) async throws {
        let run = try CutOff()
        let error = await #expect(throws: AgentError.self) {
            try await run.world.copy(run.request) { bridge in
                bridge.commandBytes = Self.step
                bridge.flushFailure = StoreError(code)
                bridge.copied = {
                    // The rest comes when the flush has been tried.
                    run.commands.withLock { $0 += 1 }
                }
            }
        }
        #expect(error?.status == (code == .io ? .io : .cannotCreate), "\(error!)")
        #expect(run.world.names == ["a.cache", "a.source", "copy"])
        #expect(try AbandonedCopy.find(run.world.path("copy")) != nil)
        #expect(run.epoch()?.state == .released && !run.world.log.contains("snapshot.passed a"))
    }

    @Test func interruptedDuringAFlush() async throws {
        let run = try CutOff()
        let token = CancellationToken()
        let error = await #expect(throws: AgentError.self) {
            try await run.world.copy(run.request, cancellation: token) { bridge in
                bridge.commandBytes = Self.step
                bridge.flushing = { isCancelled in
                    token.cancel()
                    #expect(isCancelled())
                }
            }
        }
        #expect(error?.cause == .interrupted)
        #expect(run.world.names == ["a.cache", "a.source"] && run.epoch()?.state == .released)
    }
}
