import Agent
import ArgumentParser
import Blocks
import HostControl

struct ReleaseCommand: AsyncParsableCommand, LoggingCommand {
    static let configuration = CommandConfiguration(
        commandName: "release", abstract: "End and release a host's epoch that no copy holds.",
        discussion: """
            For an epoch that `outboard copy --keep-epoch` has left open, or that a copy which died has left: from then on \
            the host preserves nothing any more, and its cache is free. The logical snapshot is gone, and a copy that was \
            cut off cannot be resumed. Where there is no epoch nothing is done. The next copy of the volume does the \
            same by itself.

            EXIT STATUS: 0 released, or there was none; 64 usage; 66 the host has another epoch than --epoch; 69 host \
            unreachable; 74 input/output error; 75 a copy that runs holds it; 77 not permitted.
            """)

    @Option(help: ArgumentHelp("The host's control socket.", valueName: "ctl.sock"))
    var host: String

    @Option(help: ArgumentHelp("The UUID of the epoch that is meant.", valueName: "uuid"))
    var epoch: String?

    @OptionGroup var log: LogOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    private struct Output: Encodable {
        /// Absent: there was none.
        var epoch: UInt64?
        var uuid: String?
        /// What it was before.
        var state: String?
    }

    func run() async throws {
        let released = try await Sequences.run("release") { [host, epoch] world, _, _ throws(AgentError) in
            try EpochRelease.run(control: host, epoch: epoch, world)
        }
        if json {
            return try Console.print(
                json: Output(
                    epoch: released?.number, uuid: released?.uuid, state: released?.state.rawValue))
        }
        guard let released else { return Console.print("there is no epoch to release") }
        Console.print(
            "released epoch \(released.number) (\(released.uuid)), which was \(released.state.rawValue)")
    }
}
