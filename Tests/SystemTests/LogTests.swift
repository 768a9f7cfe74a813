import Agent
import Blocks
import Foundation
import Logging
import TestSupport
import Testing

@testable import outboard

/// The log's lines: for people, for journals, for programs.
@Suite(.serialized) struct LogTests {
    private func line(
        _ message: String, _ metadata: Logger.Metadata = [:], level: Logger.Level = .warning
    ) -> LogLine {
        LogLine(
            part: "host", module: "NBD", level: level, message: message, metadata: metadata,
            time: 1_795_249_417.25)
    }

    private struct Value: CustomStringConvertible, Sendable {
        var description: String
    }

    @Test func textIsOneLineWhateverIsSaid() {
        #expect(
            line("no direct I/O", ["unit": .stringConvertible(3), "path": "/a b", "empty": ""]).text(.nothing)
                == #"outboard host: warning: no direct I/O empty="" path="/a b" unit=3"#)
        #expect(line("news", level: .notice).text(.nothing) == "outboard host: news")
        #expect(line("x").text(.priority) == "<4>outboard host: warning: x")
        #expect(line("x").text(.time) == "2026-11-21T08:23:37.250Z outboard host: warning: x")
        // What comes from outside can neither end the line, nor pass for a key, nor move a cursor.
        let hostile = "a\noutboard host: b=c \"\\ \u{1B}[2J\u{7}\u{85}\u{2028}\u{202E}é"
        let text = line(hostile, ["name": "\(hostile)", "x=y": "1"]).text(.nothing)
        #expect(
            text == #"outboard host: warning: a\noutboard host: b=c "\ \u001b[2J\u0007\u0085\u2028\u202eé"#
                + #" name="a\noutboard host: b=c \"\\ \u001b[2J\u0007\u0085\u2028\u202eé" "x=y"=1"#)
        #expect(text.split(whereSeparator: \.isNewline).count == 1)
    }

    @Test func jsonIsOneObjectWhateverIsSaid() throws {
        let all = String(String.UnicodeScalarView((0..<0x300).compactMap(Unicode.Scalar.init)))
        let text = line(
            all,
            [
                "unit": .stringConvertible(3), "bytes": .stringConvertible(UInt64.max),
                "rate": .stringConvertible(1.5),
                "nan": .stringConvertible(Double.nan), "own": .stringConvertible(Value(description: all)),
                "yes": .stringConvertible(true), "level": "fake", "list": ["a", ["k": "v\n"]],
            ]
        ).json
        #expect(text.split(whereSeparator: \.isNewline).count == 1)
        let object = try #require(
            try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        #expect(object["message"] as? String == all && object["own"] as? String == all)
        #expect(object["unit"] as? Int == 3 && object["bytes"] as? UInt64 == .max)
        #expect(object["rate"] as? Double == 1.5 && object["nan"] as? String == "nan")
        #expect(object["yes"] as? Bool == true)
        #expect(object["level"] as? String == "warning" && object["_level"] as? String == "fake")
        #expect(object["part"] as? String == "host" && object["module"] as? String == "NBD")
        #expect(object["time"] as? String == "2026-11-21T08:23:37.250Z")
        let list = try #require(object["list"] as? [Any])
        #expect(list[0] as? String == "a" && (list[1] as? [String: String])?["k"] == "v\n")
    }

    /// The log as objects; anything else on standard error is an issue.
    private func objects(_ text: String) -> [[String: Any]] {
        text.split(separator: "\n").compactMap { line in
            let object = try? JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
            if object == nil { Issue.record("no object: \(line)") }
            return object
        }
    }

    @Test func everyPartLogsAsItIsTold() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 2 << 20)
        let json = ["--log-format", "json", "--log-level", "debug"]
        let host = try HostProcess(scratch, options: json)
        let copied = try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy")] + json)
        #expect(copied.isSuccess, "\(copied)")
        let log = objects(copied.errors)
        let phases = log.filter { $0["message"] as? String == "phase over" }.compactMap {
            $0["phase"] as? String
        }
        #expect(phases.contains("instituting") && phases.contains("copying"), "\(copied)")
        #expect(log.contains { $0["method"] as? String == "snapshot.begin" && $0["ms"] as? Int != nil })
        let again = try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy")] + json)
        #expect(again.status == 73, "\(again)")
        let last = try #require(objects(again.errors).last)
        #expect(last["level"] as? String == "error" && last["status"] as? Int == 73, "\(again)")
        let restored = try Outboard.run(
            ["restore", "volume", scratch("copy"), "--to", scratch("back")] + json)
        #expect(restored.isSuccess && !objects(restored.errors).isEmpty, "\(restored)")

        host.stop()
        #expect(host.process.wait() == .exit(0))
        let said = objects(host.process.errors)
        #expect(said.allSatisfy { $0["part"] as? String == "host" })
        let instituted = try #require(said.first { $0["method"] as? String == "snapshot.begin" })
        #expect(instituted["epoch"] as? Int == 1 && instituted["level"] as? String == "info")
        #expect(UUID(uuidString: instituted["volume"] as? String ?? "") != nil)
        #expect(said.contains { $0["module"] as? String == "NBD" && $0["connection"] as? Int != nil })

        // Nothing at the levels that are not asked for; the time where nobody else notes it.
        let quiet = try HostProcess(scratch, options: ["--log-level", "critical"])
        _ = try quiet.ask("host.shutdown", #"{"force":false}"#)
        #expect(quiet.process.wait() == .exit(0) && quiet.process.errors.isEmpty, "\(quiet.process.errors)")
        let text = try HostProcess(scratch, options: ["--log-level", "info"])
        _ = try text.ask("snapshot.begin")
        text.stop()
        #expect(text.process.wait() == .exit(0))
        let line = try #require(
            text.process.errors.split(separator: "\n").first { $0.contains("snapshot.begin") })
        #expect(
            line.contains(
                /^[-0-9]{10}T[:.0-9]{12}Z outboard host: info: control epoch=2 method=snapshot.begin ms=/),
            "\(line)")
    }

    @Test func aVoidEpochIsAWarning() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 8 << 20)
        let host = try HostProcess(
            scratch, options: ["--cache-size", "2MiB", "--chunk-size", "64KiB", "--log-level", "warning"])
        _ = try host.ask("snapshot.begin")
        let store = try NBDStore(.unixSocket(host.socket, export: ""))
        try store.write([UInt8](repeating: 7, count: 4 << 20), at: 0)
        host.stop()
        #expect(host.process.wait() == .exit(0))
        let lines = host.process.errors.split(separator: "\n")
        #expect(
            lines.count == 1 && lines[0].contains("outboard host: warning: the epoch is void"), "\(lines)")
    }
}
