import Agent
import Blocks
import Foundation
import TestSupport

/// Where restores go: a disk, and what of it somebody was told to be restored.
final class RestoreSite {
    static let path = "/simulated/site"
    let disk: SimulatedDisk
    /// What must be on it, byte by byte, whatever happens; nil: anything.
    private var promised: [UInt8?]
    /// What was on it when the restore that runs, or ran last, had it for itself; and what that may write.
    private var before: [UInt8] = []
    private var extents: [Range<Int>] = []

    /// - Parameter size: bytes.
    init(size: Int) {
        disk = SimulatedDisk(.site, [UInt8](repeating: 0xA5, count: size))
        promised = Array(repeating: nil, count: size)
    }

    /// From now on these may be written, and nothing else.
    func begin(_ extents: [Range<Int>]) {
        self.extents = extents
        before = disk.bytes
        for range in extents { for byte in range { promised[byte] = nil } }
    }

    /// What was asked for is restored.
    func end(_ volume: [UInt8]) {
        for range in extents { for byte in range { promised[byte] = volume[byte] } }
    }

    /// - Returns: the first byte that is not what it must be.
    func firstWrong() -> Int? {
        promised.indices.first { index in promised[index].map { $0 != disk.bytes[index] } ?? false }
    }

    /// - Returns: the first byte that was changed, and is none of those that were to be.
    func firstTouched() -> Int? {
        guard !before.isEmpty else { return nil }
        var start = 0
        for range in extents + [before.count..<before.count] {
            if start < range.lowerBound,
                before[start..<range.lowerBound] != disk.bytes[start..<range.lowerBound]
            {
                return (start..<range.lowerBound).first { before[$0] != disk.bytes[$0] }
            }
            start = max(start, range.upperBound)
        }
        return nil
    }

    /// After a crash anything may be there that nobody was promised.
    func forget() { before = [] }
}

/// Restores of a run's copies, what befalls them, and their judge.
extension World {
    func startRestore() {
        guard restore == nil else { return }
        // Now and then of one that is not complete, or not there.
        let known = promises.keys.sorted()
        let paths = known.isEmpty || draw(8) == 0 ? Self.copies.flatMap(copyPaths) : known
        if plan.hasFaults, draw(4) == 0 {
            site.disk.faults = illness()
            // Only what is no whole block is read.
            if draw(2) == 0 { site.disk.faults.read = 0.3 }
        }
        startRestore(of: paths[Int(draw(UInt64(paths.count)))])
        guard plan.hasFaults, draw(2) == 0 else { return }
        // It takes no longer than that, most often.
        scheduler.sleep(draw(8_000_000))
        harmRestore()
    }

    private func startRestore(of path: String) {
        var units = [PrivateUnit(0, RestoreSite.path, isReadOnly: false)]
        // Its data may be a unit of the bridge, too: then they do not pass through the agent.
        let data = path + "/data.img"
        let hasData = draw(2) == 0 && disk(at: data) != nil
        if hasData { units.append(PrivateUnit(1, data, isReadOnly: true)) }
        let request = RestoreRequest(
            copy: path, destination: RestoreSite.path,
            unit: RestoreUnit(
                bridge: SimulatedBridge.address, number: 0, copyNumber: hasData ? 1 : nil),
            extents: draw(3) == 0 ? extentsByLot() : nil, checksSlices: draw(2) == 0, force: true,
            maximumRate: plan.rate)
        trace("a restore starts: \(path), \(request.extents.map { "\($0)" } ?? "all")")
        restore = RestoreProcess(self, request, units)
    }

    private func extentsByLot() -> [ByteRange] {
        let size = UInt64(plan.sectors * 512)
        let unit: UInt64 = draw(2) == 0 ? 512 : 1
        return (0...draw(3)).map { _ in
            let start = draw(size / unit) * unit
            return ByteRange(offset: start, count: min(size - start, (1 + draw(20_000 / unit)) * unit))
        }
    }

