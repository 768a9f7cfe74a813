import ArgumentParser
import Blocks
import PhysicalCopy

struct VerifyCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify", abstract: "Read all of a copy and compare it with its checksums.",
        discussion: """
            Checks the manifest, every portion's checksums, and each original image's own CRC, and says where \
            something does not fit: a line for each on standard error, or in `findings` of --json.

            EXIT STATUS: 0 all fits; 64 usage; 65 something does not; 66 no such copy; 69 the bridge that has \
            the data is unreachable; 73 `integrate` is at work on it; 74 input/output error; 77 not permitted.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String

    @OptionGroup var data: CopyDataOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    private struct Output: Encodable {
        var copy: String
        var ok: Bool
        var bytes: UInt64
        var originals: UInt64
        var findings: [Finding]
    }

    func run() throws {
        let copy = try PhysicalCopy(copy)
        let bar = ProgressBar()
        let total = copy.manifest.data.length + (copy.manifest.originals?.length ?? 0)
        var done: UInt64 = 0
        defer { bar.clear() }
        let report = try copy.verify(data.opener(of: copy)) { more throws(CopyError) in
            done += more
            bar.update(phase: "verify", done: done, total: total)
        }
        bar.clear()
        if json {
            try Console.print(
                json: Output(
                    copy: copy.directory, ok: report.isClean, bytes: report.bytes,
                    originals: report.originals, findings: report.findings))
        }
        guard report.isClean else {
            for finding in report.findings {
                Console.complain(
                    "\(copy.directory): \(finding.part.rawValue) at \(finding.offset), "
                        + "\(finding.length) bytes: \(finding.problem)")
            }
            throw Failure(
                .damaged,
                "the copy \(copy.directory) does not verify (\(report.findings.count) findings, above); "
                    + (copy.manifest.state == .integrating
                        ? "run outboard integrate again, and verify then"
                        : "take another one, or keep it for what is still whole"))
        }
        if !json {
            Console.print(
                "verified \(copy.directory): \(ByteCount(report.bytes).rounded), \(report.originals) originals"
            )
        }
    }
}
