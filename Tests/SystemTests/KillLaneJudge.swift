import Agent
import Blocks
import Foundation
import HostControl
import TestSupport

/// How a lane comes back to life after a kill, and what must be there then.
extension KillLane {
    // MARK: Back to life

    func revive() throws {
        if !host.process.isRunning { try restartHost(nil, nil) }
        if !bridge.process.isRunning { try restartBridge() }
    }

    func restartBridge() throws {
        bridge = try BridgeProcess(units: Self.units(host), portal: bridge.portal, environment: environment)
    }

    func restartHost(_ scenario: KillScenario?, _ before: VolumeStatus?) throws {
        let begun = MonotonicClock.now
        host = try Self.startHost(shape, storage, scratch, environment)
        tally.restarts.append(Double(MonotonicClock.now - begun) / 1e9)
        let status = try host.status()
        guard let scenario, let old = before?.epoch else { return }
        let order: [EpochState] = [.open, .ended, .released]
        guard let new = status.epoch, new.number >= old.number else {
            return tally.stuck.append("\(scenario): epoch \(old.number) is forgotten")
        }
        if new.state == .void {
            let why = new.voidReason ?? ""
            guard !shape.voidReasons.contains(where: why.contains) else { return }
            return tally.stuck.append("\(scenario), \(shape): epoch \(new.number) is void, \(why)")
        }
        if new.state == .open { tally.openEpochs += 1 }
        guard new.number == old.number, let was = order.firstIndex(of: old.state) else { return }
        let isOrdered = order.firstIndex(of: new.state)! >= was
        // Whoever could have ended it was dead already.
        if !isOrdered || scenario.victim == .agentAndHost && new.state != old.state {
            tally.stuck.append("\(scenario): epoch \(new.number) was \(old.state), is \(new.state)")
        }
    }

    /// Does what a host asks for that heard of a failed flush, which a source that fails on purpose may have given it
    /// for a write with FUA: starts it anew.
    func heedFailedFlush(_ scenario: KillScenario) throws {
        let status = try host.status()
        guard let failure = status.flushFailure else { return }
        tally.failedFlushes += 1
        if shape.storage != .filters || !scenario.isBurdened {
            tally.foregroundErrors.append("\(scenario), \(shape): \(failure)")
        }
        // As its last flush fails like all before, it says that writes may be lost.
        let ending = host.process.stop()
        guard ending == .exit(74) else {
            throw TestFailure("a host with a failed flush ended \(String(describing: ending))")
        }
        try restartHost(scenario, status)
    }

    // MARK: What is right

    private static let fullReasons = ["full", "no space left"]

    /// Whether the copy ended since the cache was full, or the disk under it; its own disk has another status.
    static func tellsOfFull(_ copy: ChildProcess) -> Bool {
        guard copy.wait(seconds: 1) == .exit(75), let begin = copy.errors.range(of: "the epoch is void: ")
        else { return false }
        let reason = copy.errors[begin.upperBound...].prefix { $0 != ";" }
        return fullReasons.contains { reason.contains($0) }
    }

    /// Whether the cache was full in the copy's epoch, or the disk under it.
    func isFull(_ status: VolumeStatus?, _ begun: Int64) -> Bool {
        guard let status, let epoch = status.epoch, epoch.institutedAt >= begun else { return false }
        let isOver = Self.fullReasons.contains { epoch.voidReason?.contains($0) == true }
        // Another original does not go in.
        let isNow = status.cacheUsed + 2 * status.chunkSize > status.cacheCapacity
        return isOver || epoch.restarts != nil || epoch.state == .open && isNow
    }

    func judgeSource(_ writers: [Writer], _ scenario: KillScenario) {
        do {
            content = try storage.contents()
            let served = try NBDStore(.unixSocket(host.socket, export: ""), connections: 1)
            if try !haveSameBytes(served.bytes(at: 0, count: content.count), content) {
                tally.lostWrites.append("\(scenario): the host serves something else than its source")
            }
        } catch { return tally.stuck.append("\(scenario): the source cannot be read, \(error)") }
        for oracle in writers.map(\.oracle) {
            let region = oracle.region
            tally.judgedSources += 1
            let verdict = oracle.judgeSource(Array(content[Int(region.offset)..<Int(region.end)]))
            if !verdict.isConsistent { tally.lostWrites.append("\(scenario), \(shape): \(verdict)") }
        }
    }

    /// The epoch that the copy left open, if it did, has the volume as of its instant.
    func judgeSnapshot(_ writers: [Writer], _ begun: Int64, _ scenario: KillScenario) throws {
        let status = try host.status()
        if status.isFrozen { tally.stuck.append("\(scenario): the volume is frozen") }
        guard let epoch = status.epoch, epoch.state == .open, epoch.institutedAt >= begun else { return }
        // Of what the copy has passed there are no originals.
        guard !scenario.isSlow else { return }
        let snapshot = try NBDStore(.unixSocket(host.socket, export: "snapshot"), connections: 1)
        let bytes = try snapshot.bytes(at: 0, count: Int(shape.size))
        tally.judgedSnapshots += 1
        for oracle in writers.map(\.oracle) {
            let verdict = oracle.judge(
                Array(bytes[Int(oracle.region.offset)..<Int(oracle.region.end)]),
                within: oracle.bounds(at: epoch.institutedAt))
            if !verdict.isConsistent {
                tally.wrongCopies.append("\(scenario), \(shape): the snapshot, \(verdict)")
            }
        }
    }

    /// After the last round: a copy of the volume at rest works, it leaves nothing of those before, and all ends in order.
    func finish() -> KillTally {
        tally = KillTally()
        guard isUsable else { return tally }
        do {
            try revive()
            let copy = try Outboard.run(
                ["copy", "--host", host.control, "--to", copies.path, "--force"], environment: environment)
            guard copy.isSuccess, try haveSameBytes(contents(copies.path + "/data.img"), storage.contents())
            else {
                throw TestFailure("the last copy is not the volume: \(copy)")
            }
            try copies.expectNoLeftovers()
            guard try host.isIdle() else { throw TestFailure("the host is not idle after the last copy") }
            for process in [host.process, bridge.process] where process.stop() != .exit(0) {
                throw TestFailure("\(process.command): \(process.errors)")
            }
            try awaitNoProcess(but: [])
            let names = Set(try FileManager.default.contentsOfDirectory(atPath: scratch.path))
            let left = names.subtracting([
                "volume.img", "volume.cache", "unit", "copies", "tmp", "ext4", "ext4.img",
            ])
            guard left.isEmpty else { throw TestFailure("left behind: \(left)") }
        } catch { tally.stuck.append("\(shape), at the end: \(error)") }
        return tally
    }
}
