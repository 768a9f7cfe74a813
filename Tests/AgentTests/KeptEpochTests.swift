import Blocks
import Foundation
import HostControl
import PhysicalCopy
import TestSupport
import Testing

@testable import Agent

/// Copies whose epoch stays open, so that they can be compared with the logical snapshot.
@Suite struct KeptEpochTests {
    /// Whether something of the copy in the making is noted as durable.
    private static func isNoted(_ directory: String) -> Bool {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        guard let draft = names.first(where: { $0.hasPrefix(".copy.partial-") }),
            let bytes = FileManager.default.contents(atPath: "\(directory)/\(draft)/resume.json"),
            let record = try? JSONDecoder().decode(ResumeRecord.self, from: bytes)
        else { return false }
        return record.durable.list.total > 0
    }

    /// The host is told of nothing that was passed, so that it keeps all originals.
    @Test(arguments: [true, false]) func whatIsKeptIsNotPassed(keeps: Bool) async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("v", size: 4 << 20, seed: 7)
        var request = CopyRequest(
            members: [world.member("v")], ending: .endedAfterCacheCopy, wantsToc: false)
        request.keepsEpoch = keeps
        let (commands, isNoted) = (Monitor(0), Monitor(false))
        world.state.withLock {
            $0.named = { [directory = world.directory] name in
                guard name == ResumeRecord.fileName, Self.isNoted(directory) else { return }
                isNoted.withLockAndNotify { $0 = true }
            }
        }
        _ = try await world.copy(request) { bridge in
            bridge.commandBytes = 256 << 10
            bridge.copied = {
                // A command counts when it has ended: some have by now. Who notes tells the host right then.
                if commands.next() == 8 { isNoted.wait { $0 ? () : nil } }
            }
        }
        #expect(world.log.contains("passed extents of v") == !keeps)
        #expect(world.log.contains("cache.release v") == !keeps)
        let epoch = try #require(volume.volume.epochStatus)
        #expect(epoch.state == (keeps ? .open : .released) && !epoch.isHeld)
        guard keeps else { return }
        let released = try EpochRelease.run(control: "v.ctl", epoch: nil, world.collaborators())
        #expect(released?.uuid == epoch.uuid && volume.volume.epochStatus?.state == .released)
        #expect(try EpochRelease.run(control: "v.ctl", epoch: nil, world.collaborators()) == nil)
    }
}
