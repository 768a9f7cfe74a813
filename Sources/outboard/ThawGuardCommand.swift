import Agent
import ArgumentParser

/// The child of `copy` that thaws when `copy` is killed.
struct ThawGuardCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "thaw-guard",
        abstract: "Wait for the end of standard input, then thaw, unless told that all goes on.",
        shouldDisplay: false)

    @Option(help: ArgumentHelp("A mount point.", valueName: "mountpoint"))
    var thaw: [String] = []

    @Option(help: ArgumentHelp("Run this by the shell afterwards.", valueName: "cmd"))
    var postThaw: String?

    func run() {
        ThawGuardService.run(mountPoints: thaw, postThaw: postThaw) {
            Console.logger("copy").notice("\($0)")
        }
    }
}
