import Blocks
import Foundation
import Host
import HostControl
import OriginalImage

/// A volume of a run: its disks, its host and its applications, and the judge of all that is told of it.
final class SimulatedVolume: @unchecked Sendable {  // touched by whose turn it is only
    /// The volume's bytes at the instant of an epoch.
    struct Instant {
        /// Of all instants of a run.
        var number: Int
        var volume: UUID
        /// Nanoseconds.
        var time: Int64
        var bytes: [UInt8]
        /// At the same moment those of all others.
        var others: [UUID: [UInt8]]
    }

    unowned let world: World
    let uuid: UUID
    let source: SimulatedDisk
    let cache: SimulatedDisk
    let descriptor: HostDescriptor
    /// The path of its host's control socket.
    let control: String
    var host: HostProcess?
    private(set) var applications: [Application] = []
    /// How much of the cache can be allocated, bytes; nil: all.
    var cacheLimit: Int?
    /// Epochs that became void while the cache took no record of it, and whose host died then; and those of whose log a
    /// header has decayed.
    private var doubtful: Set<UUID> = []
    /// A host died while its cache refused superblocks: each of the two may be there in part.
    private var isCacheInDoubt = false

    /// - Parameter name: of its files.
    init(_ world: World, name: String) {
        self.world = world
        uuid = .random(using: &world.scheduler.random)
        let place = "/simulated/" + name
        control = place + ".control"
        descriptor = HostDescriptor(
            source: place + ".source", cache: place + ".cache", uris: [], socket: place + ".sock")
        let plan = world.plan
        var contents: [Content] = []
        for sector in 0..<plan.sectors { contents.append(sector % 5 == 4 ? 0 : 1) }
        source = SimulatedDisk(
            .source, contents.enumerated().flatMap { SectorContents.make($1, sector: $0) })
        cache = SimulatedDisk(.cache, [UInt8](repeating: 0, count: plan.cacheBytes))
        cache.room = { [unowned self] in cacheLimit.map { $0 - cache.allocatedBytes } ?? .max }
        // In a group the last one is the dependent writer's.
        let sectors = plan.isGroup ? plan.sectors - 1 : plan.sectors
        let share = sectors / plan.applications
        for index in 0..<plan.applications {
            let region = index * share..<(index == plan.applications - 1 ? sectors : (index + 1) * share)
            applications.append(Application(self, region: region, contents: Array(contents[region])))
        }
    }

    var disks: [SimulatedDisk] { [source, cache] }
    /// Calls that failed because one of its disks did.
    var failures: Int { source.failures + cache.failures }

    // MARK: Its host

    func startHost() {
        for disk in disks { disk.hasFailedFlush = false }
        world.trace("the host starts")
        host = HostProcess(self)
        while let host, host.process.isAlive, !host.isServing, !world.scheduler.isStuck {
            _ = world.scheduler.wait(at: world.place, until: nil)
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
            world.mark(.cacheGivenUp)
            cache.clear()
            return startHost()
        }
        world.fail("the host refuses its cache: \(refusal)")
    }

    func ensureHost() {
        var tries = 0
        while host == nil, world.failure == nil {
            startHost()
            tries += 1
            if tries > 3 { return world.fail("the host does not start again") }
        }
    }

    func killHost() {
        guard let host else { return startHost() }
        world.mark(.hostKilled)
        noteState(host, open: .hostKilledInOpenEpoch)
        host.process.end()
        self.host = nil
        for application in applications { application.checkAfterCrash(source.bytes, isPower: false) }
        world.scheduler.sleep(world.draw(5_000_000))
        startHost()
    }

    /// The power is gone: its host, and what its disks had not flushed.
    func losePower() {
        if let host { noteState(host, open: .powerCutInOpenEpoch) }
        host?.process.end()
        host = nil
        for disk in disks { world.note(disk.crash(using: &world.scheduler.random)) }
    }

