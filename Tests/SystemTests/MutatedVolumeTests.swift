import Blocks
import Foundation
import Logging
import NBD
import TableOfContents
import TestSupport
import Testing

@testable import Agent

/// Damaged volumes of every kind become tables of contents, each by the way of every copy: read over NBD by processes
/// that may crash. The agent neither crashes nor waits, and its table can be asked.
///
/// `OUTBOARD_MUTATIONS=FIRST-LAST` takes those seeds; `OUTBOARD_MUTATIONS_KEPT=DIRECTORY` keeps the volumes of which a
/// process did not come to its end, or took long.
@Suite struct MutatedVolumeTests {
    private static let seeds: ClosedRange<UInt64> = {
        let given = ProcessInfo.processInfo.environment["OUTBOARD_MUTATIONS"] ?? ""
        let ends = given.split(separator: "-").compactMap { UInt64($0) }
        if ends.count == 2, ends[0] >= 1, ends[0] <= ends[1] { return ends[0]...ends[1] }
        return 1...(Tier.isFull ? 300 : 60)
    }()
    /// Of a machine that has nothing else to do. A child is ended by the processor's time that it took.
    private static var mostSeconds: Double {
        var load = [0.0]
        let isKnown = getloadavg(&load, 1) == 1
        let processors = Double(ProcessInfo.processInfo.activeProcessorCount)
        return 10 * max(1, isKnown ? load[0] / processors : 1)
    }

    /// Serves volumes by their seeds' names.
    private final class Served: NBDExportProvider {
        private let volumes = Monitor<[String: MutatedVolume]>([:])

        func add(_ volume: MutatedVolume) -> String {
            let name = "\(volume.image.name.filter { $0 != " " })-\(volume.seed)"
            volumes.withLock { $0[name] = volume }
            return name
        }
        func remove(_ name: String) { volumes.withLock { _ = $0.removeValue(forKey: name) } }
        func exports() -> [NBDExport] { [] }
        func export(named name: String) -> NBDExport? {
            volumes.withLock { $0[name] }.map { NBDExport(name: name, description: "", store: $0) }
        }
    }

    /// Holds what comes against the contract, and hands it on.
    private final class Gate: RecordSink {
        private let sinks: [any RecordSink]
        private var range = ByteRange(offset: 0, count: 0)
        var isListed = false
        var faults: Set<String> = []

        init(_ sinks: [any RecordSink]) { self.sinks = sinks }

        func put(_ record: VolumeRecord) throws(TocError) {
            switch record {
            case .fileSystem(let description):
                range = description.range
                if description.isListed { isListed = true }
            case .extents(_, let extents):
                for extent in extents
                where extent.volumeOffset < range.offset || extent.volumeOffset + extent.count > range.end {
                    faults.insert("an extent outside of its file system")
                }
            case .used(let ranges):
                for used in ranges where used.offset < range.offset || used.end > range.end {
                    faults.insert("blocks in use outside of their file system")
                }
            default: break
            }
            for sink in sinks { try sink.put(record) }
        }
    }

    private struct Outcome: Sendable {
        var kind: String
        var volume: String
        var seconds: Double
        var names: UInt64
        /// Nothing was said to be wrong, but names are missing: a damaged entry may look like one that was deleted.
        var hasFewer = false
        /// What became of it; for a table of outcomes.
        var end: String
        /// What must not be.
        var faults: [String] = []
        var title: String { hasFewer ? "whole but for names" : end }
    }

    private static func look(
        _ volume: MutatedVolume, _ served: Served, _ scratch: ScratchDirectory
    ) throws -> Outcome {
        let name = served.add(volume)
        defer { served.remove(name) }
        let path = scratch("\(name).sqlite")
        let reading = VolumeReading(
            nbd: "nbd+unix:///\(name)?socket=\(scratch("nbd"))", volumeSize: volume.size,
            executable: Outboard.binary)
        let begun = MonotonicClock.now
        let used = UsedMap(size: volume.size)
        var isListed = false
        var faults: [String] = []
        func read(_ builder: any RecordSink) throws(AgentError) -> VolumeReading.Summary {
            let sink = Gate([builder, used])
            defer { (isListed, faults) = (sink.isListed, sink.faults.sorted()) }
            return try reading.run([.files, .use], into: sink, cancellation: CancellationToken())
        }
        let info = TocInfo(tool: "test", volumeSize: volume.size)
        let summary = try TocBuild.run(into: path, info: info, progress: { _ in }, read)
        let seconds = Double(MonotonicClock.now - begun) / 1e9
        if seconds > mostSeconds { faults.append("took \(seconds) s") }
        faults += try ask(path, summary.counts)
        unlink(path)
        for failure in summary.failures {
            // A crash within libtsk, or too much of time or memory, is contained. Swift's own traps, and a stream of
            // records that cannot be, are our faults.
            let isTrap = failure.contains("signal 4 ") || failure.contains("signal 5 ")
            let isEnded = failure.contains("ended it") || failure.contains("it was ended")
            if isTrap || !isEnded { faults.append(failure) }
        }
        var end =
            !isListed ? "refused" : summary.counts.problems > 0 ? "with problems" : "whole"
        if let failure = summary.failures.first {
            end = failure.split(separator: ":").dropFirst(2).joined(separator: ":")
        }
        _ = used.ranges(alignment: 4096)
        return Outcome(
            kind: volume.image.name, volume: "\(volume)", seconds: seconds, names: summary.counts.names,
            end: end, faults: faults)
    }

