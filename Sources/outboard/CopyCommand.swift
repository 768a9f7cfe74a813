import Agent
import ArgumentParser
import Blocks
import Logging
import PhysicalCopy

struct CopyCommand: AsyncParsableCommand, LoggingCommand {
    static let configuration = CommandConfiguration(
        commandName: "copy",
        abstract: "Duplicate a volume that is in use, as of one instant.",
        discussion: """
            Has the host preserve the originals of what applications overwrite from one instant on, has a \
            bridge copy the raw volume with direct I/O, then lays the originals over that copy (overlay) or \
            puts them behind it (append; `outboard integrate` merges them later, and a restore on the way). \
            Either way the copy is the volume as of the instant. Applications wait only while the instant is \
            made, whatever the volume's size.

            Meanwhile processes of their own read the file systems of the logical snapshot and make a table of \
            contents, with which `outboard ls`, `find`, `cat` and `restore file` work. It never costs the copy: one \
            that cannot be made, or takes so long that the cache is about to be full, is left out, and that is told.

            With --used-only only those blocks are copied that the file systems have in use, and all that belongs \
            to none. A file system whose free space is not known for certain is copied whole: an unknown one, HFS+, \
            ISO 9660, one with a feature that is not known, an XFS whose log cannot be replayed in memory (--freeze \
            empties it), or NTFS, FAT and exFAT that were not unmounted.

            While the volume is copied, what is copied is flushed every few seconds and noted in the draft. The host then \
            keeps no originals of it any more, so that less cache is needed; not before the table of contents is \
            there, which needs them, and not with --keep-epoch. When the bridge dies, the copy stops with exit status 69 and keeps the draft and the \
            epoch; when this process dies, they stay likewise. The same command with --resume goes on from there as long as \
            the host runs and its cache is not full, and reads nothing of the volume again that was flushed; for the checksums \
            that part of the copy is read back. Without --resume the next copy releases the epoch, clears the draft, and \
            begins anew.

            When the cache becomes full, the host's policy decides (--on-cache-full): with abandon the copy is abandoned, with \
            exit status 75; with block the applications wait up to 30 s for room (`outboard grow`), then it is. With \
            restart-from the host begins anew, what was overwritten is copied again, and the copy is as of that later \
            instant, which is told; the ninth time it is abandoned. That goes for one volume; of several, which must have \
            one instant, the copies are abandoned.

            The bridge sums up what it copies as it passes, and the sums are kept with the copy; what it does not know is \
            read back.

            The copy is a directory: manifest.json, data.img, checksums, toc.sqlite. No copy has its final name before it is \
            complete and flushed. One that fails after the instant, and cannot be resumed, leaves in --to, if nothing else is \
            there, a manifest.json that says why: every command refuses it, and the next copy replaces it. SIGINT, SIGTERM \
            and SIGHUP end the epoch, thaw, and leave nothing half made; exit status 75. A third signal ends at once, but never while applications stand still.

            Several --host make one group with one instant; each volume gets a directory of its own in --to, \
            named after its control socket without what follows the last dot.

            Without --bridge a private bridge is started, which reads source and cache and writes the copy on \
            this machine. A standing bridge copies among its own units; --source-unit, --cache-unit and \
            --copy-unit say which they are, and that the source unit is the host's source is checked before \
            anything is copied.

            EXAMPLES:
                outboard copy --host data.ctl --to /backup/monday --freeze /srv/data
                outboard copy --host data.ctl --to /backup/monday --freeze /srv/data --resume
                outboard copy --host data.ctl --host log.ctl --to /backup/both
                outboard copy --host data.ctl --to monday --chap-file chap \\
                    --bridge iscsi://backup:3260/iqn.2026-01.net.example:b \\
                    --source-unit 0 --cache-unit 1 --copy-unit 2

            EXIT STATUS: 0 done; 64 usage; 65 what the bridge copied is not the source; 66 a unit is missing or \
            another volume's, or there is nothing to resume; 69 host or bridge unreachable, or the bridge died: \
            --resume goes on where that is said; 73 --to exists, cannot be made or is too small, or \
            its disk is full; 74 input/output error, or the command of \
            --pre-freeze or --post-thaw failed; 75 abandoned: the cache was full, a \
            signal came, another copy of the volume runs, or what is to be resumed has lost its epoch; 77 not permitted, wrong credentials, or a \
            read-only unit.
            """)

    @Option(help: ArgumentHelp("A host's control socket. Repeat for a group.", valueName: "ctl.sock"))
    var host: [String]

