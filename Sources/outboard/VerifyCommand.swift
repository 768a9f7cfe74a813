import Agent
import ArgumentParser
import Blocks
import PhysicalCopy

struct VerifyCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify", abstract: "Read all of a copy and compare it with its checksums.",
        discussion: """
            Checks the manifest, the checksums of every portion and of the table of contents, and each original image's \
            own CRC. Whatever does not fit is told by a line on standard error: in which file and where; of the volume's \
            data also which chunk it is, and whether anything lies there: which files by the table of contents, and what \
            the file systems say of the rest.

            With --against, the control socket of the copy's host, all of it is also compared with the logical snapshot \
            that it was made of. That is there as long as its epoch is open: `outboard copy --end after-cache-copy \
            --keep-epoch` leaves it open, and `outboard release` ends it.

            With --backup it reads a backup, once and from front to back, so that - can be a pipe: also the \
            stream's own checksums, and whether it is whole. What it says is where in the stream, in which \
            member, and where in the volume.

            --json prints one object, also when something does not fit: `copy`; `ok`; `bytes` that were compared; \
            `originals` that fit; `findings`, at most 1000; `moreFindings`, how many more there are; `notes` for \
            people. A finding has `part` (manifest, data, originals, padding, checksums or toc), `file`, `offset` and \
            `length` (the range of that file in which the damage lies) and `problem`; of data `chunk`; of data and of an \
            original image `volumeOffset` and `volumeLength`, `inUse` (yes, no, unknown), `usedBy` (paths), `moreUsers` \
            (how many more files) and `useReason`. With --against there is `against`: `epoch`, `bytes` that are the same, \
            `unusedBytes` that were not copied, `goneBytes` of which the host has no originals any more, `different` \
            (each with `offset`, `length` and `firstByte` in the volume) and `moreDifferences`.

            EXIT STATUS: 0 all fits; 64 usage; 65 something does not; 66 no such copy, or --against is the host of \
            another volume; 69 the bridge that has the data, or the host, is unreachable; 73 `integrate` is at work on \
            it; 74 input/output error; 75 stopped, the copy was abandoned, or its epoch is not open \
            any more; 77 not permitted.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String?

    @Option(
        help: ArgumentHelp(
            "The control socket of the copy's host: compare with the logical snapshot, too.",
            valueName: "ctl.sock"))
    var against: String?

    @Option(help: ArgumentHelp("A backup: a file, a device, or - for standard input.", valueName: "path"))
    var backup: String?

    @OptionGroup var data: CopyDataOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    func validate() throws {
        guard (copy == nil) != (backup == nil) else {
            throw ValidationError("name either the copy's directory or a --backup")
        }
        if backup != nil, against != nil { throw ValidationError("--against is for a copy") }
    }

    func run() async throws {
        if let backup { return try BackupVerification.run(backup, json: json) }
        guard let copy else { return }
        let verification: CopyVerification
        do throws(CopyError) { verification = try CopyVerification(copy) } catch {
            throw try CopyVerification.refusal(error, of: copy, json: json)
        }
        try await verification.run(data, against: against, json: json)
    }
}

/// Whether a backup is as it was made.
enum BackupVerification {
    private struct Output: Encodable {
        var backup: String
        var ok: Bool
        var streamBytes: UInt64
        var bytes: UInt64
        var originals: UInt64
        var findings: [BackupFinding]
    }

    static func run(_ path: String, json: Bool) throws {
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
                json: Output(
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
