import ArgumentParser
import Foundation

@main
struct Outboard: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "outboard",
        abstract: "Consistent duplicates of volumes in use, made outboard.",
        discussion: """
            A host (`outboard host`) stands between a volume and the applications that use it over NBD. \
            `outboard copy` has it preserve the originals of what is overwritten, has a bridge copy the raw \
            volume meanwhile, and puts both together: a duplicate as of one instant. `outboard restore \
            volume` brings it back.

            Results go to standard output, progress and logs to standard error. Sizes take B, KiB, MiB, \
            GiB and TiB. Every path may be a file or a block device.

            EXIT STATUS: 0 done; 64 usage; 65 a copy or cache does not verify or belongs elsewhere; 66 \
            input missing; 69 host or bridge unreachable; 70 a bug; 73 cannot create; 74 input/output \
            error; 75 abandoned or in use, may be tried again; 77 not permitted.
            """,
        version: toolVersion,
        subcommands: [
            HostCommand.self, BridgeCommand.self, CopyCommand.self, ShowCommand.self, VerifyCommand.self,
            IntegrateCommand.self, RestoreCommand.self, TocCommand.self, ListCommand.self, FindCommand.self,
            CatCommand.self, MountCommand.self, BackupCommand.self, GrowCommand.self, StatusCommand.self,
            ReleaseCommand.self, ThawGuardCommand.self, ReadFileSystemsCommand.self,
        ])

    func run() throws { throw ValidationError("name a subcommand; outboard --help lists them") }

    static func main() async {
        // A reader of our output that goes away is an error of that write, not the end of the process.
        signal(SIGPIPE, SIG_IGN)
        do {
            var command = try parseAsRoot()
            setUpLog(of: command)
            if var asynchronous = command as? any AsyncParsableCommand {
                try await asynchronous.run()
            } else {
                try command.run()
            }
            try Console.requireThatAllIsTold()
        } catch {
            Foundation.exit(report(error))
        }
    }

    private static func setUpLog(of command: any ParsableCommand) {
        guard let command = command as? any LoggingCommand else { return }
        Console.log(as: command.log, notesTime: command.isService)
    }

    /// Says what went wrong, and gives the exit status for it.
    private static func report(_ error: any Error) -> Int32 {
        if exitCode(for: error) == .success || isOfParser(error) {
            let text = fullMessage(for: error)
            let code = exitCode(for: error)
            if code == .success {
                Console.print(text)
            } else if !text.isEmpty {
                Console.complain(text)
            }
            return code.rawValue
        }
        let failure = Failure(error)
        Console.fail(failure)
        return failure.status.rawValue
    }

    /// Usage errors, requests for help and the version, and plain exit codes are the argument parser's own.
    private static func isOfParser(_ error: any Error) -> Bool {
        exitCode(for: error) == .validationFailure || error is ExitCode || error is CleanExit
    }
}