    /// Its bridge has the disk for itself.
    func restoreBegins(_ begun: RestoreProcess) {
        guard begun.bridge.device != nil else { return }
        let all = [ByteRange(offset: 0, count: UInt64(plan.sectors * 512))]
        site.begin(
            (begun.request.extents ?? all).map { Int($0.offset)..<Int($0.end) }
                .sorted { $0.lowerBound < $1.lowerBound })
    }

    func restoreEnded(_ ended: RestoreProcess) {
        if restore === ended { restore = nil }
        trace("a restore ends: \(ended.result.map { "\($0)" } ?? "nothing")")
        checkSite()
        switch ended.result {
        case .success(let outcome):
            mark(.restored)
            mark(outcome.originals > 0 ? .restoredAppended : .restoredAsItStands)
            if ended.request.extents != nil { mark(.restoredExtents) }
            if ended.request.unit?.copyNumber != nil { mark(.restoredByBridge) }
            // The one that was the last at that instant: those of a group lie a little apart.
            let instant = instants.values.filter {
                $0.volume.uuidString == outcome.volume && $0.time <= outcome.instant
            }.max { $0.number < $1.number }
            guard let instant else { return fail("a restore is as of an instant that never was") }
            site.end(instant.bytes)
            checkSite()
            guard plan.hasFaults, draw(2) == 0 else { return }
            mark(.siteLostPower)
            crashSite()
        case .failure(let error): judge(error, of: ended)
        case nil: fail("a restore ended without a result")
        }
    }

    private func judge(_ error: AgentError, of ended: RestoreProcess) {
        mark(.restoreFailed)
        if error.cause == .interrupted { mark(.restoreInterrupted) }
        // The bridge may have the data of a copy that was replaced since.
        let isOtherUnit = error.status == .usage && ended.request.unit?.copyNumber != nil
        if error.status == .software || error.status == .usage && !isOtherUnit {
            fail("a restore failed by a bug: \(error)")
        }
        if error.status == .corrupt, deviceFailures == 0 {
            fail("a restore finds a copy damaged though no device has failed: \(error)")
        }
        // The bridge of the one before may have the disk still.
        if !plan.hasFaults, ended.bridge.refusal == nil, [.io, .unavailable, .corrupt].contains(error.status)
        {
            fail("a restore fails although nothing is wrong: \(error)")
        }
    }

    /// What was restored is there, and what was not to be is as it was.
    func checkSite() {
        if let byte = site.firstWrong() {
            return fail("what was restored is not the volume at its instant, at byte \(byte)")
        }
        if let byte = site.firstTouched() {
            fail("a restore has changed byte \(byte), which it was not to")
        }
    }

    /// The disk loses its power.
    func crashSite() {
        note(site.disk.crash(using: &scheduler.random))
        site.forget()
        checkSite()
    }

    /// The restore, or its bridge, dies, or somebody interrupts it.
    func harmRestore() {
        guard let restore else { return }
        switch draw(3) {
        case 0:
            mark(.restoreKilled)
            restore.process.end()
            self.restore = nil
            checkSite()
        case 1:
            guard restore.bridge.process.isAlive else { return }
            mark(.restoreBridgeKilled)
            restore.bridge.process.end()
        default: scheduler.start(in: restore.process) { restore.cancellation.cancel() }
        }
    }

    func endRestore() {
        restore?.bridge.process.end()
        restore?.process.end()
        restore = nil
    }

    /// Nothing fails any more: what is complete can be restored.
    func checkRestore(of path: String) {
        guard failure == nil else { return }
        startRestore(of: path)
        guard let last = restore else { return fail("no restore can be begun") }
        waitForRestore()
        if case .failure(let error) = last.result {
            fail("a restore fails although nothing is wrong: \(error)")
        }
    }

    func waitForRestore() {
        guard let restore else { return }
        let deadline = scheduler.time + 3_600_000_000_000
        while restore.process.isAlive, !scheduler.isStuck, scheduler.time < deadline {
            _ = scheduler.wait(at: place, until: deadline)
        }
        if restore.process.isAlive { fail("a restore does not end") }
        self.restore = nil
    }
}
