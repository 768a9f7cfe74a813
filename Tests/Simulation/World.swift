import AsyncIO
import Blocks
import Foundation
import Host
import HostControl
import OriginalImage
import SimulatedFiles
import TestSupport

/// One run: disks, processes, applications, what befalls them, and the judge of what is left.
final class World: @unchecked Sendable {  // touched by whose turn it is only
    let seed: UInt64
    let plan: Plan
    let defect: SeededDefect?
    let scheduler: Scheduler
    let main: SimulatedProcess
    private(set) var boot = UUID()
    private(set) var volumes: [SimulatedVolume] = []
    private(set) var dependentWriter: DependentWriter?
    let files: SimulatedFileSystem
    private(set) var calls: DiskCalls!
    var agent: AgentProcess?
    var restore: RestoreProcess?
    let site: RestoreSite
    var stopsApplications = false
    /// At most so many nanoseconds lie between an answer and an application's next request.
    /// More when an event, a time-out for instance, takes long: else most of a run's turns would be theirs.
    var thinkTime: UInt64 { scheduler.turnsTaken - turnsAtEvent > 5_000 ? 150_000_000 : 3_000_000 }
    var turnsAtEvent = 0
    /// While nothing is judged that they could change: their turns would be most of a run's.
    var pausesApplications = false
    private(set) var coverage = Coverage()
    private(set) var failure: String?
    /// Of each epoch.
    private(set) var instants: [UUID: SimulatedVolume.Instant] = [:]
    /// The copies that somebody was told to be complete, by their directories.
    var promises: [String: String] = [:]
    /// Calls that failed because a simulated device did, of all that a copy uses.
    var deviceFailures: Int { volumes.reduce(copyFailures) { $0 + $1.failures } }
    var copyFailures = 0
    /// The device of the copies.
    var copyFaults = DiskFaults.none
    var losesLines = false
    /// The copy that its agent's or its bridge's death has cut off last.
    var interrupted: String?
    /// Names of which the last that happened is a copy that somebody was told to be complete.
    var settled: Set<String> = []
    /// How many calls of the file system integrate still makes before it stands still; below 0: it does not.
    var callsOfIntegrate = -1
    static let integrate = "integrate"
    /// Files are looked at by the judge: at once, and without faults.
    var isJudging = false
    private var numbers = 1
    /// Woken when something has started or ended.
    let place = UnsafeMutableRawPointer.allocate(byteCount: 1, alignment: 1)

    init(seed: UInt64, defect: SeededDefect?) {
        self.seed = seed
        self.defect = defect
        SimulatedProcess.count = 0
        plan = Plan(seed: seed)
        main = SimulatedProcess("main")
        scheduler = Scheduler(seed: seed, main: main)
        files = SimulatedFileSystem(seed: seed)
        site = RestoreSite(size: plan.sectors * 512 / 4096 * 4096 + 8192)
        volumes = (plan.isGroup ? ["a", "b"] : ["volume"]).map { SimulatedVolume(self, name: $0) }
        if plan.isGroup {
            dependentWriter = DependentWriter(self, volumes[0], volumes[1], sector: plan.sectors - 1)
        }
        boot = .random(using: &scheduler.random)
        calls = DiskCalls(self)
        prepareFiles()
    }

    deinit { place.deallocate() }

    private func prepareFiles() {
        let calls = files.calls(for: files.makeUser(1))
        guard case .success = calls.mkdirat(-100, "/copies", 0o755) else { preconditionFailure() }
        files.synchronize()
        files.lacksRenameFlags = plan.lacksRenameFlags
        files.makeContents = { [unowned self] path in
            guard path.hasSuffix("data.img") else { return SimulatedBytes() }
            let disk = SimulatedDisk(.copy)
            disk.faults = copyFaults
            disk.room = { [unowned self] in files.availableBytes }
            return disk
        }
        files.willPerform = { [unowned self] _ in
            if !isJudging { scheduler.sleep(5_000 + draw(100_000)) }
            guard scheduler.process.name == Self.integrate, callsOfIntegrate >= 0 else { return }
            callsOfIntegrate -= 1
            guard callsOfIntegrate < 0 else { return }
            scheduler.wake(place)
            scheduler.sleep(1_000_000_000)
        }
        files.fault = { [unowned self] operation in
            guard !isJudging else { return nil }
            let chance: Double
            switch operation.kind {
            case .pread: chance = copyFaults.read
            case .fsync: chance = copyFaults.flush
            case .openat, .pwrite, .ftruncate, .mkdirat, .renameat, .linkat: chance = copyFaults.write
            default: return nil
            }
            guard chance > 0, Double(draw(1 << 20)) / Double(1 << 20) < chance else { return nil }
            copyFailures += 1
            mark(
                operation.kind == .fsync
                    ? .copyFlushError : operation.kind == .pread ? .copyReadError : .copyWriteError)
            return 5
        }
    }

