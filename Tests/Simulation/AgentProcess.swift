import Agent
import Blocks
import HostControl
import PhysicalCopy
import SCSI
import SimulatedFiles

/// `outboard copy` in the simulation: the real sequence over a simulated file system, control line and bridge.
final class AgentProcess: @unchecked Sendable {  // touched by whose turn it is only
    let process = SimulatedProcess("agent")
    /// Of its copy.
    let name: String
    /// What was under that name before; nil: that could not be seen, or it is no group's.
    let before: World.GroupState?
    private let world: World
    private let user: SimulatedFileSystem.User
    let cancellation = CancellationToken()
    private(set) var bridges: [BridgeProcess] = []
    private(set) var result: Result<[CopyOutcome], AgentError>?
    private(set) var notices: [String] = []

    init(_ world: World, _ name: String, _ request: CopyRequest) {
        self.world = world
        self.name = name
        before = world.groupState(name)
        user = world.files.makeUser(Int32(process.number))
        process.keep(self)
        process.whenItEnds { [self] in
            user.end()
            for bridge in bridges { world.endLater(bridge) }
        }
        world.scheduler.start(in: process) { [self] in
            let sequence = CopySequence(request, collaborators(), cancellation: cancellation, observer: self)
            do throws(AgentError) { result = .success(try sequence.run()) } catch { result = .failure(error) }
            world.agentEnded(self)
            process.end()
            world.scheduler.wake(world.place)
        }
    }

    private func collaborators() -> Collaborators {
        var made = world.collaborators(for: user)
        made.startPrivateBridge = { [self] units, _ throws(AgentError) in
            let bridge = BridgeProcess(world, units)
            bridges.append(bridge)
            bridge.waitUntilItServes()
            guard bridge.device != nil else {
                throw AgentError(
                    .unavailable, doing: "starting", to: "a bridge",
                    because: bridge.refusal ?? "it was killed",
                    cause: .disconnected)
            }
            return SimulatedBridge(world, bridge, isPrivate: true)
        }
        return made
    }
}

extension World {
    /// A bridge ends when the agent does for which it runs, a little later.
    func endLater(_ bridge: BridgeProcess) {
        guard bridge.process.isAlive else { return }
        scheduler.start(in: main) { [self] in
            scheduler.sleep(draw(5_000_000))
            bridge.process.end()
        }
    }

    /// What sequences need, but for a bridge.
    func collaborators(for user: SimulatedFileSystem.User) -> Collaborators {
        let world = self
        var made = Collaborators(executable: "") { [world] path, writable throws(AgentError) in
            guard let disk = world.disk(at: path) else {
                throw AgentError(.inputMissing, doing: "opening", to: path, because: "there is none")
            }
            do {
                return try world.calls.open(
                    disk, access: writable ? .readWrite : .readOnly, mode: .pageCache)
            } catch { throw AgentError(.inputMissing, doing: "opening", to: path, because: "\(error)") }
        }
        let calls = world.files.calls(for: user)
        made.files = world.defect?.wrap(calls) ?? calls
        made.connectHost = { [world] path throws(AgentError) in
            guard let host = world.volume(at: path)?.host, host.isServing else {
                throw AgentError(
                    .unavailable, doing: "connecting to the host at", to: path,
                    because: "nobody serves the socket",
                    cause: .disconnected)
            }
            let client = HostClient(path: path, over: SimulatedLine(world, host))
            return world.defect?.wrap(client) ?? client
        }
        made.openSnapshot = { [world] status throws(AgentError) in
            let volume = world.volumes.first { $0.uuid.uuidString == status.volumeUUID }
            guard let host = volume?.host, host.isServing else {
                throw AgentError(.unavailable, doing: "opening", to: "the snapshot", because: "no host")
            }
            return SnapshotClient(host)
        }
        made.storageName = { [world] path in
            world.disk(at: path).flatMap { StorageName(path: $0.path) }
        }
        made.checkpointNanoseconds = world.plan.checkpoint
        made.realTime = { [world] in Int64(world.scheduler.time) }
        return made
    }
}

extension AgentProcess: SequenceObserver {
    func progress(_ progress: SequenceProgress) {}
    func notice(_ text: String) { notices.append(text) }
}

/// The `snapshot` export as a client has it.
final class SnapshotClient: ReadOnlyStore, @unchecked Sendable {
    private let host: HostProcess
    let size: UInt64
    let capabilities: StoreCapabilities = []

    init(_ host: HostProcess) {
        self.host = host
        size = UInt64(host.owner.source.bytes.count)
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        guard let answer = host.readSnapshot(at: offset, count: buffer.count) else { throw StoreError(.gone) }
        buffer.copyBytes(from: try answer.get())
    }
}
