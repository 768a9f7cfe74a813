import Agent
import ArgumentParser
import Blocks

struct RestoreCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "restore", abstract: "Bring a copy back.", subcommands: [RestoreVolumeCommand.self])

    func run() throws {
        throw Failure(.usage, "name what to restore: outboard restore volume; see outboard restore --help")
    }
}

struct RestoreVolumeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "volume",
        abstract: "Bring a whole volume back from a copy.",
        discussion: """
            The copy is read and compared with its checksums first; when anything does not fit, nothing is \
            written and the exit status is 65. Then a private bridge copies the data to the destination and, \
            for a copy made with `--mode append`, the original images over them. A file that does not exist \
            is made, and has its name only when it is complete; what is there is overwritten with --force \
            only.

            Data on a standing bridge's unit are read from there over iSCSI, whichever machine it is on.

            The live source of a running host is overwritten only with --force and --host, the host's control \
            socket: no copy may be running, and applications' writes wait until it is done.

            SIGINT, SIGTERM and SIGHUP stop it; exit status 75. Then a new file is not there, what was there \
            before is overwritten in part and must be restored again, and a host goes on.

            EXAMPLE:
                outboard restore volume /backup/monday --to /dev/vg0/data --force

            EXIT STATUS: 0 restored and flushed; 64 usage, or --host serves something else; 65 the copy does \
            not verify; 66 no such copy; 69 host or bridge unreachable; 73 --to exists, is too small, or its \
            disk is full; 74 input/output error; 75 stopped, or --to is in use; 77 not permitted, or wrong \
            credentials.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String

    @Option(help: ArgumentHelp("A file or device of at least the volume's size.", valueName: "path"))
    var to: String

    @Option(
        help: ArgumentHelp(
            "The host that serves --to, to restore onto its live source.", valueName: "ctl.sock"))
    var host: String?

    @Option(help: CopyCommand.maxRateHelp)
    var maxRate: ByteCount?

    @OptionGroup var data: CopyDataOptions

    @Flag(help: "Overwrite what is at --to.")
    var force = false

    @Flag(help: "Print one JSON object.")
    var json = false

    func validate() throws {
        if maxRate?.bytes == 0 { throw ValidationError("--max-rate must be more than 0") }
        if host != nil, !force {
            throw ValidationError("--host restores onto a live volume: give --force, too")
        }
    }

    func run() async throws {
        let request = RestoreRequest(
            copy: copy, destination: to, force: force, host: host, maximumRate: maxRate?.bytes,
            credentials: try data.credentials())
        let outcome = try await Sequences.run("restore") { world, cancellation, observer throws(AgentError) in
            try RestoreSequence(request, world, cancellation: cancellation, observer: observer).run()
        }
        if json { return try Console.print(json: outcome) }
        Console.print(
            "restored \(outcome.copy) as of \(ShowCommand.time(outcome.instant)) to \(outcome.destination)")
        Console.print(
            "  \(ByteCount(outcome.bytes).rounded) and \(outcome.originals) originals in "
                + "\(CopyCommand.seconds(outcome.seconds)) (\(CopyCommand.rate(outcome.bytes, outcome.seconds)))"
        )
    }
}