    /// The table answers, and its trees end.
    private static func ask(_ path: String, _ counts: TocCounts) throws -> [String] {
        let toc = try TocDatabase(path)
        var steps = 0
        if let root = try toc.resolve("/") {
            try toc.walk(from: root) { _ in
                steps += 1
                return true
            }
        }
        // A node may have several names, but each directory is walked once.
        return steps > 1 + Int(counts.names) + toc.fileSystems.count ? ["a walk of \(steps) steps"] : []
    }

    private static func keep(_ volume: MutatedVolume, _ outcome: Outcome) throws {
        guard let directory = ProcessInfo.processInfo.environment["OUTBOARD_MUTATIONS_KEPT"],
            !outcome.faults.isEmpty || outcome.seconds > 2 || outcome.end.contains("ended")
        else { return }
        try volume.write(to: directory)
    }

    private func outcomes(_ volumes: [@Sendable () -> MutatedVolume]) async throws -> [Outcome] {
        let scratch = try ScratchDirectory()
        let served = Served()
        let server = try await NBDServer.start(
            provider: served, unixSocket: scratch("nbd"), tcp: nil, tls: nil,
            logger: Logger(label: "mutated") { _ in SwiftLogNoOpLogHandler() })
        let next = Monitor(0)
        let all = await withTaskGroup(of: [Result<Outcome, any Error>].self) { group in
            for _ in 0..<2 {
                group.addTask {
                    await withCheckedContinuation { continuation in
                        BlockingThread.start {
                            var found: [Result<Outcome, any Error>] = []
                            while true {
                                let index = next.withLock { next in
                                    defer { next += 1 }
                                    return next
                                }
                                guard index < volumes.count else { break }
                                let volume = volumes[index]()
                                found.append(
                                    Result {
                                        let outcome = try Self.look(volume, served, scratch)
                                        try Self.keep(volume, outcome)
                                        return outcome
                                    }.mapError { TestFailure("\(volume): \($0)") })
                            }
                            continuation.resume(returning: found)
                        }
                    }
                }
            }
            return await group.reduce(into: []) { $0 += $1 }
        }
        await server.shutdown()
        return try all.map { try $0.get() }
    }

    @Test func volumesThatAreDamagedAreReadAsFarAsTheyCanBe() async throws {
        let images = try SmallFileSystems()
        let sound = try await outcomes(images.images.map { image in { MutatedVolume(image) } })
        for outcome in sound {
            #expect(outcome.faults == [] && outcome.end == "whole", "\(outcome)")
            let isFilled = !outcome.volume.hasPrefix("exFAT") || Tier.isHost && Machine.canMount
            #expect(outcome.names >= 12 || !isFilled, "\(outcome)")
        }
        let whole = Dictionary(uniqueKeysWithValues: sound.map { ($0.kind, $0.names) })
        var found = try await outcomes(Self.seeds.map { seed in { MutatedVolume(images, seed: seed) } })
        for index in found.indices where found[index].end == "whole" {
            found[index].hasFewer = found[index].names < whole[found[index].kind] ?? 0
        }
        for outcome in found where !outcome.faults.isEmpty {
            Issue.record("\(outcome.volume): \(outcome.faults); OUTBOARD_MUTATIONS says how to do it again")
        }
        // Otherwise nothing would be shown: most of what is sound is found.
        #expect(found.count < 100 || found.reduce(0) { $0 + $1.names } > UInt64(found.count) * 20)
        Self.report(found)
    }

    private static func report(_ found: [Outcome]) {
        let slowest = found.max { $0.seconds < $1.seconds }
        print(
            "\(found.count) damaged volumes, seeds \(seeds): slowest "
                + "\(slowest.map { "\($0.volume), \($0.seconds) s" } ?? "none")")
        let kinds = Dictionary(grouping: found, by: \.kind)
        for (kind, outcomes) in kinds.sorted(by: { $0.key < $1.key }) {
            let ends = Dictionary(grouping: outcomes, by: \.title).mapValues(\.count)
            let text = ends.sorted { $0.value > $1.value }.map { "\($0.value) \($0.key)" }
            print("    \(kind): \(outcomes.count): \(text.joined(separator: ", "))")
        }
        for outcome in found where outcome.end.contains("ended") || outcome.seconds > 5 || outcome.hasFewer {
            print("    \(outcome.volume): \(outcome.names) names, \(outcome.seconds) s: \(outcome.title)")
        }
    }
}
