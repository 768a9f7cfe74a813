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
    let volumeUUID: UUID
    private(set) var boot: UUID
    let source: SimulatedDisk
    let cache: SimulatedDisk
    let files: SimulatedFileSystem
    let descriptor = HostDescriptor(
        source: "/simulated/source", cache: "/simulated/cache", uris: [], socket: "/simulated/host.sock")
    private(set) var calls: DiskCalls!
    var host: HostProcess?
    var agent: AgentProcess?
    private(set) var applications: [Application] = []
    var stopsApplications = false
    /// At most so many nanoseconds lie between an answer and an application's next request.
    /// More when an event, a time-out for instance, takes long: else most of a run's turns would be theirs.
    var thinkTime: UInt64 { scheduler.turnsTaken - turnsAtEvent > 5_000 ? 150_000_000 : 3_000_000 }
    var turnsAtEvent = 0
    /// How much of the cache can be allocated, bytes; nil: all.
    var cacheLimit: Int?
    /// While nothing is judged that they could change: their turns would be most of a run's.
    var pausesApplications = false
    private(set) var coverage = Coverage()
    private(set) var failure: String?
    /// The volume's bytes at the instant of each epoch.
    private(set) var instants: [UUID: [UInt8]] = [:]
    /// Epochs that became void while the cache took no record of it, and whose host died then.
    private var unrecorded: Set<UUID> = []
    /// A host died while its cache refused superblocks: each of the two may be there in part.
    private var isCacheInDoubt = false
    /// The copies that somebody was told to be complete, by their directories.
    var promises: [String: String] = [:]
    /// Calls that failed because a simulated device did, of all that a copy uses.
    var deviceFailures: Int { source.failures + cache.failures + copyFailures }
    var copyFailures = 0
    /// The device of the copies.
    var copyFaults = DiskFaults.none
    var losesLines = false
    /// The copy that its agent's or its bridge's death has cut off last.
    var interrupted: String?
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
        volumeUUID = .random(using: &scheduler.random)
        boot = .random(using: &scheduler.random)
        files = SimulatedFileSystem(seed: seed)
        var contents: [Content] = []
        for sector in 0..<plan.sectors { contents.append(sector % 5 == 4 ? 0 : 1) }
        source = SimulatedDisk(
            .source, contents.enumerated().flatMap { SectorContents.make($1, sector: $0) })
        cache = SimulatedDisk(.cache, [UInt8](repeating: 0, count: plan.cacheBytes))
        calls = DiskCalls(self)
        cache.room = { [unowned self] in cacheLimit.map { $0 - cache.allocatedBytes } ?? .max }
        let share = plan.sectors / plan.applications
        for index in 0..<plan.applications {
            let region = index * share..<(index == plan.applications - 1 ? plan.sectors : (index + 1) * share)
            applications.append(Application(self, region: region, contents: Array(contents[region])))
        }
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

    func wrap(_ store: any BlockStore, _ role: SimulatedDisk.Role) -> any BlockStore {
        defect?.wrap(store, role) ?? store
    }

    /// What a path leads to, for those who open it as a device.
    func disk(at path: String) -> SimulatedDisk? {
        switch path {
        case descriptor.source: source
        case descriptor.cache: cache
        default: files.contents(at: path) as? SimulatedDisk
        }
    }

    // MARK: The run

    func run() {
        Simulation.use(scheduler)
        defer { Simulation.use(nil) }
        startHost()
        for application in applications {
            scheduler.start(in: main) { [unowned self] in
                application.run()
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
        host?.process.end()
        main.end()
    }

    // MARK: Hosts

    func startHost() {
        for disk in [source, cache] { disk.hasFailedFlush = false }
        trace("the host starts")
        host = HostProcess(self)
        while let host, host.process.isAlive, !host.isServing, !scheduler.isStuck {
            _ = scheduler.wait(at: place, until: nil)
        }
        guard let refusal = host?.refusal else {
            isCacheInDoubt = false
            return checkSnapshot()
        }
        host = nil
        // A cache that cannot be read or written refuses to be served; anything else is wrong.
        if case .store = refusal, cache.failures > 0 {
            isCacheInDoubt = true
            return
        }
        if isCacheInDoubt {
            // As an administrator does who reads why.
            isCacheInDoubt = false
            mark(.cacheGivenUp)
            cache.clear()
            return startHost()
        }
        fail("the host refuses its cache: \(refusal)")
    }

    func ensureHost() {
        var tries = 0
        while host == nil, failure == nil {
            startHost()
            tries += 1
            if tries > 3 { return fail("the host does not start again") }
        }
    }

    func killHost() {
        guard let host else { return startHost() }
        mark(.hostKilled)
        noteState(host, open: .hostKilledInOpenEpoch)
        host.process.end()
        self.host = nil
        for application in applications { application.checkAfterCrash(source.bytes, isPower: false) }
        scheduler.sleep(draw(5_000_000))
        startHost()
    }

    func cutPower() {
        mark(.powerCut)
        if let host { noteState(host, open: .powerCutInOpenEpoch) }
        for bridge in agent?.bridges ?? [] { bridge.process.end() }
        agent?.process.end()
        agent = nil
        host?.process.end()
        host = nil
        for disk in [source, cache] { note(disk.crash(using: &scheduler.random)) }
        files.crash(using: &scheduler.random)
        boot = .random(using: &scheduler.random)
        for application in applications { application.checkAfterCrash(source.bytes, isPower: true) }
        judgeCopies()
        startHost()
    }

    private func noteState(_ host: HostProcess, open site: FaultSite) {
        guard let log = host.volume?.log, let epoch = log.epoch else { return }
        if !log.isRecorded, cache.failures > 0 { isCacheInDoubt = true }
        switch epoch.state {
        case .open: mark(site)
        case .void:
            mark(.epochVoid)
            // The one case that the log's article leaves: the cache refuses the record until the host dies.
            if !log.isRecorded, cache.failures > 0 { unrecorded.insert(epoch.uuid) }
        case .ended, .released: break
        }
    }

    private func note(_ loss: SimulatedDisk.Loss) {
        if loss.lost { mark(.unflushedWriteLost) }
        if loss.torn { mark(.unflushedWriteTorn) }
        if loss.reordered { mark(.unflushedWritesReordered) }
    }

    func note(_ finding: OriginalImageLog.Finding) {
        switch finding {
        case .resumed: mark(.epochResumed)
        case .lost: mark(.epochLost)
        case .blank, .unused, .retained: break
        }
    }

    // MARK: Instants

    /// The gate is closed and drained: what is there now is what a copy as of this epoch must show.
    func instituted(_ epoch: UUID) {
        instants[epoch] = source.bytes
        for application in applications { application.checkInstant(source.bytes) }
    }

    /// While an epoch is open its logical snapshot shows the instant, whatever has happened since.
    func checkSnapshot() {
        guard failure == nil, let host, host.isServing, let volume = host.volume,
            let epoch = volume.log.epoch, epoch.state == .open, let instant = instants[epoch.uuid],
            !unrecorded.contains(epoch.uuid),
            // One read after another, each of which stalls, would take longer than a run may.
            source.faults.stall + cache.faults.stall < 1
        else { return }
        let before = source.failures + cache.failures
        for start in stride(from: 0, to: instant.count, by: 16384) {
            let count = min(16384, instant.count - start)
            switch host.readSnapshot(at: UInt64(start), count: count) {
            case nil: return
            case .success(let bytes):
                if bytes != Array(instant[start..<start + count]) {
                    return fail(
                        "the snapshot of epoch \(epoch.number) differs from its instant near \(start)")
                }
            case .failure(let error):
                // It may have ended meanwhile.
                guard source.failures + cache.failures == before, host.isServing,
                    volume.log.epoch?.uuid == epoch.uuid,
                    volume.log.epoch?.state == .open, error.code != .gone
                else { return }
                return fail("the snapshot cannot be read: \(error.code)")
            }
        }
    }
}
