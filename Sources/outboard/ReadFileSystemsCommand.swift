import Agent
import ArgumentParser
import Blocks
import Glibc
import TableOfContents

/// The process that reads a volume's file systems for the agent, and that alone.
struct ReadFileSystemsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "read-file-systems",
        abstract: "Write what the file systems of a volume hold to standard output, as records.",
        shouldDisplay: false)

    @Option(help: "The volume.")
    var nbd: String

    @Flag(help: "Say which file systems there are.")
    var list = false

    @Option(help: "Read this one.")
    var fileSystem: Int?

    @Flag(help: "Its files.")
    var files = false

    @Flag(help: "Which of its blocks are in use.")
    var use = false

    func validate() throws {
        if list == (fileSystem != nil) { throw ValidationError("give --list or --file-system") }
    }

    func run() throws {
        ReadingWatchdog.start()
        do throws(TocError) { try read(try volume()) } catch {
            if case .store(let failure) = error.kind, failure.code == .gone {
                throw Failure(.unavailable, error.description)
            }
            throw AgentError(error).failure
        }
    }

    private func volume() throws(TocError) -> any BlockStore {
        do throws(AgentError) { return try NBDStore(.uri(nbd), connections: 1) } catch {
            throw TocError(.store(StoreError(.gone)), error.description)
        }
    }

    private func read(_ store: any BlockStore) throws(TocError) {
        let reader = try VolumeReader(store)
        let encoder = RecordEncoder(STDOUT_FILENO, beat: ReadingWatchdog.beat)
        if let fileSystem {
            guard reader.fileSystems.indices.contains(fileSystem) else {
                throw TocError(.missing, "the volume has no file system \(fileSystem)")
            }
            var scope: ReadScope = []
            if files { scope.insert(.files) }
            if use { scope.insert(.use) }
            try reader.read(fileSystem, scope, into: encoder)
        } else {
            for description in reader.fileSystems { try encoder.list(description) }
        }
        try encoder.finish()
    }
}
