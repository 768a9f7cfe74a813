import AsyncIO
import Blocks
import Foundation
import Host
import HostControl
import OriginalImage
import TestSupport

/// One run: disks, processes, applications, what befalls them, and the judge of what is left.
final class World: @unchecked Sendable {
    let seed: UInt64
    let plan: Plan
    let defect: SeededDefect?
    let scheduler: Scheduler
    let main: SimulatedProcess
    let volumeUUID = UUID()
    private(set) var boot = UUID()
    let source: SimulatedDisk
    let cache: SimulatedDisk
    private(set) var calls: DiskCalls!
    private(set) var host: HostProcess?
    private(set) var applications: [Application] = []
    var stopsApplications = false
    private(set) var coverage = Coverage()
    private(set) var failure: String?
    /// The volume's bytes at the instant of each epoch.
    private(set) var instants: [UUID: [UInt8]] = [:]
    private var numbers = 1
    /// Woken when something has started or ended.
    let place = UnsafeMutableRawPointer.allocate(byteCount: 1, alignment: 1)

    init(seed: UInt64, defect: SeededDefect?) {
        self.seed = seed
        self.defect = defect
        plan = Plan(seed: seed)
        main = SimulatedProcess("main")
        scheduler = Scheduler(seed: seed, main: main)
        var contents: [Content] = []
        for sector in 0..<plan.sectors { contents.append(sector % 5 == 4 ? 0 : 1) }
        source = SimulatedDisk(
            .source, contents.enumerated().flatMap { SectorContents.make($1, sector: $0) })
        cache = SimulatedDisk(.cache, [UInt8](repeating: 0, count: plan.cacheBytes))
        calls = DiskCalls(self)
        let share = plan.sectors / plan.applications
        for index in 0..<plan.applications {
            let region = index * share..<(index == plan.applications - 1 ? plan.sectors : (index + 1) * share)
            applications.append(Application(self, region: region, contents: Array(contents[region])))
        }
    }

    deinit { place.deallocate() }

    // MARK: For all

    func draw(_ bound: UInt64) -> UInt64 { scheduler.random.next() % bound }
    func mark(_ site: FaultSite) { coverage.mark(site) }
    func nextNumber() -> Content {
        numbers += 1
        return numbers
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
        if scheduler.isStuck { fail("nothing goes on any more") }
        heal()
        endAll()
    }

    private func happen() {
        switch draw(10) {
        case 0 where plan.hasFaults: killHost()
        case 1 where plan.hasFaults && plan.allowsPowerCuts: cutPower()
        case 2 where plan.hasFaults: makeIll(source)
        case 3 where plan.hasFaults: makeIll(cache)
        case 4: for disk in [source, cache] { disk.faults = .none }
        case 5...6: checkSnapshot()
        case 7: beginEpoch()
        default: endEpoch()
        }
    }

    /// Nothing fails any more: all must work.
    private func heal() {
        for disk in [source, cache] { disk.faults = .none }
        if host?.hasFailedFlush == true { killHost() }
        ensureHost()
    }

    private func endAll() {
        stopsApplications = true
        scheduler.sleep(1_000_000_000)
        checkSnapshot()
        host?.process.end()
        main.end()
    }

    // MARK: Hosts

    private func startHost() {
        host = HostProcess(self)
        while let host, host.process.isAlive, !host.isServing, !scheduler.isStuck {
            _ = scheduler.wait(at: place, until: nil)
        }
        guard let refusal = host?.refusal else { return checkSnapshot() }
        host = nil
        // A cache that cannot be read or written refuses to be served; anything else is wrong.
        if case .store = refusal, cache.failures > 0 { return }
        fail("the host refuses its cache: \(refusal)")
    }

    private func ensureHost() {
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
        if host.volume?.epochStatus?.state == .open { mark(.hostKilledInOpenEpoch) }
        host.process.end()
        self.host = nil
        for application in applications { application.checkAfterCrash(source.bytes, isPower: false) }
        scheduler.sleep(draw(5_000_000))
        startHost()
    }

    func cutPower() {
        mark(.powerCut)
        if host?.volume?.epochStatus?.state == .open { mark(.powerCutInOpenEpoch) }
        host?.process.end()
        host = nil
        for disk in [source, cache] { note(disk.crash(using: &scheduler.random)) }
        boot = UUID()
        for application in applications { application.checkAfterCrash(source.bytes, isPower: true) }
        startHost()
    }

    func note(_ loss: SimulatedDisk.Loss) {
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

    private func makeIll(_ disk: SimulatedDisk) {
        var faults = DiskFaults()
        switch draw(5) {
        case 0: faults.read = plan.illness
        case 1: faults.write = plan.illness
        case 2: faults.flush = plan.illness
        case 3: faults.stall = plan.illness
        default:
            faults.short = 0.3
            faults.interrupt = 0.2
        }
        disk.faults = faults
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
            let epoch = volume.log.epoch, epoch.state == .open, let instant = instants[epoch.uuid]
        else { return }
        let before = source.failures + cache.failures
        for start in stride(from: 0, to: instant.count, by: 16384) {
            let count = min(16384, instant.count - start)
            switch host.readSnapshot(at: UInt64(start), count: count) {
            case nil: return
            case .success(let bytes):
                // It may have ended meanwhile.
                if bytes != Array(instant[start..<start + count]) {
                    return fail("the snapshot of epoch \(epoch.number) differs from its instant near \(start)")
                }
            case .failure(let error):
                guard source.failures + cache.failures == before, volume.log.epoch == epoch else { return }
                return fail("the snapshot cannot be read: \(error.code)")
            }
        }
    }

    private func control(_ body: @escaping (CopyOnWriteVolume) throws -> Void) {
        guard let host else { return }
        _ = host.perform { volume throws(StoreError) in
            do { try body(volume) } catch {}
        }
    }

    private func beginEpoch() {
        let holder = EpochHolder()
        control { volume in
            if let epoch = volume.log.epoch, epoch.state != .released { try volume.release(epoch: epoch.uuid) }
            _ = try volume.begin(holder: holder)
        }
    }

    private func endEpoch() {
        control { volume in
            guard let epoch = volume.log.epoch else { return }
            _ = try volume.end(epoch: epoch.uuid)
        }
    }
}
