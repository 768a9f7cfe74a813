import Blocks
import Foundation
import HostControl
import TestSupport

/// One volume with its host and a standing bridge, which live from round to round unless they are killed.
final class KillLane {
    /// The variable by which this lane's processes are found, whoever started them.
    private static let mark = "OUTBOARD_TEST_LANE"

    let shape: KillShape
    let scratch: ScratchDirectory
    let copies: KillCopies
    var tally = KillTally()
    let mount: TestMount?
    let storage: KillStorage
    let environment: [String: String]
    var host: HostProcess
    var bridge: BridgeProcess
    /// Until a round ends before its end: its writers go on, and what the volume holds is not known.
    private(set) var isUsable = true
    /// What the volume held when it was last looked at.
    var content: [UInt8]
    /// Seconds that copies take which nobody interrupts: by a private bridge, by the standing one.
    private var wholeCopy = [false: 0.5, true: 0.5]

    init(_ shape: KillShape) throws {
        self.shape = shape
        scratch = try ScratchDirectory()
        mount = TestMount.isPossible ? try TestMount(loop: 16 << 20, in: scratch) : nil
        storage = try KillStorage(shape, in: scratch)
        try FileManager.default.createDirectory(
            atPath: scratch("tmp"), withIntermediateDirectories: false)
        environment = [Self.mark: scratch.path, "TMPDIR": scratch("tmp")]
        try makeSparseFile(scratch("unit"), size: 24 << 20)
        content = try storage.contents()
        host = try Self.startHost(shape, storage, scratch, environment)
        bridge = try BridgeProcess(units: Self.units(host), environment: environment)
        copies = KillCopies(in: storage.copies, scratch, environment: environment)
    }

    deinit {
        // Before what they use is unmounted.
        host.stop()
        bridge.process.stop()
    }

    static func startHost(
        _ shape: KillShape, _ storage: KillStorage, _ scratch: ScratchDirectory,
        _ environment: [String: String]
    ) throws -> HostProcess {
        try HostProcess(
            scratch, source: storage.source, cache: storage.cache, options: shape.hostOptions,
            environment: environment)
    }

    static func units(_ host: HostProcess) -> [String] {
        ["0=\(host.source),ro", "1=\(host.cache),ro", "2=\(host.directory("unit"))"]
    }

    /// One round; what it counted, and what was wrong in it. Nothing, once the lane is of no use any more.
    /// - Parameter victim: nil: the seed says it.
    func run(_ seed: UInt64, victim: KillScenario.Victim? = nil) -> KillTally {
        tally = KillTally()
        guard isUsable else { return tally }
        tally.rounds = 1
        let scenario = KillScenario(seed: seed, shape, freezing: mount?.path, victim: victim)
        do { try round(scenario) } catch {
            isUsable = false
            tally.stuck.append("\(scenario), \(shape): \(error)")
        }
        storage.relieve()
        tally.kinds[shape.kind] = tally.killCount
        return tally
    }

    private func round(_ scenario: KillScenario) throws {
        try revive()
        try copies.prepare(scenario)
        let writers = try startWriters(scenario)
        if scenario.isBurdened { try storage.burden(scenario.room) }
        let begun = PrefixOracle.realTime
        let copy = try Outboard.start(
            copyArguments(scenario, scenario.rate), environment: environment)
        let statusBefore = try kill(scenario, copy, begun)
        try settle(scenario, copy)
        // One that is given up for it is released before anybody could ask.
        if isFull(statusBefore, begun) || isFull(try? host.status(), begun) || Self.tellsOfFull(copy) {
            tally.fills[shape.kind, default: 0] += 1
        }
        let last = try goOn(scenario, copy)
        storage.relieve()
        let died = !host.process.isRunning
        for writer in writers { stop(writer, died, scenario) }
        if died { try restartHost(scenario, statusBefore) } else { try heedFailedFlush(scenario) }
        judgeSource(writers, scenario)
        try judgeSnapshot(writers, begun, scenario)
        if !bridge.process.isRunning { try restartBridge() }
        let verdict = try copies.judge(
            scenario, writers.map(\.oracle), begun: begun, saidDone: last.wait(seconds: 1) == .exit(0), &tally
        )
        if case .wrong(let text) = verdict { tally.wrongCopies.append("\(scenario), \(shape): \(text)") }
        if let mount, scenario.options.contains("--freeze"), try mount.isFrozen() {
            tally.stuck.append("\(scenario): the file system is frozen")
            try LoopMount.succeed("fsfreeze", ["-u", mount.path])
        }
    }

    // MARK: Load