    @Option(help: ArgumentHelp("The copy's directory; must not exist, unless --force.", valueName: "dir"))
    var to: String

    @Option(
        help: ArgumentHelp("Lay the originals over the copy, or append them.", valueName: "overlay|append"))
    var mode = Manifest.Mode.overlay

    @Option(
        help: ArgumentHelp(
            "When copy-on-write ends: before the cache is copied, or after it, up to a marker.",
            valueName: "before-cache-copy|after-cache-copy"))
    var end = RelationEnd.beforeCacheCopy

    @Option(
        help: ArgumentHelp(
            "A standing bridge, iscsi://[user@]host[:port]/target; name and secret are given with --chap-file, never "
                + "in the address. Default: a private one.",
            valueName: "uri"))
    var bridge: String?

    @Option(help: ArgumentHelp("CHAP name and secret for --bridge; mode 0600.", valueName: "file"))
    var chapFile: String?

    @Option(help: ArgumentHelp("The bridge's unit that is the source.", valueName: "n"))
    var sourceUnit: Int?

    @Option(help: ArgumentHelp("The bridge's unit that is the cache.", valueName: "n"))
    var cacheUnit: Int?

    @Option(help: ArgumentHelp("The bridge's unit to copy to.", valueName: "n"))
    var copyUnit: Int?

    @Option(
        help: ArgumentHelp(
            "Freeze this mounted file system (FIFREEZE) for the instant. Repeat for more. Not one that carries the "
                + "host's source, cache, control socket or log, or the copy.",
            valueName: "mountpoint"))
    var freeze: [String] = []

    @Option(
        help: ArgumentHelp(
            "Run this by the shell before the instant, to quiesce applications; its failure ends the copy.",
            valueName: "cmd"))
    var preFreeze: String?

    @Option(
        help: ArgumentHelp(
            "Run this by the shell after the instant, always, also on failure and on a signal.",
            valueName: "cmd"))
    var postThaw: String?

    static let maxRateHelp = ArgumentHelp(
        "Copy no more than this many bytes a second, on average: in commands of a quarter of a second's bytes, "
            + "1MiB to 64MiB, the first of them at once.", valueName: "rate")

    @Option(help: maxRateHelp)
    var maxRate: ByteCount?

    @Flag(
        help: ArgumentHelp(
            "Copy only what the volume's file systems have in use, and what belongs to none; the rest of the copy is "
                + "holes. One whose free space cannot be known for certain is copied whole, and that is told."
        ))
    var usedOnly = false

    @Flag(name: .customLong("no-toc"), help: "Make no table of contents; `outboard toc` makes it later.")
    var noToc = false

    @Flag(help: "Replace a copy at --to, once the new one is complete; overwrite what is on --copy-unit.")
    var force = false

    @Flag(
        help: ArgumentHelp(
            "Go on with a copy to --to that was cut off. Give the options that it was begun with; --freeze, --pre-freeze "
                + "and --post-thaw have done their work, and are not done again."))
    var resume = false

    @Option(
        help: ArgumentHelp(
            "Write metrics of this copy to a file every few seconds and at its end, for node_exporter's textfile "
                + "collector.", valueName: "file"))
    var metrics: String?

    @Flag(
        help: ArgumentHelp(
            "Read all of the copy back and compare it with what the bridge has summed up as it passed. Without, only that "
                + "is read back which the bridge does not know."))
    var readBack = false

    /// For bench/checksums: what they cost.
    @Flag(help: .hidden) var noBridgeChecksums = false

    @Flag(
        help: ArgumentHelp(
            "Leave the epoch open when the copy is complete, so that `outboard verify COPY --against CTL` can compare it "
                + "with the logical snapshot. The cache fills on; `outboard release` ends it. Needs --end "
                + "after-cache-copy."))
    var keepEpoch = false

    @OptionGroup var log: LogOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    func validate() throws {
        if host.isEmpty { throw ValidationError("give --host CTL.sock, once for each volume") }
        if maxRate?.bytes == 0 { throw ValidationError("--max-rate must be more than 0") }
        let units = [sourceUnit, cacheUnit, copyUnit]
        if bridge == nil, chapFile != nil || units.contains(where: { $0 != nil }) {
            throw ValidationError(
                "--chap-file, --source-unit, --cache-unit and --copy-unit belong to --bridge")
        }
        if bridge != nil, units.contains(where: { $0 == nil }) {
            throw ValidationError("--bridge needs --source-unit, --cache-unit and --copy-unit")
        }
        if bridge != nil, host.count > 1 { throw ValidationError("--bridge serves one --host") }
        if keepEpoch, end != .afterCacheCopy {
            throw ValidationError("--keep-epoch needs --end after-cache-copy")
        }
    }

