import Agent
import Blocks
import Foundation
import HostControl
import OriginalImage
import PhysicalCopy
import TestSupport

/// What happens in a run, and the judge of its copies.
extension World {
    func happen() {
        let dice = draw(25)
        turnsAtEvent = scheduler.turnsTaken
        trace("event \(dice)")
        switch dice {
        case 0 where plan.hasFaults: anyVolume.killHost()
        case 1 where plan.hasFaults && plan.allowsPowerCuts: cutPower()
        case 2 where plan.hasFaults: anyVolume.source.faults = illness()
        case 3 where plan.hasFaults: makeCacheIll()
        case 4 where plan.hasFaults: makeCopiesIll(illness())
        case 5 where plan.hasFaults: losesLines.toggle()
        case 6: endIllness()
        case 7...8 where plan.hasFaults: killAgent()
        case 9 where plan.hasFaults: killBridge()
        case 10: interrupt()
        case 11:
            for volume in volumes { volume.checkSnapshot() }
            judgeCopies()
        case 12...14: integrate()
        case 15...17: startRestore()
        case 18 where plan.hasFaults: anyVolume.decay()
        default: startCopy()
        }
    }

    // MARK: Faults

    func illness() -> DiskFaults {
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
        return faults
    }

    private func makeCacheIll() {
        let volume = anyVolume
        if draw(4) == 0 {
            volume.cacheLimit = volume.cache.allocatedBytes + Int(draw(8)) * 4096
        } else {
            volume.cache.faults = illness()
            guard draw(4) == 0 else { return }
            // It takes nothing any more, and its host dies of that as it seems.
            volume.cache.faults.write = 1
            scheduler.sleep(draw(20_000_000))
            volume.killHost()
        }
    }

    private func makeCopiesIll(_ faults: DiskFaults) {
        copyFaults = faults
        files.space = faults.write > 0 && draw(2) == 0 ? 64 << 10 : nil
        for parent in Set(Self.copies.flatMap(copyPaths).map(Self.parent)).sorted() {
            for name in files.names(at: parent) ?? [] {
                disk(at: "\(parent)/\(name)/data.img")?.faults = faults
            }
        }
    }

    private func endIllness() {
        for volume in volumes {
            for disk in volume.disks { disk.faults = .none }
            volume.cacheLimit = nil
        }
        makeCopiesIll(.none)
        site.disk.faults = .none
        losesLines = false
    }

    private func noteCounters() {
        for volume in volumes {
            let status = volume.host?.volume?.status(of: volume.descriptor)
            if status?.counters.chunksSpared ?? 0 > 0 { mark(.originalSpared) }
        }
    }

    private func killAgent() {
        guard let agent else { return }
        mark(.agentKilled)
        agent.process.end()
        interrupted = agent.name
        self.agent = nil
    }

    private func killBridge() {
        guard let bridge = agent?.bridges.last, bridge.process.isAlive else { return }
        mark(.bridgeKilled)
        bridge.process.end()
    }

    private func interrupt() {
        guard let agent else { return }
        mark(.copyInterrupted)
        scheduler.start(in: agent.process) { agent.cancellation.cancel() }
    }

    // MARK: Copies

    static let copies = ["one", "two"]

    /// The directories that copies of that name have.
    func copyPaths(_ name: String) -> [String] { copyMembers(name).map(\.destination) }

    private func copyMembers(_ name: String) -> [CopyRequest.Member] {
        do throws(AgentError) {
            return try CopyRequest.members(controls: volumes.map(\.control), directory: "/copies/" + name)
        } catch { preconditionFailure("\(error)") }
    }

    private static func parent(of path: String) -> String {
        path.split(separator: "/").dropLast().reduce("") { "\($0)/\($1)" }
    }

    private static func lastName(of path: String) -> String {
        path.split(separator: "/").last.map(String.init) ?? ""
    }

    func startCopy() {
        guard agent == nil, volumes.allSatisfy({ $0.host?.isServing == true }) else { return }
        // An administrator resumes what was cut off, but not always, and now and then in vain.
        let resumes = interrupted != nil && draw(4) != 0
        startCopy(to: resumes ? interrupted! : Self.copies[Int(draw(2))], resumes: resumes)
        if plan.hasFaults, draw(8) == 0 {
            scheduler.sleep(draw(25_000_000))
            anyVolume.decay()
        }
        guard plan.hasFaults, draw(5) == 0 else { return }
        // It takes little longer than that, most often: else few would die while there is something to resume.
        scheduler.sleep(draw(25_000_000))
        if draw(2) == 0 { killAgent() } else { killBridge() }
    }

