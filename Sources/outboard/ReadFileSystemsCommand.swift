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

    @Flag(help: "Say which ranges of it may hold a file system each.")
    var layout = false

    @Option(help: "Read what is on this range, OFFSET+LENGTH.")
    var range: RangeArgument?

    @Flag(help: "Its files.")
    var files = false

    @Flag(help: "Which of its blocks are in use.")
    var use = false

    func validate() throws {
        if layout == (range != nil) { throw ValidationError("give --layout or --range") }
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
        let encoder = RecordEncoder(STDOUT_FILENO, beat: ReadingWatchdog.beat)
        if let range = range?.range {
            guard range.end <= store.size else { throw TocError(.missing, "the volume has no such range") }
            var scope: ReadScope = []
            if files { scope.insert(.files) }
            if use { scope.insert(.use) }
            func announce(_ description: FileSystemDescription) throws(TocError) {
                try encoder.list(description)
                try encoder.flush()
            }
            try VolumeReader.read(
                store, range, scope, into: encoder, advance: ReadingWatchdog.beat, announce: announce)
        } else {
            for place in try VolumeReader.places(store) { try encoder.list(place) }
        }
        try encoder.finish()
    }
}
