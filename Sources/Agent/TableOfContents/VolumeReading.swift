import Blocks
import TableOfContents

/// Reads the file systems of a volume, each in a process of its own, so that none of them can harm the agent or hide
/// another: what a process told before it crashed, hung or took too much memory stays, a problem says so, and the next
/// file system goes on. Nothing on the volume is parsed here.
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
        summary.fileSystems = try list(&summary, sink, cancellation)
        for description in summary.fileSystems {
            try cancellation.check()
            try read(description, scope, &summary, sink, cancellation)
        }
        return summary
    }

    private func list(
        _ summary: inout Summary, _ sink: any RecordSink, _ cancellation: CancellationToken
    ) throws(AgentError) -> [FileSystemDescription] {
        var found: [FileSystemDescription] = []
        let ending = try child(["--list"], cancellation).run { frame in
            // All else is not for here; what cannot be is not believed.
            guard case .listed(let description) = frame, description.index == found.count,
                description.range.end <= volumeSize, found.count < TocLimits.fileSystems
            else { return }
            found.append(description)
        }
        try requireVolume(ending)
        guard !ending.isWhole else { return found }
        let reason = "looking for file systems failed: \(ending.reason)"
        summary.failures.append(reason)
        // Of what was found before nothing is known for sure: it could have been somebody else's words.
        let whole = FileSystemDescription(
            index: 0, kind: .unknown, range: ByteRange(offset: 0, count: volumeSize), isListed: false,
            remark: reason)
        try told {
            () throws(TocError) in
            try sink.put(.fileSystem(whole))
            try sink.put(.problem(ReadProblem(reason: reason)))
        }
        return []
    }

    private func read(
        _ description: FileSystemDescription, _ scope: ReadScope, _ summary: inout Summary,
        _ sink: any RecordSink, _ cancellation: CancellationToken
    ) throws(AgentError) {
        var wanted = scope
        if !description.isListed { wanted.remove(.files) }
        if !description.knowsUse { wanted.remove(.use) }
        if wanted.isEmpty {
            return try told {
                () throws(TocError) in
                try sink.put(.fileSystem(description))
                try sink.put(.end)
            }
        }
        var arguments = ["--file-system", "\(description.index)"]
        if wanted.contains(.files) { arguments.append("--files") }
        if wanted.contains(.use) { arguments.append("--use") }
        let gate = FileSystemGate(description, sink)
        let ending = try child(arguments, cancellation).run { frame throws(TocError) in try gate.take(frame) }
        try requireVolume(ending)
        if gate.state == .ended, gate.broken == nil, ending.isWhole {
            return try told { () throws(TocError) in try sink.put(.end) }
        }
        var reason = ending.reason
        if let broken = gate.broken { reason = broken }
        if reason.isEmpty { reason = "its records have no end" }
        let text = "reading it was not finished: \(reason)"
        summary.failures.append(
            "file system \(description.index + 1) (\(description.kind.rawValue)): \(text)")
        try told {
            () throws(TocError) in
            if gate.state == .before { try sink.put(.fileSystem(description)) }
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

    private let description: FileSystemDescription
    private let sink: any RecordSink
    private(set) var state = State.before
    /// Why nothing more is let through.
    private(set) var broken: String?

    init(_ description: FileSystemDescription, _ sink: any RecordSink) {
        self.description = description
        self.sink = sink
    }

    func take(_ frame: DecodedFrame) throws(TocError) {
        guard broken == nil, case .record(let record) = frame else { return }
        switch (record, state) {
        case (.fileSystem, .before):
            // The description is the one that was listed, whatever is said now.
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
