import Blocks
import Foundation
import HostControl
import PhysicalCopy
import TestSupport
import Testing

@testable import Agent

/// What takes long is woken when it is in vain: slept through, it would take more than `scripts/test` allows.
@Suite(.serialized) struct PatienceTests {
    @Test("A worker that waits for its turn at a low rate is woken", arguments: [true, false])
    func pacing(isCancelled: Bool) async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("a", size: 5 << 20, seed: 1)
        let token = CancellationToken()
        // The second command may start after an hour.
        let request = CopyRequest(members: [world.member("a")], maximumRate: 256)
        let failure = AgentError(.io, doing: "copying", to: "", because: "the test says so")
        let error = await #expect(throws: AgentError.self) {
            try await world.copy(request, cancellation: token) { bridge in
                if isCancelled { bridge.copied = { token.cancel() } } else { bridge.copyFailure = failure }
            }
        }
        #expect(error?.status == (isCancelled ? .tryAgain : .io))
        withExtendedLifetime(volume) {}
    }

    private func made(in world: LocalWorld) async throws -> LocalVolume {
        let volume = try world.addVolume("a", size: 1 << 20, seed: 1)
        _ = try await world.copy(CopyRequest(members: [world.member("a")]))
        return volume
    }

    @Test func aRestoreIsCancelledInItsFlush() async throws {
        let world = LocalWorld()
        _ = try await made(in: world)
        let token = CancellationToken()
        let isTold = Monitor(false)
        let error = await #expect(throws: AgentError.self) {
            try await world.restore(
                RestoreRequest(copy: world.path("copy"), destination: world.path("restored")),
                cancellation: token
            ) { bridge in
                bridge.flushing = { isCancelled in
                    token.cancel()
                    isTold.withLock { $0 = isCancelled() }
                }
            }
        }
        #expect(isTold.withLock { $0 })
        #expect(error?.cause == .interrupted && error?.status == .tryAgain)
        #expect(world.names == ["a.cache", "a.source", "copy"])
    }

    @Test func aLiveRestoreKeepsItsHostStoppedThroughALongFlush() async throws {
        let world = LocalWorld()
        let volume = try await made(in: world)
        let expected = volume.contents
        volume.scribble(3)
        let freezes = Monitor(0)
        let isRenewed = Monitor(false)
        world.state.withLock { state in
            state.restoreFreezeSeconds = 4
            state.before["volume.freeze a"] = { freezes.withLockAndNotify { $0 += 1 } }
        }
        let request = RestoreRequest(
            copy: world.path("copy"), destination: volume.sourcePath, force: true, host: "a.ctl")
        _ = try await world.restore(request) { bridge in
            bridge.flushing = { _ in
                // Longer than the freeze lasts by itself: time is what is tested.
                let renewed: Void? = freezes.wait(nanoseconds: 120_000_000_000) { $0 >= 5 ? () : nil }
                isRenewed.withLock { $0 = renewed != nil }
            }
        }
        #expect(isRenewed.withLock { $0 })
        #expect(volume.contents == expected)
        #expect(world.log.last == "volume.thaw a")
    }

    /// A host that thawed by itself, and a line that is lost, end what runs.
    @Test func aLiveRestoreEndsWithItsFreeze() async throws {
        let world = LocalWorld()
        let volume = try await made(in: world)
        let freezes = Monitor(0)
        world.state.withLock { state in
            state.restoreFreezeSeconds = 4
            state.before["volume.freeze a"] = {
                let count = freezes.withLockAndNotify { count in
                    count += 1
                    return count
                }
                if count == 2 { world.state.withLock { $0.losesLineAt = "volume.freeze a" } }
            }
        }
        let request = RestoreRequest(
            copy: world.path("copy"), destination: volume.sourcePath, force: true, host: "a.ctl")
        let error = await #expect(throws: AgentError.self) {
            try await world.restore(request) { bridge in
                bridge.flushing = { isCancelled in
                    // By the clock: a bridge can only be asked, again and again, whether it is cancelled.
                    let deadline = MonotonicClock.now + 120_000_000_000
                    while !isCancelled(), MonotonicClock.now < deadline { usleep(1_000) }
                }
            }
        }
        #expect(error?.status == .unavailable && error?.reason == "lost")
        #expect(world.state.withLock { $0.notices.contains { $0.contains("restored in part only") } })
    }

    @Test(
        "A freeze under the copy's own files is refused before anything is stopped",
        arguments: ["source", "cache", "copy", "control"])
    func freezeOfItsOwnFiles(what: String) async throws {
        let world = LocalWorld()
        let volume = try world.addVolume("a", size: 1 << 20, seed: 1)
        let place = ["source": volume.sourcePath, "cache": volume.cachePath, "copy": world.directory][what]
        world.state.withLock { $0.fileSystems = ["/x": 7, place ?? "a.ctl": 7] }
        var request = CopyRequest(members: [world.member("a")])
        request.freeze = ["/y", "/x"]
        request.preFreeze = "pre"
        request.postThaw = "post"
        let error = await #expect(throws: AgentError.self) { try await world.copy(request) }
        #expect(error?.status == .usage && error?.subject == "/x")
        #expect(error?.reason.contains(what) == true, "\(String(describing: error))")
        #expect(world.log == [])
        #expect(world.names == ["a.cache", "a.source"])
    }
}
