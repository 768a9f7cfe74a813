import Agent
import ArgumentParser
import Blocks

struct RestoreFileCommand: AsyncParsableCommand, LoggingCommand {
    static let configuration = CommandConfiguration(
        commandName: "file",
        abstract: "Bring files and whole trees back from a copy.",
        discussion: """
            Each PATH, as `outboard ls` shows it, is restored into the directory --to under its last name; a \
            directory with all that is in it; of / the contents. Only the extents of these files are read. \
            Owner, group, mode, times to the nanosecond, extended attributes, access control lists and hard \
            links among what is restored are kept as far as the user may; a notice tells what could not be. \
            Set-user-ID and set-group-ID are kept only with owner and group. Holes stay holes. Alternate \
            streams of NTFS, of files and of directories, become extended attributes user.NAME; one that is \
            too long for that is restored by itself, as PATH:NAME.

            A file has its name only when it is complete and flushed. What is there is refused, or replaced \
            with --force, file by file; directories that are there are used and stay as they are. Symbolic \
            links below --to are never followed, and no name leads out of it. What cannot be restored is told \
            with its reason (compressed and encrypted files of NTFS, for one, are not laid out as extents), and \
            everything else is restored nevertheless; the exit status is not 0 then.

            Original images (`--mode append`) are compared with their checksums before they are used. The data's \
            checksums are of chunks of 64 KiB and more; with --verify every chunk that is touched is read whole \
            and compared before.

            With --from-backup they come from a backup, which is read once from front to back and compared with \
            its checksums on the way; - is standard input. No file has its name then before all of it has \
            passed; directories, symbolic links, devices, fifos and sockets, which the table of contents holds \
            wholly, are made at once and stay when the rest fails. The backup's table of contents is kept in $TMPDIR (or /var/tmp) meanwhile.

            SIGINT, SIGTERM and SIGHUP stop it; exit status 75. Files that were complete then are there, others \
            are not; directories may lack their owner, mode and times. Killed outright, it leaves temporary files \
            `.outboard-….partial`; the next one into the same directory clears them away.

            EXAMPLE:
                outboard restore file /backup/monday /etc/passwd /home/eva --to /tmp/restored
                outboard restore file --from-backup /dev/nst0 /etc/passwd --to /tmp/restored

            EXIT STATUS: 0 all restored and flushed; 64 usage; 65 the table of contents or an original image \
            does not verify; 66 no such copy or path, or it has no table of contents; 69 the bridge that has the \
            data is unreachable; 73 something cannot be made, or is there; 74 input/output error; 75 the copy was \
            abandoned, or stopped; 77 not permitted. When some files failed it is the status of the first.
            """)

    @Argument(help: ArgumentHelp("The copy's directory; not with --from-backup.", valueName: "copy"))
    var first: String

    @Argument(help: ArgumentHelp("What to restore. Repeat for more.", valueName: "path"))
    var others: [String] = []

    @Option(
        help: ArgumentHelp(
            "Instead of a copy, a backup: a file, a device, or - for standard input.", valueName: "path"))
    var fromBackup: String?

    @Option(help: ArgumentHelp("The directory to restore into; made if there is none.", valueName: "dir"))
    var to: String

    @Flag(help: "Replace files that are there.")
    var force = false

    @Flag(help: "Compare the chunks of the data that the files touch with their checksums before.")
    var verify = false

    @OptionGroup var data: CopyDataOptions

    @OptionGroup var log: LogOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    func validate() throws {
        if fromBackup == nil, others.isEmpty { throw ValidationError("name what to restore") }
    }

    func run() async throws {
        let paths = fromBackup == nil ? others : [first] + others
        let request = FileRestoreRequest(
            copy: fromBackup ?? first, isBackup: fromBackup != nil, paths: paths, directory: to, force: force,
            checksSlices: verify,
            credentials: try data.credentials())
        let outcome = try await Sequences.run("restore") { world, cancellation, observer throws(AgentError) in
            try FileRestoreSequence(request, world, cancellation: cancellation, observer: observer).run()
        }
        try Self.tell(outcome, json: json)
    }

    /// - Throws: the first failure's status, when there is one.
    static func tell(_ outcome: FileRestoreOutcome, json: Bool) throws {
        let report = outcome.restored
        for failure in report.failures {
            Console.logger("restore").notice("\(failure.path): \(failure.reason)")
        }
        for (what, files) in report.lost.sorted(by: { $0.key < $1.key }) {
            Console.logger("restore").notice("\(Self.loss(what)) of \(files) could not be kept here")
        }
        if json {
            try Console.print(json: outcome)
        } else {
            Console.print(
                "restored \(report.files) files and \(report.directories) directories of \(outcome.copy) as of "
                    + "\(ShowCommand.time(outcome.instant)) to \(outcome.directory)")
            Console.print(
                "  \(ByteCount(report.bytes).rounded) in \(CopyCommand.seconds(outcome.seconds)) "
                    + "(\(CopyCommand.rate(report.bytes, outcome.seconds))); "
                    + "\(ByteCount(outcome.bytesRead).rounded) were read")
        }
        guard let first = report.failures.first else { return }
        throw Failure(
            ExitStatus(rawValue: first.status) ?? .io,
            "\(report.failureCount) of what was to be restored could not be (above); all else was")
    }

    private static func loss(_ name: String) -> String {
        switch name {
        case "owner": "the owner or group"
        case "mode": "the mode"
        case "attributes": "extended attributes or access control lists"
        case "times": "the times"
        case "setid": "set-user-ID, set-group-ID or capabilities"
        case "devices": "the nodes (devices)"
        default: name
        }
    }
}