    private struct Output: Encodable { var copies: [CopyOutcome] }

    func run() async throws {
        var request = CopyRequest(
            members: try CopyRequest.members(controls: host, directory: to), mode: mode, ending: end.ending,
            bridge: try chosenBridge(), freeze: freeze.map(absolutePath), preFreeze: preFreeze,
            postThaw: postThaw,
            maximumRate: maxRate?.bytes, force: force, usedOnly: usedOnly, wantsToc: !noToc,
            tool: "outboard \(toolVersion)")
        for member in request.members { try Trust.require(member.destination, to: "make the copy") }
        request.resumes = resume
        request.readsBack = readBack
        request.asksForChecksums = !noBridgeChecksums
        request.keepsEpoch = keepEpoch
        let teller: (SequenceRecord, Logger) -> (any SequenceTeller)? = {
            [to, metrics, request] record, logger in CopyTeller(request, to, metrics, record, logger)
        }
        let outcomes = try await Sequences.run("copy", tellingBy: teller) {
            [request] world, cancellation, observer throws(AgentError) in
            try CopySequence(request, world, cancellation: cancellation, observer: observer).run()
        }
        if json { return try Console.print(json: Output(copies: outcomes)) }
        for outcome in outcomes {
            Console.print(
                "copied \(outcome.volume) as of \(ShowCommand.time(outcome.instant)) to \(outcome.copy)")
            Console.print(
                "  \(ByteCount(outcome.bytes).rounded) in \(Self.seconds(outcome.copySeconds)) "
                    + "(\(Self.rate(outcome.bytes, outcome.copySeconds))), all in \(Self.seconds(outcome.seconds)); "
                    + "\(outcome.originals) originals, \(ByteCount(outcome.originalBytes).rounded); "
                    + "the host's gate was closed for \(Self.milliseconds(outcome.gateNanoseconds))")
            if let resumed = outcome.resumedBytes {
                Console.print("  resumed: \(ByteCount(resumed).rounded) were on the copy already")
            }
            if let restarts = outcome.restarts, let first = outcome.firstInstant {
                Console.print(
                    "  the cache was full \(restarts == 1 ? "once" : "\(restarts) times"), so the copy is not as of "
                        + "\(ShowCommand.time(first)), when it began; "
                        + "\(ByteCount(outcome.copiedAgainBytes ?? 0).rounded) were copied again")
            }
            if readBack {
                Console.print("  read back and compared: \(ByteCount(outcome.readBackBytes).rounded)")
            }
            if keepEpoch {
                Console.print("  its epoch \(outcome.epoch) is still open: outboard release ends it")
            }
            if let used = outcome.usedBytes {
                Console.print("  in use, and copied: \(ByteCount(used).rounded)")
            }
            if let toc = outcome.toc?.counts {
                Console.print(
                    "  table of contents: \(toc.names) names in \(toc.fileSystems) file systems"
                        + (toc.problems == 0
                            ? "" : "; \(toc.problems) things could not be read: outboard toc --problems"))
            }
        }
    }

    private func chosenBridge() throws -> CopyRequest.Bridge {
        guard let bridge, let sourceUnit, let cacheUnit, let copyUnit else { return .privateOne }
        let credentials = try chapFile.map(SecretFile.initiatorCredentials)
        return .standing(
            try BridgeAddress(parsing: bridge, credentials: credentials), source: sourceUnit,
            cache: cacheUnit,
            copy: copyUnit)
    }

    /// `1.234 s`, to the millisecond.
    static func seconds(_ seconds: Double) -> String { "\((seconds * 1000).rounded() / 1000) s" }

    /// `0.056 ms`, to the microsecond.
    static func milliseconds(_ nanoseconds: UInt64) -> String {
        "\((Double(nanoseconds) / 1e3).rounded() / 1000) ms"
    }

    static func rate(_ bytes: UInt64, _ seconds: Double) -> String {
        seconds > 0 ? ByteCount(UInt64(Double(bytes) / seconds)).rounded + "/s" : "at once"
    }
}

extension Manifest.Mode: ExpressibleByArgument {}

/// `--end`.
enum RelationEnd: String, ExpressibleByArgument {
    case beforeCacheCopy = "before-cache-copy"
    case afterCacheCopy = "after-cache-copy"

    var ending: EpochDescription.Ending {
        switch self {
        case .beforeCacheCopy: .endedBeforeCacheCopy
        case .afterCacheCopy: .endedAfterCacheCopy
        }
    }
}
