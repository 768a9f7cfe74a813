import Blocks
import Glibc
import Testing

@testable import TableOfContents

/// One of each kind of record, with all fields and with none.
func everyRecord() -> [VolumeRecord] {
    var full = FileNode(address: (1 << 56) - 1, kind: .characterDevice)
    full.permissions = 0o7777
    full.owner = .max
    full.group = 1
    full.links = 3
    full.size = UInt64(Int64.max)
    full.modified = FileTime(seconds: -1, nanoseconds: 999_999_999)
    full.accessed = FileTime(seconds: .min)
    full.changed = FileTime(seconds: .max, nanoseconds: 1)
    full.created = FileTime(seconds: 0)
    full.target = [0xFF, 0x2F]
    full.device = DeviceNumber(major: 8, minor: .max)
    let stream = StreamIdentifier(node: 5, number: .max)
    return [
        .fileSystem(
            FileSystemDescription(
                index: 0, kind: .hfsPlus, range: ByteRange(offset: 1 << 20, count: 1 << 40), blockSize: 4096,
                label: "Größe", uuid: "u", root: 2, isListed: true, knowsUse: true, remark: "r")),
        .node(full), .node(FileNode(address: 0, kind: .regular)),
        .name(FileName(parent: 2, name: [0xFF], node: 3)),
        .name(FileName(parent: 2, name: [UInt8](repeating: 0x61, count: TocLimits.nameBytes), node: 3)),
        .stream(FileStream(stream, name: Array("s".utf8), size: 7, storage: .extents)),
        .stream(FileStream(stream, size: 2, storage: .inline([0, 1]))),
        .stream(FileStream(stream, size: 0, storage: .inline([]))),
        .stream(FileStream(stream, size: 9, storage: .unavailable("compressed"))),
        .extents(
            stream,
            (0..<UInt64(TocLimits.extentsPerRecord)).map {
                FileExtent(fileOffset: $0 << 12, volumeOffset: $0 << 13, count: 4096)
            }),
        .attribute(ExtendedAttribute(node: 5, name: Array("user.a".utf8), value: [])),
        .attribute(
            ExtendedAttribute(
                node: 5, name: Array("user.b".utf8),
                value: [UInt8](repeating: 7, count: TocLimits.attributeBytes))),
        .used([ByteRange(offset: 0, count: 1), ByteRange(offset: 4096, count: 8192)]),
        .problem(ReadProblem(node: 9, reason: "why")), .problem(ReadProblem(reason: "")), .end,
    ]
}

/// What an encoder writes for `body`.
func encoded(_ body: (RecordEncoder) throws -> Void) throws -> [UInt8] {
    let file = try #require(tmpfile())
    defer { fclose(file) }
    let encoder = RecordEncoder(fileno(file))
    try body(encoder)
    let count = lseek(fileno(file), 0, SEEK_END)
    var bytes = [UInt8](repeating: 0, count: Int(count))
    #expect(pread(fileno(file), &bytes, bytes.count, 0) == bytes.count)
    return bytes
}

func decoded(_ bytes: [UInt8], pieces: Int = .max) throws -> [DecodedFrame] {
    var decoder = RecordDecoder()
    var frames: [DecodedFrame] = []
    var rest = bytes[...]
    while !rest.isEmpty {
        let piece = Array(rest.prefix(pieces))
        rest = rest.dropFirst(piece.count)
        try piece.withUnsafeBytes { try decoder.take($0) { frames.append($0) } }
    }
    return frames
}

@Suite struct RecordStreamTests {
    @Test(arguments: [1, 3, 4096, Int.max]) func everyRecordComesBack(pieces: Int) throws {
        let records = everyRecord()
        let bytes = try encoded { encoder in
            for record in records { try encoder.put(record) }
            try encoder.finish()
        }
        // Byte by byte, the large records would take long.
        let isSlow = pieces < 1024
        let frames = try decoded(isSlow ? Array(bytes.prefix(2_000)) : bytes, pieces: pieces)
        if isSlow {
            #expect(frames == Array(try decoded(bytes).prefix(frames.count)))
            #expect(frames.count > 4)
        } else {
            #expect(frames == records.map { .record($0) } + [.finished])
        }
    }

