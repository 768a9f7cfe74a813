import Blocks
import TableOfContents

/// Reads the file systems of a volume, each in a process of its own, so that none of them can harm the agent or hide
/// another: what a process told before it crashed, hung or took too much memory stays, a problem says so, and the next
/// file system goes on. Nothing on the volume is parsed here: where its partitions are, one more process says.
public struct VolumeReading: Sendable {
    /// What was read.
    public struct Summary: Hashable, Sendable {
        public var fileSystems: [FileSystemDescription] = []
        /// For people: which file systems were not read to their end, and why.
        public var failures: [String] = []
    }

    /// The volume, for libnbd; over a unix socket.
    public var nbd: String
    /// Its size, bytes.
    public var volumeSize: UInt64
    /// This program, which has the command `read-file-systems`.
    public var executable: String

    public init(nbd: String, volumeSize: UInt64, executable: String) {
        self.nbd = nbd
        self.volumeSize = volumeSize
        self.executable = executable
    }

    /// Hands on the records of one file system after another. One that was not read to its end has a
    /// ``VolumeRecord/problem(_:)`` and no ``VolumeRecord/end``.
    /// - Throws: 75 when cancelled; 69 when the volume is not there any more; what `sink` throws, with its status.
    public func run(
        _ scope: ReadScope, into sink: any RecordSink, cancellation: CancellationToken
    ) throws(AgentError) -> Summary {
        var summary = Summary()
        for place in try places(&summary, sink, cancellation) {
            try cancellation.check()
            try read(place, scope, &summary, sink, cancellation)
        }
        return summary
    }

    /// The ranges that may hold a file system each, as ``VolumeReader`` has them.
    private func places(
        _ summary: inout Summary, _ sink: any RecordSink, _ cancellation: CancellationToken
    ) throws(AgentError) -> [FileSystemDescription] {
        var found: [FileSystemDescription] = []
        let ending = try child(["--layout"], cancellation).run { frame in
            // All else is not for here; what cannot be is not believed.
            guard case .listed(let place) = frame, place.index == found.count,
                place.range.end <= volumeSize, found.count < TocLimits.fileSystems
            else { return }
            found.append(place)
        }
        try requireVolume(ending)
        guard !ending.isWhole else { return found }
        let reason = "looking for partitions failed: \(ending.reason)"
        summary.failures.append(reason)
        // Of what was found before nothing is known for sure: it could have been somebody else's words.
        let whole = FileSystemDescription(
            index: 0, kind: .unknown, range: ByteRange(offset: 0, count: volumeSize), isListed: false,
            remark: reason)
        summary.fileSystems.append(whole)
        try told {
            () throws(TocError) in
            try sink.put(.fileSystem(whole))
            try sink.put(.problem(ReadProblem(reason: reason)))
        }
        return []
    }

    private func read(
        _ place: FileSystemDescription, _ scope: ReadScope, _ summary: inout Summary,
        _ sink: any RecordSink, _ cancellation: CancellationToken
    ) throws(AgentError) {
        var arguments = ["--range", "\(place.range.offset)+\(place.range.count)"]
        if scope.contains(.files) { arguments.append("--files") }
        if scope.contains(.use), place.knowsUse { arguments.append("--use") }
        let gate = FileSystemGate(place, sink)
        let ending = try child(arguments, cancellation).run { frame throws(TocError) in try gate.take(frame) }
        try requireVolume(ending)
        summary.fileSystems.append(gate.description)
        if gate.state == .ended, gate.broken == nil, ending.isWhole {
            return try told { () throws(TocError) in try sink.put(.end) }
        }
        var reason = ending.reason
        if let broken = gate.broken { reason = broken }
        if reason.isEmpty { reason = "its records have no end" }
        let text = "reading it was not finished: \(reason)"
        summary.failures.append(
            "file system \(place.index + 1) (\(gate.description.kind.rawValue)): \(text)")
        try told {
            () throws(TocError) in
            if gate.state == .before {
                var description = gate.description
                if description.remark.isEmpty { description.remark = text }
                try sink.put(.fileSystem(description))
            }
            try sink.put(.problem(ReadProblem(reason: text)))
        }
    }

    private func child(_ arguments: [String], _ cancellation: CancellationToken) -> ReadingChild {
        ReadingChild(
            executable: executable, arguments: ["read-file-systems", "--nbd", nbd] + arguments,
            cancellation: cancellation)
    }

    private func requireVolume(_ ending: ReadingChild.Ending) throws(AgentError) {
        guard ending.volumeIsGone else { return }
        throw AgentError(
            .unavailable, doing: "reading the file systems of", to: nbd, because: ending.reason,
            cause: .disconnected)
    }

    private func told(_ body: () throws(TocError) -> Void) throws(AgentError) {
        do throws(TocError) { try body() } catch { throw AgentError(error) }
    }
}

/// Lets the records of one file system through, from its beginning to its end, and nothing else: what a process says
/// is not believed further.
private final class FileSystemGate {
    enum State {
        case before
        case open
        case ended
    }

    /// The place as it was found; then with what its process says is there.
    private(set) var description: FileSystemDescription
    private let place: FileSystemDescription
    private let sink: any RecordSink
    private(set) var state = State.before
    /// Why nothing more is let through.
    private(set) var broken: String?

    init(_ place: FileSystemDescription, _ sink: any RecordSink) {
        self.place = place
        description = place
        // Nothing is known of what nobody describes.
        description.knowsUse = false
        self.sink = sink
    }

    func take(_ frame: DecodedFrame) throws(TocError) {
        guard broken == nil else { return }
        switch frame {
        case .record(let record): try take(record)
        case .listed(let announced) where state == .before && announced.range == place.range:
            description = placed(announced)
            description.isListed = false
            description.knowsUse = false
        case .listed, .progress, .finished: break
        }
    }

    /// What a process says of a place, with what was known before.
    private func placed(_ told: FileSystemDescription) -> FileSystemDescription {
        var result = told
        result.index = place.index
        result.knowsUse = told.knowsUse && place.knowsUse
        result.remark = [place.remark, told.remark].filter { !$0.isEmpty }.joined(separator: "; ")
        return result
    }

    private func take(_ record: VolumeRecord) throws(TocError) {
        switch (record, state) {
        case (.fileSystem(let told), .before):
            guard told.range == place.range else {
                broken = "it told of a range that is not its own"
                return
            }
            description = placed(told)
            state = .open
            try sink.put(.fileSystem(description))
        case (.fileSystem, _), (_, .before), (_, .ended):
            broken = "its records are not in order"
        case (.used(let ranges), .open):
            let outside = ranges.contains {
                $0.offset < description.range.offset || $0.end > description.range.end
            }
            guard !outside else {
                broken = "it told of blocks that are not its own"
                return
            }
            try sink.put(record)
        case (.end, .open):
            // Put when it is known that nothing else went wrong.
            state = .ended
        case (_, .open): try sink.put(record)
        }
    }
}
