import Agent
import Blocks
import Foundation
import HostControl
import SCSI
import TestSupport
import Testing

/// The metrics of real processes, scraped as Prometheus does, judged by a strict parser and by Prometheus' own.
@Suite(.serialized) struct MetricsScrapeTests {
    /// `promtool` of Debian's package prometheus, where the machine has it.
    private static let promtool: String? = {
        let found = (try? runProgram("sh", ["-c", "command -v promtool"]))?.output ?? ""
        return found.isEmpty ? nil : found.trimmingCharacters(in: .newlines)
    }()

    /// By a client that is not ours.
    private func scrape(_ address: String) throws -> Exposition {
        let script = """
            import sys, urllib.request
            answer = urllib.request.urlopen("http://" + sys.argv[1] + "/metrics", timeout=20)
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            sys.stdout.buffer.write(answer.read())
            """
        let result = try runProgram("python3", ["-c", script, address])
        guard result.isSuccess else { throw TestFailure("\(result)") }
        return try judged(result.output)
    }

    private func judged(_ page: String) throws -> Exposition {
        if let promtool = Self.promtool {
            let scratch = try ScratchDirectory()
            try page.write(toFile: scratch("page"), atomically: false, encoding: .utf8)
            let check = try runProgram("sh", ["-c", "'\(promtool)' check metrics < '\(scratch("page"))'"])
            #expect(check.isSuccess && check.errors.isEmpty, "\(check)")
        }
        let exposition = try Exposition(page)
        for name in exposition.kinds.keys {
            #expect(Self.article.contains("| `\(name)` |"), "Observability.md does not have \(name)")
        }
        return exposition
    }

    private static let article: String = {
        let path = URL(filePath: #filePath).deletingLastPathComponent().appending(
            path: "../../Sources/outboard/outboard.docc/Observability.md")
        return (try? String(contentsOf: path, encoding: .utf8)) ?? ""
    }()

    private func judgedFile(_ path: String) throws -> Exposition {
        try judged(try String(contentsOfFile: path, encoding: .utf8))
    }

    private struct Ready: Decodable {
        var metrics: String?
        var portal: String?
        var target: String?
    }

    private func ready(_ process: ChildProcess) throws -> Ready {
        let line = try #require(process.line { $0.hasPrefix("{") }, "\(process.errors)")
        return try JSONDecoder().decode(Ready.self, from: Data(line.utf8))
    }

    @Test(
        .enabled(
            if: promtool != nil,
            "LEFT OUT promtool is not installed: our own strict parser alone judges metrics"))
    func prometheusOwnCheckIsThere() throws {
        let wrong = try runProgram("sh", ["-c", "echo rubbish | '\(Self.promtool ?? "")' check metrics"])
        #expect(!wrong.isSuccess, "\(wrong)")
    }

