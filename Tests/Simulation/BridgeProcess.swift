import Agent
import AsyncIO
import Blocks
import Bridge
import Logging

/// `outboard bridge` in the simulation: the real device, copy manager and engine over simulated disks.
final class BridgeProcess: @unchecked Sendable {  // touched by whose turn it is only
    let process = SimulatedProcess("bridge")
    private(set) var device: BridgeDevice?
    private(set) var refusal: String?
    private let world: World

    init(_ world: World, _ units: [PrivateUnit]) {
        self.world = world
        process.keep(self)
        process.whenItEnds { world.scheduler.wake(world.place) }
        world.scheduler.start(in: process) { [self] in
            open(units)
            world.scheduler.wake(world.place)
        }
    }

    /// It may be killed before it is there.
    func waitUntilItServes() {
        while device == nil, process.isAlive { _ = world.scheduler.wait(at: world.place, until: nil) }
    }

    private func open(_ units: [PrivateUnit]) {
        do {
            var files: [(unit: BridgeUnit, file: StorageFile)] = []
            for unit in units {
                var made = BridgeUnit(number: unit.number, path: unit.path, readOnly: unit.isReadOnly)
                made.isLocked = unit.isLocked
                guard let disk = world.disk(at: unit.path) else {
                    refusal = "there is no \(unit.path)"
                    return process.end()
                }
                files.append(
                    (
                        made,
                        try world.calls.open(
                            disk, access: unit.isReadOnly ? .readOnly : .readWrite,
                            mode: world.plan.isDirect ? .direct : .pageCache,
                            lock: unit.isReadOnly || !unit.isLocked ? .none : .exclusive)
                    ))
            }
            device = try BridgeDevice(
                files: files, chunkSize: 16 << 10, system: world.calls.engineCalls,
                logger: Logger(label: "bridge") { _ in SwiftLogNoOpLogHandler() })
        } catch {
            refusal = "\(error)"
            process.end()
        }
    }
}
