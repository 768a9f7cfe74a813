import Foundation
import Glibc
import TestSupport
import Testing

/// Streams that somebody else reads, or does not; and what is said of damaged ones.
@Suite struct BackupStreamTests {
    @Test("Who writes into a pipe that nobody reads can be stopped", arguments: ["backup", "named", "cat"])
    func blockedPipe(kind: String) throws {
        let crafted = try CraftedCopy(mode: "overlay")
        crafted.file("file", size: 8 << 20, [.init(fileOffset: 0, volumeOffset: 0, count: 8 << 20)])
        try crafted.finish()
        let pipe = crafted.scratch("pipe")
        try #require(mkfifo(pipe, 0o600) == 0)
        let reader = open(pipe, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        try #require(reader >= 0)
        defer { close(reader) }
        let process =
            switch kind {
            case "named": try Outboard.start(["backup", crafted.copy, "--to", pipe])
            case "backup": try start(["backup", crafted.copy, "--to", "-"], into: pipe)
            default: try start(["cat", crafted.copy, "/file"], into: pipe)
            }
        try waitUntil("the pipe is full") {
            var count: Int32 = 0
            return ioctl(reader, UInt(FIONREAD), &count) == 0 && count >= 60 << 10
        }
        process.signal(SIGINT)
        #expect(process.waitForExit(seconds: 20) == .exit(75), "\(process.errors)")
        process.stop()
    }

    private func start(_ arguments: [String], into pipe: String) throws -> ChildProcess {
        try ChildProcess(
            "/bin/sh",
            ["-c", #"pipe="$1"; shift; exec "$@" > "$pipe""#, "sh", pipe, Outboard.binary] + arguments)
    }

    @Test func aStreamIsWholeWhoeverReadsItHoweverSlowly() throws {
        let crafted = try CraftedCopy(mode: "append")
        let whole = crafted.scratch("whole")
        let made = try runProgram(
            "bash",
            [
                "-o", "pipefail", "-c",
                #""$1" backup "$2" --to - | (dd bs=7 count=1000 && sleep 0.3 && cat) > "$3""#,
                "bash", Outboard.binary, crafted.copy, whole,
            ])
        #expect(made.isSuccess, "\(made)")
        let verified = try Outboard.run(["verify", "--backup", whole])
        #expect(verified.isSuccess, "\(verified)")
    }

    private struct Report: Decodable {
        struct Finding: Decodable {
            var member: String
            var streamOffset: UInt64
            var problem: String
        }
        var ok: Bool
        var findings: [Finding]
    }

    @Test("What ends the reading of a backup is a finding, too")
    func damagedHead() throws {
        let crafted = try CraftedCopy(mode: "append")
        let scratch = crafted.scratch
        #expect(try Outboard.run(["backup", crafted.copy, "--to", scratch("whole")]).isSuccess)
        let whole = try Data(contentsOf: URL(fileURLWithPath: scratch("whole")))
        func verify(_ bytes: Data) throws -> Report {
            try bytes.write(to: URL(fileURLWithPath: scratch("damaged")))
            let result = try Outboard.run(["verify", "--backup", scratch("damaged"), "--json"])
            #expect(result.status == 65, "\(result)")
            return try JSONDecoder().decode(Report.self, from: Data(result.output.utf8))
        }
        var header = whole
        let place = try #require(whole.range(of: Data("recordBytes".utf8))).lowerBound
        header[place] ^= 1
        let damagedHeader = try verify(header)
        #expect(!damagedHeader.ok && damagedHeader.findings.map(\.member) == ["backup.json"])
        var manifest = whole
        manifest[try #require(whole.range(of: Data("institutedAt".utf8))).lowerBound] ^= 1
        #expect(try verify(manifest).findings.map(\.member) == ["manifest.json"])
        for cut in [0, 100, 5 << 20] {
            let report = try verify(whole.prefix(cut))
            #expect(!report.ok && report.findings.count == 1, "\(report)")
        }
        #expect(
            try verify(Data([0x28, 0xB5, 0x2F, 0xFD]) + whole).findings.first?.problem == "it is compressed")
    }
}
