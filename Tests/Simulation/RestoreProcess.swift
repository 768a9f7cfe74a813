import Agent
import Blocks
import SimulatedFiles

/// `outboard restore volume` and `outboard restore extents` in the simulation: the real sequence, from a copy to a unit of a
/// standing bridge, which runs as long as it does.
final class RestoreProcess: @unchecked Sendable {  // touched by whose turn it is only
    let process = SimulatedProcess("restore")
    let bridge: BridgeProcess
    let request: RestoreRequest
    let cancellation = CancellationToken()
    private(set) var result: Result<RestoreOutcome, AgentError>?
    private let world: World
    private let user: SimulatedFileSystem.User

    /// - Parameter units: of the bridge; the destination is 0.
    init(_ world: World, _ request: RestoreRequest, _ units: [PrivateUnit]) {
        self.world = world
        self.request = request
        user = world.files.makeUser(Int32(process.number))
        bridge = BridgeProcess(world, units)
        process.keep(self)
        process.whenItEnds { [self] in
            user.end()
            world.endLater(bridge)
        }
        world.scheduler.start(in: process) { [self] in
            bridge.waitUntilItServes()
            world.restoreBegins(self)
            let sequence = RestoreSequence(
                request, collaborators(), cancellation: cancellation, observer: SilentObserver())
            do throws(AgentError) { result = .success(try sequence.run()) } catch { result = .failure(error) }
            world.restoreEnded(self)
            process.end()
            world.scheduler.wake(world.place)
        }
    }

    private func collaborators() -> Collaborators {
        var made = world.collaborators(for: user)
        made.connectBridge = { [world, bridge] address, _ throws(AgentError) in
            guard bridge.process.isAlive, bridge.device != nil else {
                throw AgentError(
                    .unavailable, doing: "connecting to", to: "\(address)",
                    because: bridge.refusal ?? "it was killed", cause: .disconnected)
            }
            return SimulatedBridge(world, bridge, isPrivate: false)
        }
        return made
    }
}

private final class SilentObserver: SequenceObserver {
    func progress(_ progress: SequenceProgress) {}
    func notice(_ text: String) {}
}