    private func startWriters(_ scenario: KillScenario) throws -> [Writer] {
        let half = (shape.size / 2).roundedDown(to: 512)
        let regions = [ByteRange(offset: 0, count: half), ByteRange(offset: half, count: shape.size - half)]
        let writers = try regions.enumerated().map { index, region in
            let oracle = PrefixOracle(
                seed: scenario.seed << 8 | UInt64(index), region: region, maximumLength: 32 << 10,
                found: Array(content[Int(region.offset)..<Int(region.end)]), flushInterval: 16)
            return try Writer(oracle, to: host.socket, initializes: false, pause: shape.pause)
        }
        for writer in writers { writer.start() }
        for writer in writers { writer.waitForOperations(3) }
        return writers
    }

    private func stop(_ writer: Writer, _ hostDied: Bool, _ scenario: KillScenario) {
        do { try writer.stop() } catch {
            let code = (error as? StoreError)?.code
            if shape.storage == .filters && scenario.isBurdened && code == .io {
                // The source's own: it reaches the application as it is.
                tally.sourceErrors += 1
            } else if !hostDied || code != .gone {
                // The end of a connection is no error of a request that was answered.
                tally.foregroundErrors.append("\(scenario), \(shape): \(error)")
            }
        }
        tally.answeredWrites += writer.oracle.operations.count { $0.finishedAt != nil }
        tally.flushedWrites += writer.oracle.flushedCount
    }

    private func copyArguments(_ scenario: KillScenario, _ rate: String?) -> [String] {
        var words = [
            "copy", "--host", host.control, "--to", copies.path, "--mode", scenario.mode, "--end",
            scenario.end,
        ]
        if scenario.isStanding {
            words += ["--bridge", bridge.uri, "--source-unit", "0", "--cache-unit", "1", "--copy-unit", "2"]
        }
        if scenario.isStanding || scenario.replaces { words.append("--force") }
        if let rate { words += ["--max-rate", rate] }
        return words + scenario.options
    }

    // MARK: Kills

    /// - Returns: what the host said right before.
    private func kill(_ scenario: KillScenario, _ copy: ChildProcess, _ begun: Int64) throws -> VolumeStatus {
        var privateBridge: pid_t?
        switch scenario.victim {
        case .nobody, .integrate:
            try awaitWholeCopy(scenario, copy, begun)
            return try host.status()
        case .bridge, .bridgeAndHost:
            // By the clock: it is no child of ours.
            try waitUntil("there is a private bridge") {
                privateBridge = scenario.isStanding ? nil : bridge(of: copy)
                return scenario.isStanding || privateBridge != nil || !copy.isRunning
            }
        default: break
        }
        if scenario.isSlow {
            // By the clock: the record is renamed to its place.
            try waitUntil("a part of the copy is noted") {
                try !copy.isRunning || copies.notedBytes(since: begun) > 0
            }
            usleep(UInt32(scenario.moment * 1e6))
        } else {
            usleep(UInt32(scenario.moment * wholeCopy[scenario.isStanding]! * 1.1e6))
        }
        var status = try host.status()
        let epoch = status.epoch.flatMap { $0.institutedAt >= begun ? $0.state.rawValue : nil }
        tally.phases[epoch ?? "not begun", default: 0] += 1
        switch scenario.victim {
        case .host: kill(host.process, "host")
        case .agent: kill(copy, "agent")
        case .bridge: killBridge(privateBridge, scenario)
        case .hostAndAgent:
            kill(host.process, "host")
            kill(copy, "agent")
        case .agentAndHost:
            kill(copy, "agent")
            _ = copy.waitForExit()
            // Nobody is left who could end the epoch.
            status = try host.status()
            kill(host.process, "host")
        case .bridgeAndHost:
            killBridge(privateBridge, scenario)
            kill(host.process, "host")
        case .integrate, .nobody: break
        }
        return status
    }

    private func awaitWholeCopy(_ scenario: KillScenario, _ copy: ChildProcess, _ begun: Int64) throws {
        guard copy.waitForExit() == .exit(0) else { return }
        let seconds = Double(PrefixOracle.realTime - begun) / 1e9
        wholeCopy[scenario.isStanding] = seconds
        if scenario.victim == .integrate { try copies.killIntegrate(scenario, &tally) }
    }

    private func bridge(of copy: ChildProcess) -> pid_t? {
        RunningProcesses.children(of: copy.identifier).first {
            RunningProcesses.command(of: $0).dropFirst().first == "bridge"
        }
    }