    private func startCopy(to name: String, resumes: Bool) {
        interrupted = nil
        var request = CopyRequest(
            members: copyMembers(name),
            mode: plan.isAppend ? .append : .overlay,
            ending: plan.endsAfterCacheCopy ? .endedAfterCacheCopy : .endedBeforeCacheCopy)
        request.force = true
        request.wantsToc = false
        request.resumes = resumes
        request.maximumRate = plan.rate
        trace("a copy \(resumes ? "is resumed" : "starts"): \(name)")
        settled.remove(name)
        agent = AgentProcess(self, name, request)
    }

    func agentEnded(_ ended: AgentProcess) {
        if agent === ended { agent = nil }
        trace("a copy ends: \(ended.result.map { "\($0)" } ?? "nothing")")
        switch ended.result {
        case .success(let outcomes):
            mark(.copyComplete)
            mark(plan.isAppend ? .appended : .overlaid)
            if plan.endsAfterCacheCopy { mark(.markedBeforeEnd) }
            for outcome in outcomes {
                if promises[outcome.copy] != nil { mark(.copyReplaced) }
                if outcome.restarts != nil { mark(.copyAsOfLaterInstant) }
                promises[outcome.copy] = outcome.uuid
                if outcome.resumedBytes ?? 0 > 0 { mark(plan.isGroup ? .groupResumed : .copyResumed) }
            }
            settled.insert(ended.name)
            if plan.isGroup { mark(.groupComplete) }
            noteCounters()
            judgeCopies()
        case .failure(let error):
            mark(.copyFailed)
            judgeFailure(ended.name, error, from: ended.before)
            if error.status == .unavailable { interrupted = ended.name }
            if error.status == .software || error.status == .usage {
                fail("a copy failed by a bug: \(error)")
            }
            if error.status == .corrupt, deviceFailures == 0 {
                fail("a copy is found damaged though no device has failed: \(error)")
            }
        case nil: fail("an agent ended without a result")
        }
    }

    /// Every copy that opens as complete is the volume at its instant, and what was promised is there.
    func judgeCopies() {
        guard failure == nil else { return }
        isJudging = true
        defer { isJudging = false }
        for name in Self.copies { judgeGroup(name, copyPaths(name).map { judge($0, of: name) }) }
    }

    /// - Returns: of a copy that is complete; nil also when somebody changes it.
    private func judge(_ path: String, of name: String) -> Manifest? {
        let user = files.makeUser(2)
        defer { user.end() }
        let copy: PhysicalCopy
        do throws(CopyError) { copy = try PhysicalCopy(path, files: files.calls(for: user)) } catch {
            // One that is being replaced or integrated is locked, and is looked at another time.
            guard promises[path] != nil, error.kind != .cannotCreate else { return nil }
            // Where two names cannot be exchanged there is none for a moment, and who dies then leaves it aside.
            let aside = "\(Self.parent(of: path))/.\(Self.lastName(of: path)).replaced"
            guard !plan.lacksRenameFlags || settled.contains(name) || files.names(at: aside) == nil else {
                return nil
            }
            fail("the complete copy \(path) is not there: \(error)")
            return nil
        }
        if settled.contains(name), copy.manifest.uuid != promises[path] {
            fail("\(path) is another copy than the one that was told to be complete")
        }
        judge(copy, path)
        return copy.manifest
    }

    private func judge(_ copy: PhysicalCopy, _ path: String) {
        let opener: DataOpener = { [self] location, _ throws(CopyError) in
            guard case .path(let path) = location, let disk = disk(at: path) else {
                throw CopyError(.missing, "open the data", "they are not there")
            }
            return JudgedStore(disk)
        }
        do throws(CopyError) {
            let report = try copy.verify(opener)
            let isBeingIntegrated = copy.manifest.state == .integrating
            guard report.isClean || isBeingIntegrated else {
                return fail("the complete copy \(path) does not verify: \(report.findings[0].problem)")
            }
            let volume = try copy.openVolume(opener)
            guard let epoch = UUID(uuidString: copy.manifest.epoch.uuid), let instant = instants[epoch]?.bytes
            else {
                return fail("the copy \(path) is of an epoch that never was")
            }
            do throws(StoreError) {
                let bytes = try volume.bytes(at: 0, count: Int(volume.size))
                guard bytes != instant else { return }
                let place =
                    zip(bytes, instant).enumerated().first { $0.element.0 != $0.element.1 }?.offset ?? -1
                fail(
                    "the copy \(path), \(copy.manifest.mode), is not the volume at its instant, from byte \(place)"
                )
            } catch { fail("the complete copy \(path) cannot be read: \(error.code)") }
        } catch { fail("the complete copy \(path) cannot be used: \(error)") }
    }

