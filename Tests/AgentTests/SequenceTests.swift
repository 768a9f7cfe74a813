import Blocks
import Foundation
import Glibc
import HostControl
import PhysicalCopy
import SCSI
import TestSupport
import Testing

@testable import Agent

@Suite(.serialized) struct SequenceTests {
    private func open(_ location: DataLocation, _ writable: Bool) throws(CopyError) -> any BlockStore {
        guard case .path(let path) = location else { preconditionFailure() }
        do throws(AgentError) { return try LocalWorld.open(path, writable) } catch {
            throw CopyError(.missing, "open", "\(error)")
        }
    }

    private func contents(of copy: PhysicalCopy, _ size: Int) throws -> [UInt8] {
        let store = try copy.openVolume(open)
        return try store.bytes(at: 0, count: size)
    }

    @Test(
        "A copy of a volume that changes all the while is the volume as of the instant; restored as well",
        arguments: [Manifest.Mode.overlay, .append],
        [EpochDescription.Ending.endedBeforeCacheCopy, .endedAfterCacheCopy])
    func copies(mode: Manifest.Mode, ending: EpochDescription.Ending) async throws {
        for (seed, size) in [(1, 3_000_320), (2, 5_242_880), (3, 1_234_567)] {
            let world = LocalWorld()
            let volume = try world.addVolume("a", size: size, seed: UInt64(seed))
            let before = volume.contents
            // Everything that happens to the epoch comes after the instant.
            world.state.withLock { state in
                state.before["bridge"] = { volume.scribble(UInt64(seed)) }
                state.before["snapshot.end a"] = { volume.scribble(UInt64(seed) + 50) }
                state.before["snapshot.mark a"] = { volume.scribble(UInt64(seed) + 50) }
                state.before["thaw /mnt"] = { volume.scribble(UInt64(seed) + 100) }
            }
            let instant = Monitor<[UInt8]>(before)
            world.state.withLock { state in
                state.before["snapshot.begin a"] = { instant.withLock { $0 = volume.contents } }
            }
            let request = CopyRequest(
                members: [.init(control: "a.ctl", destination: world.path("copy"))], mode: mode,
                ending: ending,
                freeze: ["/mnt"])
            let outcome = try await world.copy(request)[0]
            #expect(outcome.originals > 0)
            let expected = instant.withLock { $0 }
            #expect(volume.contents != expected)
            do {
                let copy = try PhysicalCopy(outcome.copy)
                #expect(try contents(of: copy, size) == expected)
                #expect(try copy.verify(open).isClean)
            }
            #expect(
                volume.volume.status(
                    of: .init(source: "", cache: "", uris: [], socket: "")
                ).epoch?.state == .released)
            let restored = try await world.restore(
                RestoreRequest(copy: outcome.copy, destination: world.path("restored")))
            #expect(restored.originals == (mode == .append ? outcome.originals : 0))
            #expect(Array(FileManager.default.contents(atPath: world.path("restored")) ?? Data()) == expected)
            #expect(world.names == ["a.cache", "a.source", "copy", "restored"])
        }
    }

    @Test func orderOfAGroup() async throws {
        let world = LocalWorld()
        for (seed, name) in ["a", "b"].enumerated() {
            _ = try world.addVolume(name, size: 1 << 20, seed: UInt64(seed))
        }
        try FileManager.default.createDirectory(atPath: world.path("set"), withIntermediateDirectories: false)
        var request = CopyRequest(
            members: try CopyRequest.members(controls: ["a.ctl", "b.ctl"], directory: world.path("set")))
        request.freeze = ["/x", "/y"]
        request.preFreeze = "pre"
        request.postThaw = "post"
        let outcomes = try await world.copy(request)
        let quiescence = Array(world.log.drop { $0 == "bridge" }.prefix(12))
        #expect(
            quiescence == [
                "run pre", "freeze /x", "freeze /y", "volume.freeze a", "volume.freeze b", "snapshot.begin a",
                "snapshot.begin b", "volume.thaw b", "volume.thaw a", "thaw /y", "thaw /x", "run post",
            ])
        let manifests = try outcomes.map { try PhysicalCopy($0.copy).manifest }
        #expect(manifests[0].group != nil && manifests[0].group == manifests[1].group)
        #expect(manifests.map(\.frozen) == [["/x", "/y"], ["/x", "/y"]])
    }

    @Test(
        "Whatever fails, everything thaws, the epoch is released and nothing but the reason stays",
        arguments: [
            "run pre", "freeze /x", "freeze /y", "volume.freeze b", "snapshot.begin a", "snapshot.begin b",
            "volume.thaw a", "thaw /y", "run post", "snapshot.end a", "snapshot.end b", "cache.release b",
        ])
    func failures(at step: String) async throws {
        let world = LocalWorld()
        var volumes: [LocalVolume] = []
        for (seed, name) in ["a", "b"].enumerated() {
            volumes.append(try world.addVolume(name, size: 1 << 20, seed: UInt64(seed)))
        }
        var request = CopyRequest(
            members: ["a", "b"].map { .init(control: "\($0).ctl", destination: world.path("copy-\($0)")) })
        request.freeze = ["/x", "/y"]
        request.preFreeze = "pre"
        request.postThaw = "post"
        world.state.withLock { $0.failAt = step }
        let error = await #expect(throws: AgentError.self) { try await world.copy(request) }
        let log = world.log
        #expect(log.contains("run post"))
        for mountPoint in ["/x", "/y"] {
            let frozen = log.contains("freeze \(mountPoint)") && step != "freeze \(mountPoint)"
            #expect(log.contains("thaw \(mountPoint)") == frozen)
        }
        let wasInstituted = ["snapshot.end a", "snapshot.end b", "cache.release b"].contains(step)
        #expect(
            world.names == ["a.cache", "a.source", "b.cache", "b.source"]
                + (wasInstituted ? ["copy-a", "copy-b"] : []))
        for name in wasInstituted ? ["copy-a", "copy-b"] : [] {
            let left = try world.postMortem(name)
            #expect(left.reason == error?.description && left.exitStatus == error?.status.rawValue)
            #expect(left.bytesCopied >= 1 << 20 && left.secondsSinceInstitution >= 0)
        }
        for volume in volumes {
            let status = volume.volume.status(of: .init(source: "", cache: "", uris: [], socket: ""))
            // A thaw that was refused on purpose stays undone, and so does a release.
            if step != "volume.thaw \(volume.name)" { #expect(!status.isFrozen) }
            if step != "cache.release \(volume.name)", step != "snapshot.begin \(volume.name)" {
                #expect(status.epoch == nil || status.epoch?.state == .released)
            }
            _ = volume.volume.thaw()
        }
    }

    @Test func interruptedAnywhere() async throws {
        for step in ["run pre", "freeze /x", "snapshot.begin a", "thaw /x", "snapshot.end a"] {
            let world = LocalWorld()
            let volume = try world.addVolume("a", size: 1 << 20, seed: 1)
            let token = CancellationToken()
            world.state.withLock { $0.before[step] = { token.cancel() } }
            var request = CopyRequest(members: [.init(control: "a.ctl", destination: world.path("copy"))])
            request.freeze = ["/x"]
            request.preFreeze = "pre"
            let error = await #expect(throws: AgentError.self) {
                try await world.copy(request, cancellation: token)
            }
            #expect(error?.status == .tryAgain)
            #expect(world.names == ["a.cache", "a.source"])
            #expect(world.log.contains("freeze /x") == world.log.contains("thaw /x"))
            let epoch = volume.volume.status(of: .init(source: "", cache: "", uris: [], socket: "")).epoch
            #expect(epoch == nil || epoch?.state == .released)
        }
    }

    @Test("An epoch whose line was lost is released by another", arguments: [true, false])
    func aLostLine(comesBack: Bool) async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("a", size: 1 << 20, seed: 1)
        world.state.withLock { state in
            state.losesLineAt = "snapshot.end a"
            if !comesBack {
                state.before["snapshot.end a"] = { world.state.withLock { $0.refusesConnections = true } }
            }
        }
        let error = await #expect(throws: AgentError.self) {
            try await world.copy(CopyRequest(members: [world.member("a")]))
        }
        #expect(error?.status == .unavailable)
        let epoch = volume.volume.status(of: .init(source: "", cache: "", uris: [], socket: "")).epoch
        #expect(epoch?.state == (comesBack ? .released : .open))
        let notices = world.state.withLock { $0.notices }
        #expect(notices.count == (comesBack ? 0 : 1))
        #expect(notices.allSatisfy { $0.contains("epoch 1 of") && $0.contains("the next copy") })
    }

    @Test func aUnitIsNotOverwrittenUnasked() async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("a", size: 1 << 20, seed: 1)
        try Data(count: 16 << 20).write(to: URL(fileURLWithPath: world.path("unit")))
        func status(onto path: String, _ name: String, force: Bool) async -> AgentError.ExitStatus? {
            let address = BridgeAddress(host: "127.0.0.1", port: 1, targetName: "iqn.2026-01.net.example:a")
            let request = CopyRequest(
                members: [.init(control: "a.ctl", destination: world.path(name))],
                bridge: .standing(address, source: 0, cache: 1, copy: 2), force: force)
            do {
                _ = try await world.copy(request) {
                    $0.replace = [0: volume.sourcePath, 1: volume.cachePath, 2: path]
                }
                return nil
            } catch { return (error as? AgentError)?.status ?? .software }
        }
        #expect(await status(onto: world.path("unit"), "one", force: false) == nil)
        #expect(await status(onto: world.path("unit"), "two", force: false) == .cannotCreate)
        #expect(await status(onto: world.path("unit"), "two", force: true) == nil)
        // Another name of the source, and a clone of the cache, never.
        try FileManager.default.linkItem(atPath: volume.sourcePath, toPath: world.path("link"))
        try FileManager.default.copyItem(atPath: volume.cachePath, toPath: world.path("clone"))
        let before = volume.contents
        #expect(await status(onto: world.path("link"), "three", force: true) == .usage)
        #expect(await status(onto: world.path("clone"), "three", force: true) == .usage)
        #expect(volume.contents == before)
        #expect(!world.names.contains("three"))
    }

    @Test func aFullDiskIsCalledOne() async throws {
        let world = LocalWorld()
        _ = try world.addVolume("a", size: 1 << 20, seed: 1)
        // As SYNCHRONIZE CACHE or WRITE answers it, and EXTENDED COPY.
        for key in [SenseKey.dataProtect, .copyAborted] {
            let sense = SenseData(key, .spaceAllocationFailedWriteProtect)
            let full = Initiator.refused(0x02, sense, doing: "copying by", "unit 2")
            #expect(full.status == .cannotCreate)
            let error = await #expect(throws: AgentError.self) {
                try await world.copy(CopyRequest(members: [world.member("a")])) { $0.copyFailure = full }
            }
            #expect(error?.status == .cannotCreate)
            #expect(
                error?.description.hasPrefix("copying to \(world.path("copy")): no space left") == true)
        }
        for number in [ENOSPC, EDQUOT] {
            let full = AgentError.system(number, doing: "making", to: "x")
            #expect(full.status == .cannotCreate)
            #expect(full.namingFullDisk(doing: "copying to", to: "copy") == full, "it has its name")
        }
        #expect(AgentError(StoreError(.noSpace), doing: "writing", to: "x").status == .cannotCreate)
        #expect(world.names == ["a.cache", "a.source", "copy"])
        let left = try world.postMortem("copy")
        #expect(left.exitStatus == 73 && left.reason.contains("no space left"))
    }

    @Test func aFullCacheAbandonsTheCopy() async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("a", size: 4 << 20, seed: 1, cache: 64 << 10)
        world.state.withLock { $0.before["thaw /x"] = { volume.scribble(1) } }
        var request = CopyRequest(members: [.init(control: "a.ctl", destination: world.path("copy"))])
        request.freeze = ["/x"]
        let error = await #expect(throws: AgentError.self) { try await world.copy(request) }
        #expect(error?.status == .tryAgain)
        #expect(error?.reason.contains("void") == true)
        #expect(world.names == ["a.cache", "a.source", "copy"])
        let left = try world.postMortem("copy")
        #expect(left.exitStatus == 75 && left.reason == error?.description)
        #expect(left.epoch == 1 && UUID(uuidString: left.epochUUID) != nil)
        #expect(left.cacheCapacity > 0 && left.cacheUsed > left.cacheCapacity / 2)
        #expect(left.cacheUsed <= left.cacheCapacity && left.institutedAt < left.abandonedAt)

        // The next one replaces it unasked, and leaves nothing when it is interrupted instead.
        world.state.withLock { $0.before = [:] }
        request.freeze = []
        let token = CancellationToken()
        world.state.withLock { $0.before["snapshot.end a"] = { token.cancel() } }
        await #expect(throws: AgentError.self) { try await world.copy(request, cancellation: token) }
        #expect(try world.postMortem("copy") == left)
        world.state.withLock { $0.before = [:] }
        _ = try await world.copy(request)
        #expect(try PhysicalCopy(world.path("copy")).verify(open).isClean)
        #expect(world.names == ["a.cache", "a.source", "copy"])
    }

    @Test("A copy that fails leaves alone what it would have replaced")
    func aFailedReplacement() async throws {
        let world = LocalWorld()
        _ = try world.addVolume("a", size: 1 << 20, seed: 1)
        let request = CopyRequest(members: [world.member("a")], force: true)
        let first = try await world.copy(request)
        world.state.withLock { $0.failAt = "snapshot.end a" }
        await #expect(throws: AgentError.self) { try await world.copy(request) }
        #expect(try PhysicalCopy(world.path("copy")).manifest.uuid == first[0].uuid)
        #expect(world.names == ["a.cache", "a.source", "copy"])
    }

    @Test func aSecondCopyIsRefusedAndADeadOneCleared() async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("a", size: 1 << 20, seed: 1)
        let line = LocalLine(volume, world)
        _ = try line.call(SnapshotBeginMethod.self, Empty())
        let request = CopyRequest(members: [.init(control: "a.ctl", destination: world.path("copy"))])
        let error = await #expect(throws: AgentError.self) { try await world.copy(request) }
        #expect(error?.status == .tryAgain)
        line.close()
        _ = try await world.copy(request)
        #expect(world.state.withLock { $0.notices.count } == 1)
    }

    @Test func theWrongSourceIsNoticed() async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("a", size: 1 << 20, seed: 1)
        let other = try world.addVolume("b", size: 1 << 20, seed: 2)
        var collaborators = world.collaborators()
        collaborators.startPrivateBridge = { units, _ throws(AgentError) in
            var units = units
            units[0].path = other.sourcePath
            return try LocalBridge(units, world)
        }
        let request = CopyRequest(members: [.init(control: "a.ctl", destination: world.path("copy"))])
        let made = collaborators
        let error = await #expect(throws: AgentError.self) {
            _ = try await onThread {
                try CopySequence(request, made, cancellation: CancellationToken(), observer: world).run()
            }
        }
        #expect(error?.status == .inputMissing)
        #expect(world.names == ["a.cache", "a.source", "b.cache", "b.source", "copy"])
        #expect(try world.postMortem("copy").phase == "checking the source")
        withExtendedLifetime(volume) {}
    }

    /// A clone that nobody could tell from the source by looking here and there: nine bytes differ.
    @Test("A clone of the source is noticed, by its identity or by its contents", arguments: [true, false])
    func aCloneIsNoticed(isNamed: Bool) async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("a", size: 12 << 20, seed: 1)
        var bytes = volume.contents
        for place in 0..<9 { bytes[5_000_003 + place] ^= 0xFF }
        try Data(bytes).write(to: URL(fileURLWithPath: world.path("clone")))
        let error = await #expect(throws: AgentError.self) {
            try await world.copy(CopyRequest(members: [world.member("a")])) { bridge in
                bridge.replace = [0: world.path("clone")]
                bridge.hidesStorage = !isNamed
            }
        }
        #expect(error?.status == .inputMissing)
        #expect(error?.reason.contains(isNamed ? "another file" : "its contents at") == true)
        #expect(world.names == ["a.cache", "a.source", "clone", "copy"])
    }

    @Test("A bridge that does not copy what it shows is noticed")
    func aWrongCopyIsNoticed() async throws {
        let world = LocalWorld()
        _ = try world.addVolume("a", size: 3 << 20, seed: 1)
        let error = await #expect(throws: AgentError.self) {
            try await world.copy(CopyRequest(members: [world.member("a")])) { $0.flipsAfterCopy = 2_000_001 }
        }
        #expect(error?.status == .corrupt)
        #expect(error?.reason.contains("its contents at") == true)
        #expect(world.names == ["a.cache", "a.source", "copy"])
        #expect(try world.postMortem("copy").phase == "checking the copy")
    }

    @Test func restoreOntoWhatIsThere() async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("a", size: 1 << 20, seed: 1)
        let expected = volume.contents
        let request = CopyRequest(
            members: [.init(control: "a.ctl", destination: world.path("copy"))], mode: .append)
        _ = try await world.copy(request)
        try Data([1, 2]).write(to: URL(fileURLWithPath: world.path("small")))
        func status(_ name: String, force: Bool, host: String? = nil) async -> AgentError.ExitStatus? {
            do {
                _ = try await world.restore(
                    RestoreRequest(
                        copy: world.path("copy"), destination: world.path(name), force: force, host: host))
                return nil
            } catch { return (error as? AgentError)?.status }
        }
        #expect(await status("small", force: false) == .cannotCreate)
        #expect(await status("small", force: true) == .cannotCreate)
        #expect(await status("copy", force: true) == .cannotCreate)
        #expect(await status("copy/data.img", force: true) == .usage)
        #expect(await status("absent/new", force: false) == .cannotCreate)
        volume.scribble(9)
        #expect(volume.contents != expected)
        // Onto the live source, with the host standing still; a new file has no host.
        #expect(await status("new", force: true, host: "a.ctl") == .usage)
        #expect(await status("a.cache", force: true, host: "a.ctl") == .usage)
        #expect(await status("a.source", force: true, host: "a.ctl") == nil)
        #expect(volume.contents == expected)
        #expect(world.log.suffix(3) == ["volume.freeze a", "bridge", "volume.thaw a"])
        #expect(world.names == ["a.cache", "a.source", "copy", "small"])
    }

    @Test("An epoch in the freeze of a live restore took what is restored in part", arguments: [false, true])
    func anEpochDuringALiveRestore(isOver: Bool) async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("a", size: 1 << 20, seed: 1)
        _ = try await world.copy(
            CopyRequest(members: [.init(control: "a.ctl", destination: world.path("copy"))]))
        // As by a host whose freezes belong to nobody.
        world.state.withLock { state in
            state.before["bridge"] = {
                do {
                    _ = volume.volume.thaw()
                    let epoch = try volume.volume.begin()
                    try volume.volume.freeze(timeout: 100)
                    if isOver { try volume.volume.release(epoch: try #require(UUID(uuidString: epoch.uuid))) }
                } catch { Issue.record("\(error)") }
            }
        }
        let error = await #expect(throws: AgentError.self) {
            try await world.restore(
                RestoreRequest(
                    copy: world.path("copy"), destination: volume.sourcePath, force: true, host: "a.ctl"))
        }
        #expect(error?.status == .tryAgain && error?.reason.contains("epoch") == true)
        _ = volume.volume.thaw()
    }
}
