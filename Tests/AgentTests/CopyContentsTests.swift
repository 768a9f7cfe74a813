import Blocks
import Foundation
import PhysicalCopy
import TableOfContents
import TestSupport
import Testing

@testable import Agent

/// What a copy sequence does with what readers say of the volume.
@Suite struct CopyContentsTests {
    private static let size = 4 << 20
    private static let used = [
        ByteRange(offset: 0, count: 40_960), ByteRange(offset: 1 << 20, count: 200_000),
        ByteRange(offset: (4 << 20) - 8192, count: 8192),
    ]

    private static func contents(_ used: [ByteRange]) -> [VolumeRecord] {
        [
            .fileSystem(
                FileSystemDescription(
                    index: 0, kind: .ext4, range: ByteRange(offset: 0, count: UInt64(size)), isListed: true,
                    knowsUse: true)), .used(used), .end,
        ]
    }

    private func data(_ world: LocalWorld) -> [UInt8] {
        Array(FileManager.default.contents(atPath: world.path("copy/data.img")) ?? Data())
    }

    /// Overwritten while it is copied, in use or not: what is in use is as of the instant, all else is holes.
    @Test(arguments: [Manifest.Mode.overlay, .append])
    func copiesWhatIsInUse(mode: Manifest.Mode) async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("v", size: Self.size, seed: 1)
        let before = volume.contents
        world.state.withLock {
            $0.contents = Self.contents(Self.used)
            $0.before["read use"] = { volume.scribble(2) }
            $0.before["snapshot.end v"] = { volume.scribble(3) }
        }
        let request = CopyRequest(members: [world.member("v")], mode: mode, usedOnly: true, wantsToc: false)
        let outcome = try #require(try await world.copy(request).first)
        let map = RangeList([
            ByteRange(offset: 0, count: 40_960), ByteRange(offset: 1 << 20, count: 200_704),
            ByteRange(offset: (4 << 20) - 8192, count: 8192),
        ])
        #expect(outcome.usedBytes == map.total && outcome.toc == nil)
        let copy = try PhysicalCopy(world.path("copy"))
        #expect(copy.manifest.usedBytes == map.total && copy.manifest.toc == nil)
        let opener: DataOpener = { location, _ throws(CopyError) in
            guard case .path(let path) = location else { preconditionFailure("not here") }
            do throws(AgentError) { return try LocalWorld.open(path, false) } catch { throw error.copyError }
        }
        let found = try copy.openVolume(opener).bytes(at: 0, count: Self.size)
        for range in map.ranges {
            #expect(found[Int(range.offset)..<Int(range.end)] == before[Int(range.offset)..<Int(range.end)])
        }
        let stored = data(world)
        for chunk in stride(from: 0, to: UInt64(Self.size), by: 16384)
        where !map.overlaps(ByteRange(offset: chunk, count: 16384)) {
            #expect(stored[Int(chunk)..<Int(chunk) + 16384].allSatisfy { $0 == 0 })
        }
        #expect(try copy.verify(opener).isClean)
    }

    @Test func inDoubtAllIsCopiedAndPeopleAreTold() async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("v", size: Self.size, seed: 4)
        let before = volume.contents
        world.state.withLock {
            $0.contents = Self.contents(Self.used)
            $0.contents.insert(.problem(ReadProblem(reason: "a bad bitmap")), at: 2)
        }
        let request = CopyRequest(members: [world.member("v")], usedOnly: true, wantsToc: false)
        _ = try await world.copy(request)
        #expect(data(world) == before)
        #expect(world.state.withLock { $0.notices }.contains { $0.contains("a bad bitmap") })
    }

    @Test func tableOfContentsIsThereAndNamed() async throws {
        let world = LocalWorld()
        _ = try world.addVolume("v", size: Self.size, seed: 5)
        world.state.withLock { $0.contents = Self.contents([]) }
        let outcome = try #require(
            try await world.copy(CopyRequest(members: [world.member("v")])).first)
        #expect(outcome.toc?.counts.fileSystems == 1)
        let copy = try PhysicalCopy(world.path("copy"))
        let path = try #require(copy.tocPath)
        #expect(try TableOfContentsFile.describe(path) == copy.manifest.toc)
        #expect(world.log.firstIndex(of: "read files")! < world.log.firstIndex(of: "snapshot.end v")!)
    }

    /// It is worth less than the copy.
    @Test func withoutOneTheCopyIsCompleteNevertheless() async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("v", size: Self.size, seed: 6)
        let before = volume.contents
        world.state.withLock { $0.failAt = "read files" }
        let outcome = try #require(
            try await world.copy(CopyRequest(members: [world.member("v")])).first)
        #expect(outcome.toc == nil && data(world) == before)
        #expect(try PhysicalCopy(world.path("copy")).manifest.toc == nil)
        #expect(world.state.withLock { $0.notices }.contains { $0.contains("outboard toc") })
        #expect(
            try FileManager.default.contentsOfDirectory(atPath: world.path("copy")).sorted() == [
                "checksums", "data.img", "manifest.json",
            ])
    }

    /// One that could be tried again costs no copy, either.
    @Test func noProcessForAReader() async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("v", size: Self.size, seed: 8)
        let before = volume.contents
        var collaborators = world.collaborators()
        collaborators.readVolume = { _, _, _, _, _ throws(AgentError) in
            throw AgentError(.tryAgain, doing: "starting", to: "a reader", because: "no process is left")
        }
        let outcomes = try await onThread { [collaborators] in
            try CopySequence(
                CopyRequest(members: [world.member("v")]), collaborators, cancellation: CancellationToken(),
                observer: world
            ).run()
        }
        #expect(outcomes.first?.toc == nil && data(world) == before)
        #expect(world.state.withLock { $0.notices }.contains { $0.contains("no process is left") })
    }

    /// A reader that never comes to an end while applications fill the cache.
    @Test func oneThatTakesTooLongIsGivenUp() async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("v", size: Self.size, seed: 7, cache: 4 << 20)
        let before = volume.contents
        var collaborators = world.collaborators()
        collaborators.readVolume = { _, _, _, _, token throws(AgentError) in
            // Fills the cache to more than three quarters, and waits to be given up.
            for offset in stride(from: 0, to: 180 * 16384, by: 16384) {
                do throws(StoreError) { try volume.volume.write([1], at: UInt64(offset)) } catch {
                    throw AgentError(error, doing: "writing", to: "the volume")
                }
            }
            while !token.isCancelled { try CancellationToken().pause(nanoseconds: 1_000_000) }
            throw CancellationToken.interrupted
        }
        let outcomes = try await onThread { [collaborators] in
            try CopySequence(
                CopyRequest(members: [world.member("v")]), collaborators, cancellation: CancellationToken(),
                observer: world
            ).run()
        }
        #expect(outcomes.first?.toc == nil && data(world) == before)
        #expect(world.state.withLock { $0.notices }.contains { $0.contains("about to be full") })
    }
}