    /// Merges an append copy's originals, which may be cut short.
    private func integrate() {
        guard agent == nil, !promises.isEmpty else { return }
        let path = promises.keys.sorted()[Int(draw(UInt64(promises.count)))]
        let process = SimulatedProcess(Self.integrate)
        let user = files.makeUser(Int32(process.number))
        process.whenItEnds { user.end() }
        scheduler.start(in: process) { [self] in
            do throws(CopyError) {
                let copy = try PhysicalCopy(path, for: .changing, files: files.calls(for: user))
                let isAppended = copy.manifest.originals != nil
                try copy.integrate({ location, writable throws(CopyError) in try open(location, writable) })
                if isAppended { mark(.integrated) }
            } catch {
                if error.kind == .damaged, volumes.allSatisfy({ $0.failures == 0 }),
                    copyFaults.read + copyFaults.write == 0
                {
                    fail("integrate finds damage: \(error)")
                }
            }
            process.end()
            scheduler.wake(place)
        }
        if draw(2) == 0 {
            scheduler.sleep(draw(12_000_000))
        } else {
            // Most of what can go wrong lies between two calls, not in the time that data take.
            callsOfIntegrate = Int(draw(40))
            while process.isAlive, callsOfIntegrate >= 0, !scheduler.isStuck {
                _ = scheduler.wait(at: place, until: nil)
            }
        }
        guard plan.hasFaults else { return }
        guard process.isAlive else {
            // What it said is done stays so.
            if plan.allowsPowerCuts, draw(4) == 0 { cutPower() }
            return
        }
        mark(.integrateKilled)
        process.end()
        if plan.allowsPowerCuts, draw(2) == 0 { cutPower() }
    }

    private func open(_ location: DataLocation, _ writable: Bool) throws(CopyError) -> any BlockStore {
        guard case .path(let path) = location, let disk = disk(at: path) else {
            throw CopyError(.missing, "open the data", "they are not there")
        }
        do {
            let file = try calls.open(disk, access: writable ? .readWrite : .readOnly, mode: .pageCache)
            return wrap(file, .copy)
        } catch { throw CopyError(.io, "open the data", "\(error)") }
    }

    // MARK: The end

    /// Nothing fails any more: all must work, and a copy must become complete.
    func heal() {
        trace("heal")
        endIllness()
        if let agent {
            let deadline = scheduler.time + 3_600_000_000_000
            while self.agent === agent, agent.process.isAlive, !scheduler.isStuck {
                guard scheduler.wait(at: place, until: deadline) || scheduler.time < deadline else {
                    return fail("a copy does not end")
                }
            }
            self.agent = nil
        }
        waitForRestore()
        // Files that have failed to flush are opened anew: that is what an administrator is told.
        for volume in volumes {
            if volume.host?.hasFailedFlush == true || volume.disks.contains(where: \.hasFailedFlush) {
                volume.killHost()
            }
            volume.ensureHost()
        }
        judgeCopies()
        // With a small cache a copy under load may rightly be given up.
        if plan.isCacheSmall { stopsApplications = true }
        // What dead agents had still asked for is done by then.
        turnsAtEvent = scheduler.turnsTaken
        pausesApplications = true
        scheduler.sleep(5_000_000_000)
        pausesApplications = false
        scheduler.wake(place)
        guard failure == nil else { return }
        startCopy(to: Self.copies[Int(draw(2))], resumes: false)
        guard let last = agent else {
            return fail(
                "no copy can be begun"
            )
        }
        let deadline = scheduler.time + 3_600_000_000_000
        while last.process.isAlive, !scheduler.isStuck, scheduler.time < deadline {
            _ = scheduler.wait(at: place, until: deadline)
        }
        switch last.result {
        case .success(let outcomes):
            checkNothingIsLeft(of: last.name)
            checkRestore(of: outcomes[Int(draw(UInt64(outcomes.count)))].copy)
        case .failure(let error): fail("a copy fails although nothing is wrong: \(error)")
        case nil: fail("the last copy does not end")
        }
        for volume in volumes { volume.checkSnapshot() }
        judgeCopies()
    }

    /// Afterwards no epoch is open or retained, and of what was interrupted under that name nothing is left.
    private func checkNothingIsLeft(of copy: String) {
        guard failure == nil else { return }
        for volume in volumes {
            if let epoch = volume.host?.volume?.log.epoch, epoch.state != .released {
                fail("epoch \(epoch.number) is left \(epoch.state) by a copy that is complete")
            }
        }
        for path in copyPaths(copy) {
            let prefix = ".\(Self.lastName(of: path))."
            if let left = files.names(at: Self.parent(of: path))?.first(where: { $0.hasPrefix(prefix) }) {
                fail("\(left) is left over")
            }
        }
    }
}
