import ArgumentParser
import PhysicalCopy

struct IntegrateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "integrate",
        abstract: "Merge the original images of a copy made with `--mode append` into its data.",
        discussion: """
            Afterwards the data are the volume as of the instant, as they stand, and the originals' space is \
            free. Everything is verified before anything is touched. It can be killed at any point and run \
            again, also when the disk was full; on a copy that is integrated already it does nothing. Data that \
            were damaged meanwhile are found at the end (exit status 65), and the originals are kept.

            EXIT STATUS: 0 integrated; 64 usage; 65 the copy does not verify; 66 no such copy; 69 the bridge \
            that has the data is unreachable; 73 another process uses the copy, or the disk is full; 74 \
            input/output error; 75 the copy was abandoned; 77 not permitted, or a read-only unit.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String

    @OptionGroup var data: CopyDataOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    private struct Output: Encodable {
        var copy: String
        var state: String
    }

    func run() throws {
        try Trust.require(copy + "/" + Manifest.fileName, to: "change")
        let copy = try PhysicalCopy(copy, for: .changing)
        let bar = ProgressBar()
        defer { bar.clear() }
        try copy.integrate(data.opener(of: copy)) { progress throws(CopyError) in
            bar.update(phase: "\(progress.step)", done: progress.done, total: progress.total)
        }
        bar.clear()
        if json {
            try Console.print(json: Output(copy: copy.directory, state: copy.manifest.state.rawValue))
        } else {
            Console.print("integrated \(copy.directory)")
        }
    }
}