    func checkAfterPowerCut() {
        for application in applications { application.checkAfterCrash(source.bytes, isPower: true) }
    }

    private func noteState(_ host: HostProcess, open site: FaultSite) {
        guard let log = host.volume?.log, let epoch = log.epoch else { return }
        if !log.isRecorded, cache.failures > 0 { isCacheInDoubt = true }
        switch epoch.state {
        case .open: world.mark(site)
        case .void:
            world.mark(.epochVoid)
            // The one case that the log's article leaves: the cache refuses the record until the host dies.
            if !log.isRecorded, cache.failures > 0 { doubtful.insert(epoch.uuid) }
        case .ended, .released: break
        }
    }

    /// A bit of a batch's header in the log of the open epoch is another from now on.
    func decay() {
        guard let host, host.isServing, let epoch = host.volume?.log.epoch, epoch.state == .open else {
            return
        }
        let uuid = withUnsafeBytes(of: epoch.uuid.uuid) { Array($0) }
        let headers = stride(from: Int(LogFormat.firstBatch), to: cache.bytes.count - 4095, by: 4096)
            .filter { cache.bytes[$0 + 8..<$0 + 24].elementsEqual(uuid) }
        guard !headers.isEmpty else { return }
        let place = headers[Int(world.draw(UInt64(headers.count)))]
        var header = Array(cache.bytes[place..<place + 4096])
        let entries = min(header.withUnsafeBytes { UInt64($0.bigEndian(at: 32, as: UInt32.self)) }, 250)
        // Most bits make a header that leads nowhere; the last ones of a chunk's address lead to another chunk.
        if world.draw(2) == 0 {
            header[Int(40 + 16 * world.draw(max(entries, 1)) + 7)] ^= 1 << UInt8(world.draw(4))
        } else {
            header[Int(world.draw(40 + 16 * entries))] ^= 1 << UInt8(world.draw(8))
        }
        if world.defect == .headerUnchecked {
            header.withUnsafeMutableBytes {
                let sum = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: $0[..<4092]))
                $0.storeBigEndian(sum, at: 4092)
            }
        }
        cache.decay(at: place, to: header)
        doubtful.insert(epoch.uuid)
        world.mark(.headerDecayed)
    }

    func note(_ finding: OriginalImageLog.Finding) {
        switch finding {
        case .resumed: world.mark(.epochResumed)
        case .lost: world.mark(.epochLost)
        case .blank, .unused, .retained: break
        }
    }

    // MARK: Instants

    /// The gate is closed and drained: what is there now is what a copy as of this epoch must show.
    func instituted(_ epoch: UUID) {
        world.addInstant(of: epoch, in: self)
        for application in applications { application.checkInstant(source.bytes) }
    }

    /// While an epoch is open its logical snapshot shows the instant, whatever has happened since.
    func checkSnapshot() {
        guard world.failure == nil, let host, host.isServing, let volume = host.volume,
            let epoch = volume.log.epoch, epoch.state == .open,
            let instant = world.instants[epoch.uuid]?.bytes,
            !doubtful.contains(epoch.uuid),
            // One read after another, each of which stalls, would take longer than a run may.
            source.faults.stall + cache.faults.stall < 1
        else { return }
        let before = failures
        for start in stride(from: 0, to: instant.count, by: 16384) {
            let count = min(16384, instant.count - start)
            switch host.readSnapshot(at: UInt64(start), count: count) {
            case nil: return
            case .success(let bytes):
                if bytes != Array(instant[start..<start + count]) {
                    return world.fail(
                        "the snapshot of epoch \(epoch.number) differs from its instant near \(start)")
                }
            case .failure(let error):
                // It may have ended meanwhile.
                guard failures == before, host.isServing, volume.log.epoch?.uuid == epoch.uuid,
                    volume.log.epoch?.state == .open, error.code != .gone
                else { return }
                return world.fail("the snapshot cannot be read: \(error.code)")
            }
        }
    }
}
