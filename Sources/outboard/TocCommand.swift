import Agent
import ArgumentParser
import Blocks
import Foundation
import Glibc
import PhysicalCopy
import TableOfContents

struct TocCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "toc", abstract: "Build the table of contents of a finished copy.",
        discussion: """
            Reads the file systems of the volume as of the copy's instant (an append copy is merged while it is read, \
            and not changed), and keeps all files, their extents and an index of their names in the copy's toc.sqlite, \
            in place of the one that there is. `outboard copy` does so by itself unless told --no-toc.

            Each file system is read in a process of its own: one that is damaged is listed as far as it can be read, \
            and what could not be is told by --problems. Files of ext2, ext3, ext4, XFS, NTFS, FAT, exFAT, HFS+ and ISO \
            9660 are listed; others are copied and restored whole.

            The copy can be read meanwhile. When all is listed nobody else may have it for a moment: for that it waits \
            up to ten minutes.

            SIGINT, SIGTERM and SIGHUP stop it; exit status 75. Then the copy is as it was.

            EXAMPLES:
                outboard toc /backup/monday
                sqlite3 /backup/monday/toc.sqlite "SELECT size, path FROM files ORDER BY size DESC LIMIT 10"

            EXIT STATUS: 0 built; 64 usage; 65 the copy is damaged; 66 no such copy, or with --problems no table of \
            contents; 69 the bridge that has the data is unreachable; 73 the copy is in use, or its disk is full; 74 \
            input/output error; 75 the copy was abandoned, or stopped; 77 not permitted.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String

    @Flag(help: "Build nothing; say what the one that there is could not list, and why.")
    var problems = false

    @OptionGroup var data: CopyDataOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    func run() async throws {
        if problems { return try printProblems() }
        try Trust.require(copy + "/" + TocDescription.fileName, to: "make")
        let copy = try PhysicalCopy(copy)
        let store = try copy.openVolume(data.opener(of: copy))
        let service = try await StoreService.start(
            store, description: "a copy whose table of contents is built", logger: Console.logger("toc"))
        let result: Result<TocBuild.Summary, any Error>
        do { result = .success(try await build(copy, service)) } catch { result = .failure(error) }
        await service.stop()
        try report(copy, try result.get())
    }

    private func build(_ copy: PhysicalCopy, _ service: StoreService) async throws -> TocBuild.Summary {
        let manifest = copy.manifest
        let info = TocInfo(
            tool: "outboard \(toolVersion)", volume: manifest.volume.uuid.lowercased(),
            volumeSize: manifest.volume.size, epoch: manifest.epoch.uuid.lowercased(),
            instant: manifest.epoch.institutedAt)
        let uri = service.uri
        return try await Sequences.run("toc") { _, cancellation, observer throws(AgentError) in
            let draft: FileDraft
            do throws(CopyError) { draft = try copy.tocDraft() } catch { throw AgentError(error) }
            let summary = try TocBuild.run(
                nbd: uri, executable: Sequences.executable, into: draft.path, inPlace: true, info: info,
                cancellation: cancellation
            ) { counts in
                observer.progress(
                    SequenceProgress(phase: "listing: \(counts.names) names", done: 0, total: 0))
            }
            try Self.attach(draft, to: copy, cancellation, observer)
            return summary
        }
    }

    /// Readers go on while it is built, but not while it takes the other one's place.
    private static func attach(
        _ draft: FileDraft, to copy: PhysicalCopy, _ cancellation: CancellationToken,
        _ observer: any SequenceObserver
    ) throws(AgentError) {
        var deadline: UInt64?
        do throws(CopyError) {
            try copy.attachToc(draft) { () throws(CopyError) in
                if deadline == nil {
                    observer.notice("it is built; waiting until nobody else uses the copy")
                }
                let end = deadline ?? MonotonicClock.now + CopyLimits.attachSeconds * 1_000_000_000
                deadline = end
                guard MonotonicClock.now < end else {
                    throw CopyError(
                        .cannotCreate, "put the table of contents into \(copy.directory)",
                        "others still use the copy", advice: "try again when that is over")
                }
                guard !cancellation.isCancelled else {
                    throw CopyError(.cancelled, "go on", "it was asked to stop", advice: "run it again")
                }
                usleep(100_000)
            }
        } catch { throw AgentError(error) }
    }

    private struct Output: Encodable {
        struct FileSystem: Encodable {
            var number: Int
            var kind: String
            var offset: UInt64
            var bytes: UInt64
            var label: String
            var uuid: String
            var listed: Bool
            var complete: Bool
            var remark: String

            init(_ it: TocFileSystem) {
                let description = it.description
                number = it.number
                kind = description.kind.rawValue
                (offset, bytes) = (description.range.offset, description.range.count)
                (label, uuid, remark) = (description.label, description.uuid, description.remark)
                (listed, complete) = (description.isListed, it.isComplete)
            }
        }
        var copy: String
        var toc: String
        var fileSystems: [FileSystem]
        var nodes: UInt64
        var names: UInt64
        var extents: UInt64
        var problems: UInt64
        var failures: [String]
        var seconds: Double
    }

    private func report(_ copy: PhysicalCopy, _ summary: TocBuild.Summary) throws {
        let source = try CopyToc(copy)
        let counts = summary.counts
        if json {
            return try Console.print(
                json: Output(
                    copy: copy.directory, toc: source.toc.path,
                    fileSystems: source.toc.fileSystems.map(Output.FileSystem.init), nodes: counts.nodes,
                    names: counts.names, extents: counts.extents, problems: counts.problems,
                    failures: summary.failures, seconds: summary.seconds))
        }
        Console.print(
            "listed \(copy.directory) in \(CopyCommand.seconds(summary.seconds)): \(counts.names) names, "
                + "\(counts.nodes) files and directories, \(counts.extents) extents")
        for fileSystem in source.toc.fileSystems {
            let description = fileSystem.description
            let label = description.label.isEmpty ? "" : " \"\(TocPath.escaped(description.label.utf8))\""
            let place = "\(ByteCount(description.range.count).rounded) at \(description.range.offset)"
            let state =
                description.isListed
                ? fileSystem.isComplete ? "" : "; not read to its end" : "; its files cannot be listed"
            let remark = description.remark.isEmpty ? "" : ": \(description.remark.visibleOnOneLine)"
            Console.print(
                "  \(fileSystem.number): \(description.kind.rawValue)\(label), \(place)\(state)\(remark)")
        }
        for failure in summary.failures { Console.logger("toc").notice("\(failure)") }
        for notice in try source.notices() { Console.logger("toc").notice("\(notice)") }
    }

    private struct ProblemOutput: Encodable {
        var fileSystem: Int?
        var node: UInt64?
        var path: String?
        var reason: String
    }
    private struct ProblemHead: Encodable { var copy: String }
    private struct ProblemTail: Encodable {}

    private func printProblems() throws {
        let source = try CopyToc(copy)
        let output = ResultWriter()
        var list =
            try json
            ? JSONListWriter(ProblemHead(copy: source.copy.directory), list: "problems", to: output) : nil
        try source.toc.forEachProblem { fileSystem, problem in
            var path: String?
            if let fileSystem, let node = problem.node {
                let names = try source.toc.path(of: NodeKey(fileSystem: fileSystem, address: node))
                path = names.map { TocPath.escaped($0) }
            }
            if list != nil {
                try list?.put(
                    ProblemOutput(
                        fileSystem: fileSystem.map { $0 + 1 }, node: problem.node, path: path,
                        reason: problem.reason))
                return
            }
            let place = fileSystem.map { "file system \($0 + 1)" } ?? "the volume"
            let node = problem.node.map { ", node \($0)" } ?? ""
            let name = path.map { ", \($0)" } ?? ""
            try output.line("\(place)\(node)\(name): \(TocPath.escaped(problem.reason.utf8))")
        }
        if let list { return try list.finish(ProblemTail()) }
        try output.flush()
    }
}
