import ArgumentParser
import Blocks
import Glibc
import PhysicalCopy
import Synchronization

struct BackupCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backup", abstract: "Write a copy to backup media, as one sequential stream.",
        discussion: """
            The stream is a pax tar: any tar lists it, and extracted into an empty directory it is a copy \
            again. It holds the manifest, the table of contents if there is one, the data without their holes \
            (zeros that are stored in blocks of 64 KiB are left out, too, unless --dense is given), and the original images of a copy made with `--mode append` (or, with --integrated, the data with \
            the original images over them). All of the copy is compared with its checksums on the way: one that \
            does not fit is not backed up. Checksums of the stream itself stand at its end.

            A new file has its name only when it is complete. A file or block device that is there is \
            overwritten with --force only. What is written is whole records of --blocking bytes, as tapes want \
            them. With `--to -` the stream goes to standard output; compress it there:

                outboard backup /backup/monday --to - | zstd > /mnt/monday.tar.zst

            and bring it back with `outboard restore volume --from-backup`, or look at it with `outboard verify \
            --backup`. SIGINT, SIGTERM and SIGHUP stop it (exit status 75): a new file is not there then, and \
            what a device or a reader of the stream has got is recognized as cut off.

            EXIT STATUS: 0 written and flushed; 64 usage; 65 the copy does not verify; 66 no such copy; 69 the \
            bridge that has the data is unreachable; 73 --to exists or cannot be made, or is full; 74 \
            input/output error; 75 the copy was abandoned, or stopped; 77 not permitted.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String

    @Option(help: ArgumentHelp("A new file; a device; or - for standard output.", valueName: "path"))
    var to: String

    @Flag(help: "Write the data with the original images over them, instead of both.")
    var integrated = false

    @Option(
        help: ArgumentHelp(
            "Bytes of a record, a multiple of 512 up to 4MiB.", valueName: "size"))
    var blocking = ByteCount(UInt64(MediaLimits.usualRecordBytes))

    @Flag(help: "Do not look for zeros that are stored: the data are read once then, and not twice.")
    var dense = false

    @Flag(help: "Overwrite what is at --to.")
    var force = false

    @OptionGroup var data: CopyDataOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    private var isToStandardOutput: Bool { to == "-" }

    func validate() throws {
        guard blocking.bytes % 512 == 0, let bytes = Int(exactly: blocking.bytes),
            MediaLimits.recordBytes.contains(bytes)
        else { throw ValidationError("--blocking must be a multiple of 512 from 512 to 4MiB") }
        if json, isToStandardOutput {
            throw ValidationError("--json prints on standard output, where the backup goes")
        }
    }

    private struct Output: Encodable {
        var copy: String
        var backup: String
        var uuid: String
        var streamBytes: UInt64
        var bytes: UInt64
        var storedBytes: UInt64
        var originals: UInt64
        var dataMembers: Int
        var seconds: Double
    }

    func run() async throws {
        if isToStandardOutput, isatty(STDOUT_FILENO) == 1 {
            throw Failure(.usage, "standard output is a terminal; pipe the backup somewhere, or name a file")
        }
        let stop = StopRequest("backup")
        let started = MonotonicClock.now
        let (name, summary) = try await onBlockingThread { [self] in try write(stop) }
        let seconds = Double(MonotonicClock.now &- started) / 1e9
        if json {
            return try Console.print(
                json: Output(
                    copy: name, backup: to, uuid: summary.uuid, streamBytes: summary.streamBytes,
                    bytes: summary.bytes, storedBytes: summary.storedBytes, originals: summary.originals,
                    dataMembers: summary.dataMembers, seconds: seconds))
        }
        guard !isToStandardOutput else { return }
        Console.print("backed up \(name) to \(to)")
        Console.print(
            "  \(ByteCount(summary.storedBytes).rounded) of \(ByteCount(summary.bytes).rounded) and "
                + "\(summary.originals) originals in \(CopyCommand.seconds(seconds)) "
                + "(\(CopyCommand.rate(summary.storedBytes, seconds)))")
    }

    private func write(_ stop: StopRequest) throws -> (String, BackupSummary) {
        if !isToStandardOutput { try Trust.require(to, to: "write the backup") }
        let copy = try PhysicalCopy(copy)
        let opener = try data.opener(of: copy)
        let record = Int(blocking.bytes)
        func check() throws(CopyError) { try stop.check() }
        let output =
            isToStandardOutput
            ? BackupOutput(
                descriptor: STDOUT_FILENO, name: "on standard output", recordBytes: record, check: check)
            : try BackupOutput(
                to, recordBytes: record, force: force, backingUp: copy, check: check)
        let bar = ProgressBar()
        defer { bar.clear() }
        let total = copy.backupBytes(integrated: integrated)
        var (scanned, written): (UInt64, UInt64) = (0, 0)
        do throws(CopyError) {
            let summary = try copy.backUp(
                to: output, integrated: integrated, zeros: !dense, tool: "outboard \(toolVersion)", opener
            ) { step, more throws(CopyError) in
                switch step {
                case .scanning:
                    scanned += more
                    if !dense { bar.update(phase: "looking for zeros", done: scanned, total: total) }
                case .writing:
                    written += more
                    bar.update(phase: "writing", done: written, total: total)
                }
                try stop.check()
            }
            return (copy.directory, summary)
        } catch {
            bar.clear()
            if output.isHalfWritten {
                Console.logger("backup").notice(
                    "the backup \(output.name) is not complete and must not be used")
            }
            throw error
        }
    }
}

/// Whether a signal asked to stop.
final class StopRequest: Sendable {
    private let isAsked = Atomic(false)

    /// From now on SIGINT, SIGTERM and SIGHUP ask; the third ends the process at once. Called once.
    init(_ command: String) {
        StopSignals.handle { [self] _, count in
            if count == 1 { Console.logger(command).notice("stopping; a third signal ends at once") }
            if count > 2 { hardExit(.tryAgain) }
            isAsked.store(true, ordering: .releasing)
        }
    }

    /// - Throws: `cancelled` when asked to stop.
    func check() throws(CopyError) {
        guard isAsked.load(ordering: .acquiring) else { return }
        throw CopyError(.cancelled, "go on", "it was asked to stop", advice: "run it again")
    }
}
