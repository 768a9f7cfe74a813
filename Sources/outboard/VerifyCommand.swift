import ArgumentParser
import Blocks
import Glibc
import PhysicalCopy

struct VerifyCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify", abstract: "Read all of a copy and compare it with its checksums.",
        discussion: """
            Checks the manifest, every portion's checksums, and each original image's own CRC, and says where \
            something does not fit: a line for each on standard error, or in `findings` of --json.

            With --backup it reads a backup, once and from front to back, so that - can be a pipe: also the \
            stream's own checksums, and whether it is whole. What it says is where in the stream, in which \
            member, and where in the volume.

            EXIT STATUS: 0 all fits; 64 usage; 65 something does not; 66 no such copy; 69 the bridge that has \
            the data is unreachable; 73 `integrate` is at work on it; 74 input/output error; 77 not permitted.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String?

    @Option(help: ArgumentHelp("A backup: a file, a device, or - for standard input.", valueName: "path"))
    var backup: String?

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

    func validate() throws {
        guard (copy == nil) != (backup == nil) else {
            throw ValidationError("name either the copy's directory or a --backup")
        }
    }

    func run() throws {
        if let backup { return try verifyBackup(backup) }
        guard let copy else { return }
        try verifyCopy(copy)
    }

    private func verifyCopy(_ directory: String) throws {
        let copy = try PhysicalCopy(directory)
        let bar = ProgressBar()
        let manifest = copy.manifest
        let total =
            manifest.data.length + (manifest.originals?.length ?? 0) + (manifest.toc?.length ?? 0)
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

    private struct BackupOutput: Encodable {
        var backup: String
        var ok: Bool
        var streamBytes: UInt64
        var bytes: UInt64
        var originals: UInt64
        var findings: [BackupFinding]
    }

    private func verifyBackup(_ path: String) throws {
        let stop = StopRequest("verify")
        let input = try BackupInput(argument: path) { () throws(CopyError) in try stop.check() }
        let bar = ProgressBar()
        defer { bar.clear() }
        var findings: [BackupFinding] = []
        var reader: BackupReader?
        var streamBytes: UInt64 = 0
        var failure: CopyError?
        do throws(CopyError) {
            let opened = try BackupReader(input) { finding throws(CopyError) in findings.append(finding) }
            reader = opened
            let total = opened.dataBytes + (opened.manifest.toc?.length ?? 0)
            var done: UInt64 = 0
            func tell(_ more: UInt64) {
                done += more
                bar.update(phase: "verify", done: done, total: total)
            }
            _ = try opened.readToc { bytes throws(CopyError) in tell(UInt64(bytes.count)) }
            try opened.readData { more throws(CopyError) in
                tell(more)
            } to: { _, _ throws(CopyError) in
            }
            streamBytes = try opened.finish()
        } catch {
            // Damage that ends the reading is told after what was found before it.
            guard error.kind == .damaged else { throw error }
            failure = error
        }
        bar.clear()
        let isClean = failure == nil && findings.isEmpty
        if json {
            try Console.print(
                json: BackupOutput(
                    backup: path, ok: isClean, streamBytes: streamBytes, bytes: reader?.dataBytes ?? 0,
                    originals: reader?.originals ?? 0,
                    findings: findings + (failure.map { [BackupFinding($0)] } ?? [])))
        }
        for finding in findings { Console.complain("\(path): \(finding)") }
        if let failure { throw failure }
        guard isClean else {
            throw Failure(
                .damaged,
                "the backup \(path) does not verify (\(findings.count) findings, above); take another one, or "
                    + "keep it for what is still whole")
        }
        if !json {
            Console.print(
                "verified \(path): \(ByteCount(streamBytes).rounded) with \(ByteCount(reader?.dataBytes ?? 0).rounded) "
                    + "of data, \(reader?.originals ?? 0) originals")
        }
    }
}
