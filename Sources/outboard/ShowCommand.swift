import ArgumentParser
import Blocks
import Foundation
import PhysicalCopy

struct ShowCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "show", abstract: "Say what a copy is.",
        discussion: """
            Reads and checks the manifest only; `outboard verify` reads all of the copy. With --json it \
            prints the manifest.

            A copy that failed after its instant has left a directory that holds no data, but says why: when, \
            in which phase, for what reason, and how full the cache was. It is shown, with exit status 75; all \
            other commands refuse it with that reason, and the next `outboard copy` to its name replaces it.

            EXIT STATUS: 0 shown; 64 usage; 65 the manifest is damaged; 66 no such copy; 73 `integrate` is at \
            work on it; 75 it was abandoned: there is no copy; 77 not permitted.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String

    @Flag(help: "Print one JSON object.")
    var json = false

    func run() throws {
        if let abandoned = try AbandonedCopy.find(copy) { try show(abandoned) }
        let copy = try PhysicalCopy(copy)
        if json { return try Console.print(json: copy.manifest) }
        let manifest = copy.manifest
        var rows: [(String, String)] = [
            ("copy", copy.directory),
            ("volume", "\(manifest.volume.source) (\(manifest.volume.uuid))"),
            ("size", ByteCount(manifest.volume.size).rounded),
            ("instant", Self.time(manifest.epoch.institutedAt)),
            ("completed", Self.time(manifest.completedAt)),
            ("mode", manifest.mode.rawValue),
            ("state", manifest.state.rawValue),
            (
                "consistent as it stands",
                manifest.isConsistentAsItStands ? "yes" : "no: integrate it, or restore"
            ),
            (
                "originals preserved",
                "\(manifest.epoch.entries) chunks of \(ByteCount(manifest.volume.chunkSize).rounded)"
            ),
            ("relation ended", Self.text(manifest.epoch.ending)),
            ("data", Self.text(copy.dataLocation)),
        ]
        if let restarts = manifest.epoch.restarts {
            rows.append(("cache was full", "\(restarts) times: the instant is that of the last"))
        }
        if !manifest.frozen.isEmpty { rows.append(("frozen", manifest.frozen.joined(separator: ", "))) }
        if let group = manifest.group { rows.append(("group", "\(group.uuid), \(group.members) volumes")) }
        Self.print(rows)
    }

    /// - Throws: always: there is no copy.
    private func show(_ abandoned: AbandonedCopy) throws {
        let end = abandoned.postMortem
        if json {
            try Console.print(json: abandoned)
        } else {
            Self.print([
                ("copy", absolutePath(copy)),
                ("volume", "\(abandoned.volume.source) (\(abandoned.volume.uuid))"),
                ("size", ByteCount(abandoned.volume.size).rounded),
                ("instant", Self.time(end.institutedAt)),
                ("mode", abandoned.mode.rawValue),
                ("state", abandoned.state),
                ("abandoned", Self.time(end.abandonedAt)),
                ("after", CopyCommand.seconds(end.secondsSinceInstitution)),
                ("phase", end.phase),
                ("reason", end.reason),
                ("exit status", "\(end.exitStatus)"),
                (
                    "cache used",
                    "\(ByteCount(end.cacheUsed).rounded) of \(ByteCount(end.cacheCapacity).rounded)"
                ),
                ("bytes copied", ByteCount(end.bytesCopied).rounded),
                ("epoch", "\(end.epoch) (\(end.epochUUID))"),
            ])
        }
        throw ExitCode(outboard.ExitStatus.tryAgain.rawValue)
    }

    private static func print(_ rows: [(String, String)]) {
        let width = rows.map(\.0.count).max() ?? 0
        for (name, value) in rows {
            Console.print(
                name.padding(toLength: width + 2, withPad: " ", startingAt: 0) + value.visibleOnOneLine)
        }
    }

    /// Nanoseconds since 1970, to the millisecond, UTC.
    static func time(_ nanoseconds: Int64) -> String {
        Date(timeIntervalSince1970: Double(nanoseconds) / 1e9)
            .formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))
    }

    private static func text(_ ending: EpochDescription.Ending) -> String {
        switch ending {
        case .endedBeforeCacheCopy: "before the cache was copied"
        case .endedAfterCacheCopy: "after the cache was copied"
        }
    }

    private static func text(_ location: DataLocation) -> String {
        switch location {
        case .member(let name), .path(let name): name
        case .unit(let target, let number): "unit \(number) of \(target)"
        }
    }
}
