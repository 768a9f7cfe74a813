import Blocks
import Glibc
import TestSupport
import Testing

@testable import Agent
@testable import TableOfContents

/// What processes do that read hostile disks: here they are shell scripts, which do it at will.
@Suite struct VolumeReadingTests {
    private let scratch: ScratchDirectory
    init() throws { scratch = try ScratchDirectory() }

    private static let volumeSize: UInt64 = 1 << 24

    private final class Collected: RecordSink {
        var records: [VolumeRecord] = []
        func put(_ record: VolumeRecord) throws(TocError) { records.append(record) }
    }

    private static func description(
        _ index: Int, isListed: Bool = true, knowsUse: Bool = true
    ) -> FileSystemDescription {
        FileSystemDescription(
            index: index, kind: .ext4, range: ByteRange(offset: UInt64(index) << 20, count: 1 << 20), root: 2,
            isListed: isListed, knowsUse: knowsUse)
    }

    /// Writes a stream to a file of that name.
    private func stream(_ name: String, _ body: (RecordEncoder) throws -> Void) throws {
        let descriptor = open(scratch(name), O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        #expect(descriptor >= 0)
        defer { close(descriptor) }
        try body(RecordEncoder(descriptor))
    }

    /// The answer to `--layout`: places of file systems with those descriptions.
    private func places(_ descriptions: [FileSystemDescription]) throws {
        try stream("layout") { encoder in
            for description in descriptions {
                try encoder.list(
                    FileSystemDescription(
                        index: description.index, kind: .unknown, range: description.range, isListed: false,
                        knowsUse: true))
            }
            try encoder.finish()
        }
    }

    /// The records of a whole file system with one file.
    private func whole(_ index: Int, finish: Bool = true) throws {
        try stream("fs\(index)") { encoder in
            try encoder.put(.fileSystem(Self.description(index)))
            try encoder.put(.node(FileNode(address: 2, kind: .directory)))
            try encoder.put(.name(FileName(parent: 2, name: Array("file".utf8), node: 3)))
            try encoder.put(.end)
            if finish { try encoder.finish() } else { try encoder.flush() }
        }
    }

    /// The program whose answer to `--layout` is the file `layout`, and which does `body` for a file system: `$n` is
    /// its index.
    private func program(_ body: String) throws -> VolumeReading {
        let path = scratch("program")
        let text = """
            #!/bin/sh
            cd '\(scratch.path)' || exit 1
            if [ "$4" = --layout ]; then exec cat layout; fi
            n=$((${5%+*} >> 20))
            \(body)

            """
        let file = try #require(fopen(path, "w"))
        fputs(text, file)
        fclose(file)
        chmod(path, 0o700)
        return VolumeReading(nbd: "nbd+unix:///", volumeSize: Self.volumeSize, executable: path)
    }

    private func run(
        _ reading: VolumeReading, _ scope: ReadScope = .files, cancellation: CancellationToken = .init()
    ) throws -> (VolumeReading.Summary, [VolumeRecord]) {
        let sink = Collected()
        let summary = try reading.run(scope, into: sink, cancellation: cancellation)
        return (summary, sink.records)
    }

    @Test func recordsComeThrough() throws {
        try places([Self.description(0), Self.description(1, isListed: false), Self.description(2)])
        try whole(0)
        try stream("fs1") { encoder in
            try encoder.put(.fileSystem(Self.description(1, isListed: false)))
            try encoder.put(.end)
            try encoder.finish()
        }
        try whole(2)
        let (summary, records) = try run(try program("exec cat fs$n"))
        #expect(summary.fileSystems.count == 3)
        #expect(summary.failures == [])
        #expect(records.filter { $0 == .end }.count == 3)
        #expect(records.count == 4 + 2 + 4)
        #expect(Array(records[4...5]) == [.fileSystem(Self.description(1, isListed: false)), .end])
    }

    /// What it told before stays; a problem says what happened; the next one is read.
    @Test(arguments: [
        ("cat fs$n; kill -SEGV $$", "signal 11"),
        ("cat fs$n; echo 'no memory' >&2; exit 70", "status 70: no memory"),
        ("cat fs$n; exit 0", "no end"), ("cat fs$n; head -c 100000 /dev/urandom", "damaged"),
        ("cat fs$n fs$n", "damaged"),
    ]) func aChildThatFailsIsContained(body: String, reason: String) throws {
        try places([Self.description(0), Self.description(1)])
        try whole(0, finish: false)
        try whole(1)
        let (summary, records) = try run(
            try program("if [ $n = 1 ]; then exec cat fs1; fi\n\(body)"))
        #expect(summary.failures.count == 1)
        #expect(records.contains(.name(FileName(parent: 2, name: Array("file".utf8), node: 3))))
        #expect(records.filter { $0 == .end }.count == 1)
        let problems = records.compactMap { record -> String? in
            if case .problem(let problem) = record { problem.reason } else { nil }
        }
        #expect(problems.count == 1)
        // A stream without its last frame is told by how the process ended.
        if reason != "no end" { #expect(problems[0].contains(reason), "\(problems)") }
        #expect(records.last == .end)
    }

    /// A child that speaks of blocks or of a range that are not its own, and one that says nothing at all.
    @Test func aChildIsNotBelieved() throws {
        try places([Self.description(0)])
        try stream("fs0") { encoder in
            var description = Self.description(7)
            description.range = Self.description(0).range
            try encoder.put(.fileSystem(description))
            try encoder.put(.used([ByteRange(offset: 0, count: 4096)]))
            try encoder.put(.used([ByteRange(offset: 1 << 20, count: 4096)]))
            try encoder.put(.end)
            try encoder.finish()
        }
        let (summary, records) = try run(try program("exec cat fs$n"), [.files, .use])
        #expect(summary.failures.count == 1)
        #expect(records.first == .fileSystem(Self.description(0)))
        #expect(!records.contains(.end))
        #expect(!records.contains(.used([ByteRange(offset: 1 << 20, count: 4096)])))
        try whole(1)
        for body in ["exec cat fs1", "exit 0"] {
            let (summary, records) = try run(try program(body))
            #expect(summary.failures.count == 1)
            #expect(records.count == 2)
            expectUnknown(records.first, Self.description(0).range)
        }
    }

    private func expectUnknown(_ record: VolumeRecord?, _ range: ByteRange) {
        guard case .fileSystem(let description) = record else {
            Issue.record("\(String(describing: record))")
            return
        }
        #expect(description.kind == .unknown && !description.isListed && !description.knowsUse)
        #expect(description.range == range)
    }

    /// What a process crashed over is named, if it had seen that much, and costs the volume nothing else.
    @Test func aSuperblockThatKillsIsNamed() throws {
        try places([Self.description(0), Self.description(1)])
        try stream("fs0") { encoder in
            try encoder.list(Self.description(0))
            try encoder.flush()
        }
        try whole(1)
        let (summary, records) = try run(
            try program("cat fs$n; if [ $n = 0 ]; then kill -SEGV $$; fi"), [.files, .use])
        #expect(summary.failures.count == 1)
        #expect(summary.fileSystems.map(\.kind) == [.ext4, .ext4])
        guard case .fileSystem(let first) = records.first else {
            Issue.record("\(records)")
            return
        }
        #expect(first.kind == .ext4 && !first.isListed && !first.knowsUse)
        #expect(first.remark.contains("signal 11"))
        #expect(records.last == .end)
    }

    /// Partitions that share bytes: what one of them does not use, another may.
    @Test func overlappingPlacesHaveNoFreeSpace() throws {
        try stream("layout") { encoder in
            var place = Self.description(0, isListed: false, knowsUse: false)
            place.remark = "it overlaps another partition"
            try encoder.list(place)
            try encoder.finish()
        }
        try whole(0)
        let (_, records) = try run(
            try program("case \"$*\" in *--use*) exit 1;; esac; exec cat fs$n"), [.files, .use])
        var expected = Self.description(0, knowsUse: false)
        expected.remark = "it overlaps another partition"
        #expect(records.first == .fileSystem(expected))
        #expect(records.last == .end)
    }

    @Test func aLayoutThatFailsLeavesTheVolumeUnknown() throws {
        try whole(0)
        let reading = try program("exec cat fs$n")
        let (summary, records) = try run(reading)
        #expect(summary.failures.count == 1)
        #expect(records.count == 2)
        expectUnknown(records.first, ByteRange(offset: 0, count: Self.volumeSize))
    }

    @Test func aVolumeThatIsGoneIsAnError() throws {
        try places([Self.description(0)])
        let error = try #require(throws: AgentError.self) {
            _ = try run(try program("echo gone >&2; exit 69"))
        }
        #expect(error.status == .unavailable)
    }

    /// Its child sleeps for ever, and has a child of its own that does.
    @Test func cancellingKillsTheChild() throws {
        try places([Self.description(0)])
        try whole(0, finish: false)
        let fifo = scratch("fifo")
        #expect(mkfifo(fifo, 0o600) == 0)
        // The last one that has the fifo open for writing was killed when it reads as ended.
        let descriptor = open(fifo, O_RDONLY | O_NONBLOCK)
        #expect(descriptor >= 0)
        defer { close(descriptor) }
        let reading = try program("exec 7>fifo; echo x >&7; cat fs$n; sleep 1000 & sleep 1000")
        let cancellation = CancellationToken()
        let started = BlockingThread.start {
            var polled = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            _ = poll(&polled, 1, 60_000)
            cancellation.cancel()
        }
        #expect(started)
        let error = try #require(throws: AgentError.self) { _ = try run(reading, cancellation: cancellation) }
        #expect(error.status == .tryAgain)
        _ = fcntl(descriptor, F_SETFL, 0)
        var rest = [UInt8](repeating: 0, count: 16)
        #expect(read(descriptor, &rest, 16) == 2)
        #expect(read(descriptor, &rest, 16) == 0)
    }

    @Test func aSinkThatFailsEndsIt() throws {
        final class Full: RecordSink {
            func put(_ record: VolumeRecord) throws(TocError) { throw TocError(.cannotCreate, "full") }
        }
        try places([Self.description(0)])
        try whole(0)
        let reading = try program("exec cat fs$n")
        let error = try #require(throws: AgentError.self) {
            _ = try reading.run(.files, into: Full(), cancellation: CancellationToken())
        }
        #expect(error.status == .cannotCreate)
    }

    @Test func aTableIsBuiltOfWhatCame() throws {
        try places([Self.description(0), Self.description(1)])
        try whole(0, finish: false)
        try whole(1)
        let reading = try program("if [ $n = 1 ]; then exec cat fs1; fi; cat fs$n; kill -9 $$")
        let summary = try TocBuild.run(
            nbd: reading.nbd, executable: reading.executable, into: scratch("toc.sqlite"),
            info: TocInfo(tool: "test", volumeSize: Self.volumeSize), cancellation: CancellationToken())
        #expect(summary.counts.names == 2)
        #expect(summary.failures.count == 1)
        let toc = try TocDatabase(scratch("toc.sqlite"))
        #expect(toc.fileSystems.map(\.isComplete) == [false, true])
        #expect(try toc.resolve("/1/file") != nil)
        #expect(try toc.problemCount() == 1)
    }
}
