import Agent
import Blocks
import Foundation
import HostControl
import TestSupport
import Testing

/// A host that dies is started again as its unit has it, and serves the same volume with the same epoch.
@Suite(.serialized) struct HostRestartTests {
    private static let analyze = "/usr/bin/systemd-analyze"

    /// A volume whose host is started by the unit's own command line, which ends when the host says that it serves.
    private struct Site {
        let scratch: ScratchDirectory
        let unit: SystemdUnit
        let manager: NotifySocket
        var source: String { scratch("data.img") }
        var socket: String { scratch("data.sock") }
        var control: String { scratch("data.ctl") }

        init() throws {
            scratch = try ScratchDirectory()
            try makePatternFile(scratch("data.img"), count: 8 << 20)
            unit = try SystemdUnit("outboard-host@.service")
            manager = try NotifySocket(scratch("notify"))
        }

        func start() throws -> ChildProcess {
            let arguments = try unit.arguments([
                ("/run/outboard/%i", scratch("data")), ("${SOURCE}", source),
                ("${CACHE}", scratch("data.cache")), ("$OPTIONS", "--chunk-size 16KiB --cache-size 64MiB"),
            ])
            let process = try Outboard.start(arguments, environment: ["NOTIFY_SOCKET": manager.name])
            let told = try manager.next()
            #expect(told == ["READY=1", "STATUS=serving \(source)"])
            return process
        }

        func status() throws -> VolumeStatus {
            try HostClient(path: control).call(VolumeStatusMethod.self, Empty())
        }

        /// Two writers, each with a half of the volume of its own, that have written some.
        func writers(_ round: Int, over content: [UInt8]) throws -> [Writer] {
            let half = UInt64(content.count / 2)
            let writers = try (0..<UInt64(2)).map { index in
                let region = ByteRange(offset: index * half, count: half)
                let oracle = PrefixOracle(
                    seed: UInt64(round) << 8 | index, region: region, maximumLength: 32 << 10,
                    found: Array(content[Int(region.offset)..<Int(region.end)]), flushInterval: 16)
                return try Writer(oracle, to: socket, initializes: false)
            }
            for writer in writers { writer.start() }
            for writer in writers { writer.waitForOperations(40) }
            return writers
        }

        func expectSnapshot(_ original: [UInt8]) throws {
            let snapshot = try NBDStore(.unixSocket(socket, export: "snapshot"), connections: 1)
            #expect(try haveSameBytes(snapshot.bytes(at: 0, count: original.count), original))
        }
    }

    @Test func aKilledHostServesAgainWithItsEpoch() throws {
        let site = try Site()
        #expect(try site.unit.value("Restart") == "always")
        #expect(try site.unit.value("StartLimitIntervalSec") == "0")
        let original = try contents(site.source)
        var host = try site.start()
        defer { host.stop() }
        let agent = try HostClient(path: site.control)
        let epoch = try agent.call(SnapshotBeginMethod.self, Empty())
        var content = original
        var preserved: UInt64 = 0
        var seconds: [Double] = []
        for round in 0..<3 {
            let writers = try site.writers(round, over: content)
            preserved += try site.status().counters.chunksPreserved
            host.signal(SIGKILL)
            let killed = MonotonicClock.now
            #expect(host.waitForExit() == .signal(SIGKILL))
            usleep(try site.unit.restartMilliseconds * 1000)
            host = try site.start()
            let store = try NBDStore(.unixSocket(site.socket, export: ""), connections: 1)
            _ = try store.bytes(at: 0, count: 4096)
            seconds.append(Double(MonotonicClock.now - killed) / 1e9)

            for writer in writers {
                do { try writer.stop() } catch {
                    // The end of a connection is no error of a request that was answered.
                    #expect((error as? StoreError)?.code == .gone, "\(error)")
                }
            }
            let status = try site.status()
            #expect(status.epoch?.uuid == epoch.uuid && status.epoch?.number == epoch.number)
            #expect(status.epoch?.state == .open && status.epoch?.isHeld == false)
            content = try contents(site.source)
            #expect(try haveSameBytes(store.bytes(at: 0, count: content.count), content))
            for oracle in writers.map(\.oracle) {
                let region = Int(oracle.region.offset)..<Int(oracle.region.end)
                let verdict = oracle.judgeSource(Array(content[region]))
                #expect(verdict.isConsistent, "round \(round): \(verdict)")
            }
            try site.expectSnapshot(original)
        }
        #expect(preserved > 0)
        // What was not preserved before the last death is preserved now.
        let store = try NBDStore(.unixSocket(site.socket, export: ""), connections: 1)
        try store.write([UInt8](repeating: 0xA5, count: original.count), at: 0)
        try site.expectSnapshot(original)
        // The median: one may meet a machine that does something else.
        #expect(seconds.sorted()[seconds.count / 2] < 1, "\(seconds)")
        let told = seconds.map { String(format: "%.2f", $0) }.joined(separator: ", ")
        print("A killed host, started again as its unit says, served its epoch after \(told) s.")
    }