    @Test func aHostTellsWhatItDid() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 8 << 20)
        let process = try Outboard.start([
            "host", "--source", scratch("volume.img"), "--cache", scratch("cache"), "--socket",
            scratch("nbd"),
            "--control", scratch("ctl"), "--cache-size", "4MiB", "--chunk-size", "64KiB", "--metrics",
            "127.0.0.1:0",
            "--json",
        ])
        defer { process.stop() }
        let address = try #require(try ready(process).metrics)
        let before = try scrape(address)
        #expect(before.value("outboard_host_epoch_state", ["state": "none"]) == 1)
        #expect(before.value("outboard_host_operations_total", ["op": "write"]) == 0)

        let control = try HostClient(path: scratch("ctl"))
        let epoch = try control.call(SnapshotBeginMethod.self, Empty())
        let store = try NBDStore(.unixSocket(scratch("nbd"), export: ""), connections: 1)
        for place in 0..<UInt64(10) {
            try store.write([UInt8](repeating: 1, count: 4096), at: place << 16)
            try store.write([UInt8](repeating: 2, count: 4096), at: place << 16)
        }
        try store.flush()
        _ = try store.bytes(at: 0, count: 8192)
        let during = try scrape(address)
        let status = try control.call(VolumeStatusMethod.self, Empty())
        #expect(during.value("outboard_host_operations_total", ["op": "write"]) == 20)
        #expect(during.value("outboard_host_operations_total", ["op": "flush"]) == 1)
        #expect(during.value("outboard_host_written_bytes_total") == Double(20 * 4096))
        #expect(during.value("outboard_host_read_bytes_total") == 8192)
        #expect(during.value("outboard_host_chunks_preserved_total") == 10)
        #expect(during.value("outboard_host_chunks_spared_total") == 0)
        #expect(during.value("outboard_host_latency_seconds_count", ["op": "write"]) == 20)
        #expect(during.value("outboard_host_latency_seconds_count", ["op": "preserve"]) ?? 0 >= 1)
        #expect(during.value("outboard_host_latency_seconds_bucket", ["op": "gate", "le": "+Inf"]) == 1)
        #expect(during.value("outboard_host_cache_used_bytes") == Double(status.cacheUsed))
        #expect(during.value("outboard_host_cache_capacity_bytes") == Double(status.cacheCapacity))
        let fill = Double(status.cacheUsed) / Double(status.cacheCapacity)
        #expect(abs((during.value("outboard_host_cache_fill_ratio") ?? 0) - fill) < 1e-6)
        #expect(during.value("outboard_host_epoch_state", ["state": "open"]) == 1)
        #expect(during.value("outboard_host_epoch_held") == 1 && during.value("outboard_host_clients") == 1)
        #expect(during.value("outboard_host_frozen") == 0 && during.value("outboard_host_flush_failed") == 0)
        #expect(
            during.value("outboard_host_info", ["volume": status.volumeUUID, "source": status.source]) == 1)
        let more = try expectForecast(address, control, store)

        // More than the cache takes.
        try store.write([UInt8](repeating: 3, count: 8 << 20), at: 0)
        let after = try scrape(address)
        #expect(after.value("outboard_host_epoch_state", ["state": "void"]) == 1)
        #expect(after.value("outboard_host_written_bytes_total") == Double(20 * 4096 + 8 << 20) + more)
        _ = try control.call(CacheReleaseMethod.self, EpochParameters(epoch: epoch.uuid))
        #expect(try scrape(address).value("outboard_host_epoch_state", ["state": "released"]) == 1)
    }

    /// Writes a block of one more chunk each time, from the tenth on, until the cache has been filled for a second.
    /// - Returns: bytes written.
    private func expectForecast(
        _ address: String, _ control: HostClient, _ store: NBDStore
    ) throws -> Double {
        var chunk: UInt64 = 10
        var told: Double?
        try waitUntil("the forecast is told") {
            try store.write([UInt8](repeating: 4, count: 4096), at: chunk << 16)
            chunk += 1
            usleep(200_000)
            told = try scrape(address).value("outboard_host_cache_seconds_to_full")
            return told != nil
        }
        let status = try control.call(VolumeStatusMethod.self, Empty())
        let (used, left) = (Double(status.cacheUsed), Double(status.cacheCapacity - status.cacheUsed))
        // At most what the whole epoch has taken came in the second at least, and a chunk at least in the ten at most, that
        // it goes by.
        let bounds = left / (used - 8192)...left / 65_536 * 11
        #expect(told.map(bounds.contains) == true, "\(told ?? -1) of \(status)")
        return Double(chunk - 10) * 4096
    }

    @Test func aBridgeTellsWhatItDid() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        try makeSparseFile(scratch("unit"), size: 4 << 20)
        let host = try HostProcess(scratch)
        let bridge = try Outboard.start([
            "bridge", "--unit", "0=\(host.source),ro", "--unit", "1=\(host.cache),ro", "--unit",
            "2=\(scratch("unit"))", "--portal", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--json",
        ])
        defer { bridge.stop() }
        let place = try ready(bridge)
        let address = try #require(place.metrics)
        let uri = "iscsi://\(place.portal ?? "")/\(place.target ?? "")"
        let copy = try Outboard.run([
            "copy", "--host", host.control, "--to", scratch("copy"), "--bridge", uri, "--source-unit", "0",
            "--cache-unit", "1", "--copy-unit", "2",
        ])
        #expect(copy.isSuccess, "\(copy)")
        let page = try scrape(address)
        #expect(page.value("outboard_bridge_copied_from_bytes_total", ["unit": "0"]) == Double(4 << 20))
        #expect(page.value("outboard_bridge_copied_to_bytes_total", ["unit": "2"]) == Double(4 << 20))
        #expect(page.value("outboard_bridge_copied_to_bytes_total", ["unit": "0"]) == 0)
        #expect(page.value("outboard_bridge_copies_total", ["result": "done"]) ?? 0 >= 1)
        #expect(page.value("outboard_bridge_copies_total", ["result": "failed"]) == 0)
        #expect(page.value("outboard_bridge_copies_running") == 0)
        #expect(page.value("outboard_bridge_copy_requests_in_flight") == 0)
        #expect(page.value("outboard_bridge_commands_total", ["unit": "0"]) ?? 0 > 0)
        #expect(page.value("outboard_bridge_data_in_bytes_total", ["unit": "2"]) ?? 0 > 0)

        // A command that does not end well is an error of its unit alone.
        let initiator = try Initiator(try BridgeAddress(parsing: uri))
        defer { initiator.close() }
        func errors(_ page: Exposition, of unit: String) -> Double {
            page.samples.filter {
                $0.key.name == "outboard_bridge_errors_total" && $0.key.labels["unit"] == unit
                    && $0.key.labels["kind"] == "copy aborted"
            }.values.reduce(0, +)
        }
        let before = try scrape(address)
        #expect(throws: AgentError.self) {
            try initiator.extendedCopy(
                lun: 2,
                CopyParameterList(
                    listIdentifier: 1, cscds: [],
                    segments: [
                        SegmentDescriptor(
                            source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(0),
                            amount: .bytes(512, sourceOffset: 0, destinationOffset: 0))
                    ]))
        }
        let after = try scrape(address)
        #expect(errors(after, of: "2") == errors(before, of: "2") + 1)
        #expect(errors(after, of: "0") == errors(before, of: "0"))
        try waitUntil("the copy's session has ended") {
            try scrape(address).value("outboard_bridge_sessions") == 1
        }
    }

    @Test func aCopyTellsItsPhasesAndItsEnd() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 12 << 20)
        let host = try HostProcess(scratch, options: ["--cache-size", "2MiB", "--chunk-size", "64KiB"])
        let file = scratch("copy.prom")
        let copy = try CopyInProgress(of: host, rate: "256KiB", options: ["--metrics", file])
        let running = try judgedFile(file)
        #expect(
            running.value("outboard_copy_running") == 1 && running.value("outboard_copy_exit_status") == nil)
        #expect(running.value("outboard_copy_info", ["to": copy.destination]) == 1)
        let store = try NBDStore(.unixSocket(host.socket, export: ""))
        try store.write([UInt8](repeating: 7, count: 4 << 20), at: 0)
        #expect(copy.process.wait() == .exit(75), "\(copy.process.errors)")
        let failed = try judgedFile(file)
        #expect(failed.value("outboard_copy_exit_status") == 75 && failed.value("outboard_copy_running") == 0)
        #expect(failed.value("outboard_copy_phase", ["phase": "copying"]) == 1)

        let made = try Outboard.run([
            "copy", "--host", host.control, "--to", copy.destination, "--metrics", file,
        ])
        #expect(made.isSuccess && made.errors.isEmpty, "\(made)")
        let done = try judgedFile(file)
        #expect(done.value("outboard_copy_exit_status") == 0)
        #expect(done.value("outboard_copy_copied_bytes_total") == Double(12 << 20))
        let phases = done.samples.filter { $0.key.name == "outboard_copy_phase_duration_seconds" }
        let whole = try #require(done.value("outboard_copy_duration_seconds"))
        #expect(phases.count > 4 && phases.values.reduce(0, +) <= whole + 0.1)

        // That they cannot be written is told, and costs nothing else.
        let mute = try Outboard.run([
            "copy", "--host", host.control, "--to", scratch("mute"), "--metrics", "/dev/null",
        ])
        #expect(mute.isSuccess && mute.errors.contains("no metrics are told"), "\(mute)")
    }

    @Test func openAddressesAreRefusedUnlessMeant() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 1 << 20)
        try makeSparseFile(scratch("unit"), size: 1 << 20)
        let host = [
            "host", "--source", scratch("volume.img"), "--cache", scratch("cache"), "--socket",
            scratch("nbd"),
            "--control", scratch("ctl"),
        ]
        let bridge = ["bridge", "--unit", "0=" + scratch("unit"), "--portal", "127.0.0.1:0"]
        for command in [host, bridge] {
            for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9100"] {
                let refused = try Outboard.run(command + ["--metrics", address], seconds: 60)
                // What was not refused would run on.
                try #require(
                    refused.status == 77 && refused.errors.contains("--metrics-any-address"), "\(refused)")
            }
        }
        #expect(!FileManager.default.fileExists(atPath: scratch("cache")))
        let open = try Outboard.start(host + ["--metrics", "0.0.0.0:0", "--metrics-any-address", "--json"])
        let port = try #require(try ready(open).metrics).split(separator: ":").last ?? ""
        #expect(try scrape("127.0.0.1:\(port)").value("outboard_host_info") == 1)

        // A port that is taken keeps no volume from its applications.
        let second = try HostProcess(
            ScratchDirectory.withVolume(), options: ["--metrics", "127.0.0.1:\(port)"])
        #expect(try second.ask("volume.status").contains("\"result\""))
        second.stop()
        #expect(second.process.wait() == .exit(0))
        #expect(second.process.errors.contains("no metrics are told"), "\(second.process.errors)")
        open.stop()
    }
}

extension ScratchDirectory {
    /// One with a `volume.img` of a MiB.
    static func withVolume() throws -> ScratchDirectory {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 1 << 20)
        return scratch
    }
}
