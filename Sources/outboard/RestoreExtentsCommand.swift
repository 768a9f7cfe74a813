import Agent
import ArgumentParser
import Blocks

struct RestoreExtentsCommand: AsyncParsableCommand, LoggingCommand {
    static let configuration = CommandConfiguration(
        commandName: "extents",
        abstract: "Bring named extents of a volume back from a copy.",
        discussion: """
            Each range goes to its own offset, and nothing else is touched: what is there may be the volume \
            itself, or any file or device that reaches far enough. A file that does not exist is made as large \
            as the volume, with holes everywhere else. The extents may lie anywhere and have any length; what \
            is named twice is restored once.

            Only these extents of the copy are read: of the data, and for a copy made with `--mode append` of \
            the original images, which come over the data. Of those every one that is touched is compared with \
            its checksum before anything is written. The data's checksums are of chunks of 64 KiB and more; \
            with --verify every chunk that is touched is read whole and compared before.

            With --from-backup they come from a backup, which is read once from front to back and compared with \
            its checksums on the way; - is standard input.

            A private bridge copies to --to. With --bridge and --unit a standing bridge copies to its own unit \
            by EXTENDED COPY, from the unit that has the copy's data.

            SIGINT, SIGTERM and SIGHUP stop it; exit status 75. Then a new file is not there; what was there \
            before is overwritten in part.

            EXAMPLE:
                outboard restore extents /backup/monday --range 1GiB+64MiB --range 0+1MiB --to /dev/vg0/data \
            --force

            EXIT STATUS: 0 restored and flushed; 64 usage, or a range beyond the volume's end; 65 what is \
            touched does not verify; 66 no such copy; 69 host or bridge unreachable; 73 the destination exists, \
            is too small, or its disk is full; 74 input/output error; 75 stopped, --to is in use, or the copy \
            was abandoned; 77 not permitted, or wrong credentials.
            """)

    @OptionGroup var source: RestoreSourceOptions

    @Option(
        name: .customLong("range"),
        help: ArgumentHelp(
            "Bytes of the volume, as 1GiB+64KiB. Repeat for more.", valueName: "offset+length"))
    var ranges: [RangeArgument]

    @OptionGroup var target: RestoreTargetOptions
    @OptionGroup var data: CopyDataOptions

    @Flag(help: "Compare the chunks of the data that the extents touch with their checksums before.")
    var verify = false

    @OptionGroup var log: LogOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    func run() async throws {
        var request = try target.request(source, credentials: data.credentials())
        request.extents = ranges.map(\.range)
        request.checksSlices = verify
        let outcome = try await RestoreVolumeCommand.restore(request)
        if json { return try Console.print(json: outcome) }
        RestoreVolumeCommand.tell(outcome)
    }
}