    /// What a client of QEMU's block layer sees: with `reconnect-delay` a pause, without it an error.
    @Test(arguments: [true, false]) func clientsThatComeBackSeeAPause(comesBack: Bool) throws {
        let site = try Site()
        var host = try site.start()
        defer { host.stop() }
        let client = try ChildProcess(
            "qemu-io",
            [
                "--image-opts",
                "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=\(site.socket)"
                    + (comesBack ? ",file.reconnect-delay=3600" : ""),
            ], keepsInputOpen: true)
        defer { client.stop() }
        func expect(_ command: String, _ answer: String) throws {
            client.write(command + "\n")
            let line = client.line { $0.contains(answer) }
            #expect(line != nil, "\(command): \(client.output)")
        }
        try expect("write -P 1 0 4096", "wrote 4096/4096 bytes at offset 0")
        // A request that the host has not answered, and may never have read.
        host.signal(SIGSTOP)
        client.write("write -P 2 4096 4096\n")
        host.signal(SIGKILL)
        #expect(host.waitForExit() == .signal(SIGKILL))
        if !comesBack {
            #expect(client.line { $0.contains("write failed: Input/output error") } != nil)
        }
        host = try site.start()
        if comesBack {
            #expect(client.line { $0.contains("wrote 4096/4096 bytes at offset 4096") } != nil)
            try expect("write -P 3 8192 4096", "wrote 4096/4096 bytes at offset 8192")
            client.closeInput()
            #expect(client.wait() == .exit(0))
        }
        client.stop()
        let bytes = try contents(site.source)
        for block in 0..<(comesBack ? 3 : 1) {
            #expect(bytes[block << 12..<(block + 1) << 12].allSatisfy { $0 == block + 1 }, "\(block)")
        }
    }

    /// What a service manager is told, by a path and by an abstract address.
    @Test func partsTellTheirServiceManager() throws {
        let site = try Site()
        let host = try site.start()
        #expect(host.stop() == .exit(0))
        #expect(try site.manager.next().first == "STOPPING=1")

        let manager = try NotifySocket("@outboard-test-\(getpid())-\(UInt32.random(in: .min ... .max))")
        let bridge = try BridgeProcess(
            units: ["0=" + site.source], environment: ["NOTIFY_SOCKET": manager.name])
        #expect(try manager.next() == ["READY=1", "STATUS=serving \(bridge.portal)"])
        #expect(bridge.process.stop() == .exit(0))
        #expect(try manager.next().first == "STOPPING=1")

        // One that is gone is no reason for anything.
        let other = try BridgeProcess(
            units: ["0=" + site.source], environment: ["NOTIFY_SOCKET": site.scratch("nobody")])
        #expect(other.process.stop() == .exit(0))
    }

    @Test(
        .enabled(
            if: FileManager.default.isExecutableFile(atPath: analyze),
            "LEFT OUT systemd-analyze is not installed: nobody looks at the units"))
    func unitsAreWhatSystemdUnderstands() throws {
        let scratch = try ScratchDirectory()
        for (name, instance) in [
            ("outboard-host@.service", "outboard-host@data.service"),
            ("outboard-bridge.service", "outboard-bridge.service"),
        ] {
            let unit = try SystemdUnit(name)
            #expect(try unit.value("Type") == "notify")
            let path = try unit.write(to: scratch.path, as: instance)
            let checked = try runProgram(Self.analyze, ["verify", path])
            #expect(checked.isSuccess && checked.errors.isEmpty, "\(checked)")
        }
    }
}