    @Test func aListComesBack() throws {
        let description = FileSystemDescription(
            index: 3, kind: .luks, range: ByteRange(offset: 0, count: 4096), isListed: false, remark: "why")
        let bytes = try encoded { encoder in
            try encoder.list(description)
            try encoder.progress()
            try encoder.finish()
        }
        #expect(try decoded(bytes) == [.listed(description), .progress, .finished])
    }

    @Test func manyUsedRangesAreSplit() throws {
        let ranges = (0..<10_000).map { ByteRange(offset: UInt64($0) * 8192, count: 4096) }
        let frames = try decoded(
            try encoded { encoder in
                try encoder.put(.used(ranges))
                try encoder.finish()
            })
        var found: [ByteRange] = []
        for case .record(.used(let part)) in frames { found += part }
        #expect(found == ranges)
    }

    /// What a reader must not say becomes a problem, not a stream that cannot be read.
    @Test func impossibleRecordsBecomeProblems() throws {
        var large = FileNode(address: 7, kind: .regular)
        large.size = 1 << 63
        let stream = StreamIdentifier(node: 7)
        let records: [VolumeRecord] = [
            .node(large), .node(FileNode(address: 1 << 56, kind: .regular)),
            .name(FileName(parent: 2, name: [], node: 7)),
            .name(FileName(parent: 2, name: [0], node: 7)),
            .name(FileName(parent: .max, name: [1], node: 7)),
            .name(FileName(parent: 2, name: [UInt8](repeating: 1, count: 1025), node: 7)),
            .extents(stream, [FileExtent(fileOffset: 0, volumeOffset: .max, count: 2)]),
            .extents(stream, [FileExtent(fileOffset: 0, volumeOffset: 0, count: 0)]),
            .stream(FileStream(stream, size: .max, storage: .extents)),
            .attribute(ExtendedAttribute(node: 7, name: [], value: [])),
        ]
        let frames = try decoded(
            try encoded { encoder in
                for record in records { try encoder.put(record) }
                try encoder.finish()
            })
        #expect(frames.count == records.count + 1)
        for frame in frames.dropLast() {
            guard case .record(.problem) = frame else {
                Issue.record("\(frame)")
                continue
            }
        }
    }

    @Test func foreignBytesThrow() throws {
        let good = try encoded { encoder in
            for record in everyRecord().prefix(9) { try encoder.put(record) }
            try encoder.finish()
        }
        func mustThrow(_ bytes: [UInt8], _ what: String) {
            #expect(throws: TocError.self, "\(what)") { try decoded(bytes) }
        }
        mustThrow(Array("GET / HTTP/1.1\r\n".utf8), "a head")
        var version = good
        version[11] = 2
        mustThrow(version, "a version")
        let head = Array(good.prefix(12))
        mustThrow(head + [0, 2, 0, 1, 9], "a frame beyond the limit")
        mustThrow(head + [0xFF, 0xFF, 0xFF, 0xFF, 9], "a frame far beyond the limit")
        mustThrow(head + [0, 0, 0, 0, 77], "a frame of no type")
        mustThrow(head + [0, 0, 0, 1, 9, 0], "an end with a payload")
        mustThrow(good + [0, 0, 0, 0, 9], "frames behind the end")
    }

    /// Any byte may be wrong: it throws or is another record, and never traps.
    @Test func flippedBytesNeverTrap() throws {
        let good = try encoded { encoder in
            for record in everyRecord().prefix(9) { try encoder.put(record) }
            try encoder.finish()
        }
        for position in good.indices {
            for value in [0, 1, 0x7F, 0x80, 0xFF] as [UInt8] where good[position] != value {
                var bytes = good
                bytes[position] = value
                do { _ = try decoded(bytes) } catch is TocError {}
            }
        }
    }

    @Test func aReaderThatWentAwayEndsIt() throws {
        signal(SIGPIPE, SIG_IGN)
        var ends: [Int32] = [0, 0]
        // No pipe: what else is started meanwhile would have its ends, too.
        let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        #expect(socketpair(AF_UNIX, type, 0, &ends) == 0)
        close(ends[0])
        defer { close(ends[1]) }
        let encoder = RecordEncoder(ends[1])
        #expect(throws: TocError.self) { try encoder.finish() }
    }
}