    // MARK: For all

    func draw(_ bound: UInt64) -> UInt64 { scheduler.random.next() % bound }
    func mark(_ site: FaultSite) { coverage.mark(site) }
    func nextNumber() -> Content {
        numbers += 1
        return numbers
    }

    static let isTracing = getenv("SIMULATION_TRACE") != nil

    /// What happens, for whoever replays a seed.
    func trace(_ text: @autoclosure () -> String) {
        if Self.isTracing {
            print("\(scheduler.time / 1000) us: \(text())")
            fflush(nil)
        }
    }

    /// The first failure counts.
    func fail(_ text: String) {
        guard failure == nil else { return }
        failure = "\(text) (at \(scheduler.time / 1000) us)"
        stopsApplications = true
    }

    /// One by lot.
    var anyVolume: SimulatedVolume {
        volumes.count == 1 ? volumes[0] : volumes[Int(draw(UInt64(volumes.count)))]
    }

    func wrap(_ store: any BlockStore, _ role: SimulatedDisk.Role) -> any BlockStore {
        defect?.wrap(store, role) ?? store
    }

    /// What a path leads to, for those who open it as a device.
    func disk(at path: String) -> SimulatedDisk? {
        for volume in volumes {
            if path == volume.descriptor.source { return volume.source }
            if path == volume.descriptor.cache { return volume.cache }
        }
        return path == RestoreSite.path ? site.disk : files.contents(at: path) as? SimulatedDisk
    }

    /// The one whose host listens there.
    func volume(at control: String) -> SimulatedVolume? { volumes.first { $0.control == control } }

    func addInstant(of epoch: UUID, in volume: SimulatedVolume) {
        instants[epoch] = SimulatedVolume.Instant(
            number: instants.count, volume: volume.uuid, time: Int64(scheduler.time),
            bytes: volume.source.bytes,
            others: volumes.reduce(into: [:]) { if $1 !== volume { $0[$1.uuid] = $1.source.bytes } })
    }

    // MARK: The run

    func run() {
        Simulation.use(scheduler)
        defer { Simulation.use(nil) }
        for volume in volumes { volume.startHost() }
        for run in volumes.flatMap(\.applications).map({ $0.run }) + [dependentWriter].compactMap({ $0?.run })
        {
            scheduler.start(in: main) { [unowned self] in
                run()
                scheduler.wake(place)
            }
        }
        for _ in 0..<plan.events where failure == nil && !scheduler.isStuck {
            scheduler.sleep(draw(40_000_000))
            happen()
        }
        if !scheduler.isStuck, failure == nil { heal() }
        if scheduler.isStuck { fail("nothing goes on any more, or for ever") }
        stopsApplications = true
        endAll()
    }

    /// Ends what is left, so that the next run finds nothing of it.
    private func endAll() {
        agent?.process.end()
        endRestore()
        for volume in volumes { volume.host?.process.end() }
        main.end()
    }

    func cutPower() {
        mark(.powerCut)
        for bridge in agent?.bridges ?? [] { bridge.process.end() }
        agent?.process.end()
        agent = nil
        endRestore()
        for volume in volumes { volume.losePower() }
        files.crash(using: &scheduler.random)
        boot = .random(using: &scheduler.random)
        for volume in volumes { volume.checkAfterPowerCut() }
        crashSite()
        judgeCopies()
        for volume in volumes { volume.startHost() }
    }

    func note(_ loss: SimulatedDisk.Loss) {
        if loss.lost { mark(.unflushedWriteLost) }
        if loss.torn { mark(.unflushedWriteTorn) }
        if loss.reordered { mark(.unflushedWritesReordered) }
    }
}