    private func kill(_ process: ChildProcess, _ name: String) {
        guard process.isRunning else { return }
        process.signal(SIGKILL)
        tally.kills[name, default: 0] += 1
    }

    private func killBridge(_ privateOne: pid_t?, _ scenario: KillScenario) {
        if scenario.isStanding { return kill(bridge.process, "bridge") }
        guard let privateOne, !RunningProcesses.hasEnded(privateOne) else { return }
        Glibc.kill(privateOne, SIGKILL)
        tally.kills["bridge", default: 0] += 1
    }

    /// Waits until the copy has ended, and all that it started.
    private func settle(_ scenario: KillScenario, _ copy: ChildProcess) throws {
        guard let ending = copy.waitForExit(seconds: 60) else {
            copy.signal(SIGKILL)
            throw TestFailure("the copy did not end: \(copy.errors)")
        }
        if ending != .signal(SIGKILL) { tally.endings["\(scenario.victim): \(ending)", default: 0] += 1 }
        let allowed: [ChildProcess.Ending] =
            ([0, 69, 75] + shape.statuses).map { .exit($0) } + [.signal(SIGKILL)]
        if ending == .exit(73) { tally.fullDisks += 1 }
        if !allowed.contains(ending) { tally.stuck.append("\(scenario): \(ending), \(copy.errors)") }
        // One that is killed takes its time when requests of the system are on the way.
        let killed =
            (scenario.victim.includesHost ? [host.process] : [])
            + (scenario.victim.includesBridge && scenario.isStanding ? [bridge.process] : [])
        for process in killed where process.waitForExit(seconds: 30) == nil {
            throw TestFailure("\(process.command) was killed, and does not end")
        }
        try awaitNoProcess(but: [host.process.identifier, bridge.process.identifier])
    }

    /// Has the copy go on that was cut off, while the writers write.
    /// - Returns: the one that was the last.
    private func goOn(_ scenario: KillScenario, _ copy: ChildProcess) throws -> ChildProcess {
        guard scenario.resumes, copy.waitForExit() != .exit(0) else { return copy }
        if !bridge.process.isRunning { try restartBridge() }
        // By the clock: the host sees the end of the agent's connection by itself.
        try waitUntil("nobody holds the epoch") { try host.status().epoch?.isHeld != true }
        let words = copyArguments(scenario, nil) + ["--resume", "--json"]
        let again = try Outboard.start(words, environment: environment)
        // With all of its output, which is read below.
        guard let ending = again.wait(seconds: 60) else {
            again.signal(SIGKILL)
            throw TestFailure("the copy that goes on did not end: \(again.errors)")
        }
        tally.endings["resumed after \(scenario.victim): \(ending)", default: 0] += 1
        switch ending {
        case .exit(0):
            tally.resumedCopies += 1
            let bytes = try resumedBytes(again)
            tally.resumedBytes += bytes
            if bytes > 0 { tally.resumedFromMore += 1 }
        // It had nothing noted yet, or its epoch was over.
        case .exit(66), .exit(75): break
        // It was killed before it had cleared what one of another kind had left.
        case .exit(64) where again.errors.contains("it was begun with other options"): break
        // It was killed when all was done.
        case .exit(73) where FileManager.default.fileExists(atPath: copies.path + "/manifest.json"): break
        case .exit(let status) where shape.statuses.contains(status): break
        default: tally.stuck.append("\(scenario), \(shape): --resume, \(ending), \(again.errors)")
        }
        try awaitNoProcess(but: [host.process.identifier, bridge.process.identifier])
        return again
    }

    private struct Output: Decodable {
        struct Copy: Decodable { var resumedBytes: UInt64? }
        var copies: [Copy]
    }

    private func resumedBytes(_ copy: ChildProcess) throws -> UInt64 {
        let output = try JSONDecoder().decode(Output.self, from: Data(copy.output.utf8))
        guard let bytes = output.copies.first?.resumedBytes else {
            throw TestFailure("a copy that went on does not say from where: \(copy.output)")
        }
        return bytes
    }

    func awaitNoProcess(but known: [pid_t]) throws {
        var left: [pid_t] = []
        do {
            // By the clock: they are no children of ours.
            try waitUntil("all processes of the copy have ended", seconds: 30) {
                left = RunningProcesses.marked(Self.mark, scratch.path).filter { !known.contains($0) }
                return left.isEmpty
            }
        } catch {
            let commands = left.map { RunningProcesses.command(of: $0).joined(separator: " ") }
            for process in left { Glibc.kill(process, SIGKILL) }
            throw TestFailure("processes are left: \(commands)")
        }
    }
}
