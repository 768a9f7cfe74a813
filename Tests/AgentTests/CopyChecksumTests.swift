import Blocks
import Foundation
import HostControl
import PhysicalCopy
import TableOfContents
import TestSupport
import Testing

@testable import Agent

/// Where a copy's checksums come from: from the bridge what passed, from the copy what it does not know.
@Suite struct CopyChecksumTests {
    private static let size = 5 << 20

    private func open(_ location: DataLocation, _ writable: Bool) throws(CopyError) -> any BlockStore {
        guard case .path(let path) = location else { preconditionFailure("not here") }
        do throws(AgentError) { return try LocalWorld.open(path, writable) } catch { throw error.copyError }
    }

    /// The copy is whole, and has a checksum for each of its chunks.
    private func expectWhole(_ world: LocalWorld, _ name: String = "copy") throws {
        let copy = try PhysicalCopy(world.path(name))
        #expect(try copy.verify(open).isClean)
        #expect(copy.manifest.formatVersion == 2)
        let sums = try copy.dataChecksums()
        #expect(sums.sliceSize == 65_536 && sums.values.count == Self.size / 65_536)
    }

    @Test(arguments: [Manifest.Mode.overlay, .append])
    func whatPassesIsNotReadBack(mode: Manifest.Mode) async throws {
        let world = LocalWorld()
        _ = try world.addVolume("v", size: Self.size, seed: 1)
        let outcome = try await world.copy(
            CopyRequest(members: [world.member("v")], mode: mode, wantsToc: false))[0]
        #expect(outcome.readBackBytes == 0)
        try expectWhole(world)
    }

    /// Chunks of copy-on-write that are smaller than a checksum's leave it unknown: it is read back, and nothing else is.
    /// In append mode they go elsewhere.
    @Test(arguments: [Manifest.Mode.overlay, .append])
    func whatIsOverlaidInPartIsReadBack(mode: Manifest.Mode) async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("v", size: Self.size, seed: 2)
        world.state.withLock {
            // Behind the instant, and before a byte is copied: what the copy has passed has no original any more.
            $0.before["open snapshot"] = {
                do { try volume.volume.write([UInt8](repeating: 7, count: 100), at: 65_536 + 20_000) } catch {
                    preconditionFailure("\(error)")
                }
            }
        }
        let outcome = try await world.copy(
            CopyRequest(members: [world.member("v")], mode: mode, wantsToc: false))[0]
        #expect(outcome.originals == 1)
        #expect(outcome.readBackBytes == (mode == .overlay ? 65_536 : 0))
        try expectWhole(world)
    }

    /// A bridge that is not ours, or keeps none.
    @Test func allIsReadBackWhereTheBridgeKeepsNone() async throws {
        let world = LocalWorld()
        _ = try world.addVolume("v", size: Self.size, seed: 3)
        let request = CopyRequest(members: [world.member("v")], wantsToc: false)
        let outcome = try await world.copy(request) { _ in }[0]
        #expect(outcome.readBackBytes == UInt64(Self.size))
        try expectWhole(world)
    }

    /// What was not copied is holes, which need not be read to be known; at their edges chunks are in use in part.
    @Test func whatIsNotCopiedIsZeros() async throws {
        let world = LocalWorld()
        _ = try world.addVolume("v", size: Self.size, seed: 4)
        let used = [ByteRange(offset: 0, count: 65_536), ByteRange(offset: 1 << 20, count: 200_704)]
        world.state.withLock {
            $0.contents = [
                .fileSystem(
                    FileSystemDescription(
                        index: 0, kind: .ext4, range: ByteRange(offset: 0, count: UInt64(Self.size)),
                        isListed: true, knowsUse: true)), .used(used), .end,
            ]
        }
        _ = try await world.copy(
            CopyRequest(members: [world.member("v")], usedOnly: true, wantsToc: false))
        try expectWhole(world)
        #expect(try PhysicalCopy(world.path("copy")).manifest.usedBytes == 65_536 + 200_704)
    }

    /// A medium that does not give back what was written: found at once where all is read back, and by the first verify
    /// else, with its place.
    @Test(arguments: [true, false]) func aLyingMediumIsFound(readsBack: Bool) async throws {
        let world = LocalWorld()
        _ = try world.addVolume("v", size: Self.size, seed: 5)
        let place = 3 * 65_536 + 17
        world.state.withLock {
            // The copy is flushed by then.
            $0.before["cache.release v"] = { [directory = world.directory] in
                let draft = try? FileManager.default.contentsOfDirectory(atPath: directory)
                    .first { $0.hasPrefix(".copy.partial-") }
                guard let draft, let file = FileHandle(forUpdatingAtPath: "\(directory)/\(draft)/data.img")
                else {
                    Issue.record("no draft")
                    return
                }
                do {
                    try file.seek(toOffset: UInt64(place))
                    let byte = try file.read(upToCount: 1)?.first ?? 0
                    try file.seek(toOffset: UInt64(place))
                    try file.write(contentsOf: [~byte])
                } catch { Issue.record(error) }
            }
        }
        var request = CopyRequest(members: [world.member("v")], wantsToc: false)
        request.readsBack = readsBack
        if readsBack {
            let error = await #expect(throws: AgentError.self) { try await world.copy(request) }
            #expect(error?.status == .corrupt && error?.subject == "\(3 * 65_536)")
            #expect(!world.names.contains { $0.hasPrefix(".copy.partial") })
            return
        }
        #expect(try await world.copy(request)[0].readBackBytes == 0)
        let findings = try PhysicalCopy(world.path("copy")).verify(open).findings
        #expect(findings.map(\.chunk) == [3] && findings.map(\.offset) == [3 * 65_536])
    }

    @Test func allIsReadBackWhereThatIsAskedFor() async throws {
        let world = LocalWorld()
        _ = try world.addVolume("v", size: Self.size, seed: 6)
        var request = CopyRequest(members: [world.member("v")], wantsToc: false)
        request.readsBack = true
        #expect(try await world.copy(request)[0].readBackBytes == UInt64(Self.size))
        try expectWhole(world)
    }
}
