import Agent
import ArgumentParser
import Blocks

struct RestoreCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "restore", abstract: "Bring a copy back, or parts of it.",
        subcommands: [RestoreVolumeCommand.self, RestoreFileCommand.self, RestoreExtentsCommand.self])

    func run() throws {
        throw Failure(
            .usage,
            "name what to restore: outboard restore volume, file or extents; see outboard restore --help")
    }
}

struct RestoreVolumeCommand: AsyncParsableCommand, LoggingCommand {
    static let configuration = CommandConfiguration(
        commandName: "volume",
        abstract: "Bring a whole volume back from a copy.",
        discussion: """
            The copy is read and compared with its checksums first; when anything does not fit, nothing is \
            written and the exit status is 65. Then a private bridge copies the data to the destination and, \
            for a copy made with `--mode append`, the original images over them. A file that does not exist \
            is made, and has its name only when it is complete; what is there is overwritten with --force \
            only.

            Data on a standing bridge's unit are read from there over iSCSI, whichever machine it is on. With \
            --bridge and --unit a standing bridge copies to its own unit by EXTENDED COPY, from the unit that has \
            the copy's data.

            With --from-backup it comes from a backup, in one pass without a seek, so that - can be a pipe: \
            `zstd -dc monday.tar.zst | outboard restore volume --from-backup - --to /dev/vg0/data --force`. That \
            it was whole is known only at its end: until then what was there is overwritten in part, and a new \
            file does not have its name.

            The live source of a running host is overwritten only with --force and --host, the host's control \
            socket: no copy may be running, and applications' writes wait until it is done.

            SIGINT, SIGTERM and SIGHUP stop it; exit status 75. Then a new file is not there, what was there \
            before is overwritten in part and must be restored again, and a host goes on.

            EXAMPLE:
                outboard restore volume /backup/monday --to /dev/vg0/data --force

            EXIT STATUS: 0 restored and flushed; 64 usage, or --host serves something else; 65 the copy does \
            not verify; 66 no such copy; 69 host or bridge unreachable; 73 --to exists, is too small, or its \
            disk is full; 74 input/output error; 75 stopped, --to is in use, or the copy was abandoned; \
            77 not permitted, or wrong credentials.
            """)

    @OptionGroup var source: RestoreSourceOptions
    @OptionGroup var target: RestoreTargetOptions
    @OptionGroup var data: CopyDataOptions

    @OptionGroup var log: LogOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    func run() async throws {
        let outcome = try await Self.restore(target.request(source, credentials: data.credentials()))
        if json { return try Console.print(json: outcome) }
        Self.tell(outcome)
    }

    static func restore(_ request: RestoreRequest) async throws -> RestoreOutcome {
        try await Sequences.run("restore") { world, cancellation, observer throws(AgentError) in
            try RestoreSequence(request, world, cancellation: cancellation, observer: observer).run()
        }
    }

    static func tell(_ outcome: RestoreOutcome) {
        Console.print(
            "restored \(outcome.copy) as of \(ShowCommand.time(outcome.instant)) to \(outcome.destination)")
        Console.print(
            "  \(ByteCount(outcome.bytes).rounded) and \(outcome.originals) originals in "
                + "\(CopyCommand.seconds(outcome.seconds)) (\(CopyCommand.rate(outcome.bytes, outcome.seconds))); "
                + "\(ByteCount(outcome.bytesRead).rounded) were read")
    }
}

/// What is restored from: a copy, or a backup of one.
struct RestoreSourceOptions: ParsableArguments {
    @Argument(help: "The copy's directory.")
    var copy: String?

    @Option(
        help: ArgumentHelp(
            "Instead of a copy, a backup: a file, a device, or - for standard input.", valueName: "path"))
    var fromBackup: String?

    var isBackup: Bool { fromBackup != nil }
    var name: String { fromBackup ?? copy ?? "" }

    func validate() throws {
        guard (copy == nil) != (fromBackup == nil) else {
            throw ValidationError("name either the copy's directory or a backup with --from-backup")
        }
    }
}
