import Blocks
import Glibc

/// What came in a stream of records.
public enum DecodedFrame: Hashable, Sendable {
    case record(VolumeRecord)
    case listed(FileSystemDescription)
    case progress
    /// The stream is whole; nothing follows.
    case finished
}

/// Takes a stream of records apart as its bytes come, in pieces of any size. They are foreign: the process that wrote
/// them had hostile disks to read.
public struct RecordDecoder {
    private var pending: [UInt8] = []
    private var hasHead = false
    /// Whether the last frame came.
    public private(set) var isFinished = false

    public init() {}

    /// Takes more of the stream, and hands on the frames that are whole now.
    /// - Throws: ``TocError`` `damaged` for what is not such a stream; what `body` throws.
    public mutating func take(
        _ bytes: UnsafeRawBufferPointer, _ body: (DecodedFrame) throws(TocError) -> Void
    ) throws(TocError) {
        if pending.isEmpty {
            let used = try frames(in: bytes, body)
            pending.append(contentsOf: bytes[used...])
            return
        }
        pending.append(contentsOf: bytes)
        let all = pending
        var used = 0
        var failure: TocError?
        all.withUnsafeBytes { all in
            do throws(TocError) { used = try frames(in: all, body) } catch { failure = error }
        }
        if let failure { throw failure }
        pending = Array(all[used...])
    }

    /// - Returns: how many bytes were whole frames.
    private mutating func frames(
        in bytes: UnsafeRawBufferPointer, _ body: (DecodedFrame) throws(TocError) -> Void
    ) throws(TocError) -> Int {
        var position = 0
        if !hasHead {
            guard bytes.count >= RecordFrame.headerBytes else { return 0 }
            guard bytes.bigEndian(at: 0, as: UInt64.self) == RecordFrame.magic,
                bytes.bigEndian(at: 8, as: UInt32.self) == RecordFrame.version
            else { throw Self.damaged("it does not begin as one") }
            hasHead = true
            position = RecordFrame.headerBytes
        }
        while bytes.count - position >= RecordFrame.prefixBytes {
            let count = Int(bytes.bigEndian(at: position, as: UInt32.self))
            guard count <= TocLimits.frameBytes else { throw Self.damaged("a frame of \(count) bytes") }
            guard let kind = RecordFrame.Kind(rawValue: bytes[position + 4]) else {
                throw Self.damaged("a frame of type \(bytes[position + 4])")
            }
            guard !isFinished else { throw Self.damaged("frames behind its end") }
            let start = position + RecordFrame.prefixBytes
            guard bytes.count - start >= count else { break }
            let payload = UnsafeRawBufferPointer(rebasing: bytes[start..<start + count])
            let frame: DecodedFrame
            do throws(BigEndianReader.Truncated) {
                var reader = BigEndianReader(payload)
                guard let decoded = try Self.decode(kind, &reader), reader.remaining == 0 else {
                    throw BigEndianReader.Truncated()
                }
                frame = decoded
            } catch { throw Self.damaged("a frame of type \(kind) whose fields do not fit") }
            isFinished = kind == .finished
            try body(frame)
            position = start + count
        }
        return position
    }

    private static func damaged(_ reason: String) -> TocError {
        TocError(.damaged, "the stream of records is damaged: \(reason)")
    }
}

// The frames. Nil, or Truncated, for fields that cannot be.
extension RecordDecoder {
    private typealias Truncated = BigEndianReader.Truncated

    private static func decode(
        _ kind: RecordFrame.Kind, _ reader: inout BigEndianReader
    ) throws(Truncated) -> DecodedFrame? {
        switch kind {
        case .fileSystem: return try description(&reader).map { .record(.fileSystem($0)) }
        case .listed: return try description(&reader).map { .listed($0) }
        case .node: return try node(&reader).map { .record(.node($0)) }
        case .name:
            let parent = try reader.integer(UInt64.self)
            let node = try reader.integer(UInt64.self)
            let name = try Array(reader.bytes(reader.remaining))
            guard isAddress(parent), isAddress(node), (1...TocLimits.nameBytes).contains(name.count),
                !name.contains(0)
            else { return nil }
            return .record(.name(FileName(parent: parent, name: name, node: node)))
        case .stream: return try stream(&reader).map { .record(.stream($0)) }
        case .extents: return try extents(&reader)
        case .attribute:
            let node = try reader.integer(UInt64.self)
            let name = try Array(reader.bytes(Int(reader.integer(UInt16.self))))
            let value = try Array(reader.bytes(reader.remaining))
            guard isAddress(node), (1...TocLimits.nameBytes).contains(name.count), !name.contains(0),
                value.count <= TocLimits.attributeBytes
            else { return nil }
            return .record(.attribute(ExtendedAttribute(node: node, name: name, value: value)))
        case .used:
            var ranges: [ByteRange] = []
            ranges.reserveCapacity(reader.remaining / 16)
            while reader.remaining > 0 {
                guard let range = try range(&reader) else { return nil }
                ranges.append(range)
            }
            return .record(.used(ranges))
        case .problem:
            let node = try reader.integer(UInt64.self)
            guard node == .max || isAddress(node) else { return nil }
            let reason = try text(reader.bytes(reader.remaining))
            return .record(.problem(ReadProblem(node: node == .max ? nil : node, reason: reason)))
        case .end: return .record(.end)
        case .progress: return .progress
        case .finished: return .finished
        }
    }

    private static func isAddress(_ number: UInt64) -> Bool { number < TocLimits.address }

    /// For people: what is not UTF-8 is mended.
    private static func text(_ bytes: UnsafeRawBufferPointer) -> String {
        String(decoding: bytes.prefix(TocLimits.textBytes), as: UTF8.self)
    }

    private static func range(_ reader: inout BigEndianReader) throws(Truncated) -> ByteRange? {
        try ByteRange(checking: reader.integer(), reader.integer(), within: UInt64(Int64.max))
    }

    private static func description(
        _ reader: inout BigEndianReader
    ) throws(Truncated) -> FileSystemDescription? {
        let index = try reader.integer(UInt32.self)
        guard let range = try range(&reader), index < TocLimits.fileSystems else { return nil }
        let blockSize = try reader.integer(UInt64.self)
        let root = try reader.integer(UInt64.self)
        let flags = try reader.integer(UInt8.self)
        var texts: [String] = []
        for _ in 0..<4 { texts.append(try text(reader.bytes(Int(reader.integer(UInt16.self))))) }
        guard isAddress(root), blockSize <= Int64.max, let kind = FileSystemKind(rawValue: texts[0]) else {
            return nil
        }
        return FileSystemDescription(
            index: Int(index), kind: kind, range: range, blockSize: blockSize, label: texts[1],
            uuid: texts[2], root: root, isListed: flags & 1 != 0, knowsUse: flags & 2 != 0, remark: texts[3])
    }

    private static func node(_ reader: inout BigEndianReader) throws(Truncated) -> FileNode? {
        let address = try reader.integer(UInt64.self)
        let kind = try reader.integer(UInt8.self)
        let fields = RecordFrame.NodeFields(rawValue: try reader.integer())
        guard isAddress(address), let kind = FileNode.Kind(rawValue: kind), fields.isSubset(of: .all) else {
            return nil
        }
        var node = FileNode(address: address, kind: kind)
        node.links = try reader.integer()
        node.size = try reader.integer()
        guard node.size <= Int64.max else { return nil }
        if fields.contains(.permissions) {
            let permissions = try reader.integer(UInt16.self)
            guard permissions <= 0o7777 else { return nil }
            node.permissions = permissions
        }
        if fields.contains(.owner) { node.owner = try reader.integer() }
        if fields.contains(.group) { node.group = try reader.integer() }
        if fields.contains(.modified) { node.modified = try time(&reader) }
        if fields.contains(.accessed) { node.accessed = try time(&reader) }
        if fields.contains(.changed) { node.changed = try time(&reader) }
        if fields.contains(.created) { node.created = try time(&reader) }
        if fields.contains(.device) {
            node.device = try DeviceNumber(major: reader.integer(), minor: reader.integer())
        }
        if fields.contains(.target) {
            guard reader.remaining <= TocLimits.targetBytes else { return nil }
            node.target = try Array(reader.bytes(reader.remaining))
        }
        return node
    }

    private static func time(_ reader: inout BigEndianReader) throws(Truncated) -> FileTime {
        let seconds = Int64(bitPattern: try reader.integer(UInt64.self))
        let nanoseconds = try reader.integer(UInt32.self)
        guard nanoseconds < 1_000_000_000 else { throw Truncated() }
        return FileTime(seconds: seconds, nanoseconds: nanoseconds)
    }

    private static func stream(_ reader: inout BigEndianReader) throws(Truncated) -> FileStream? {
        let identifier = try StreamIdentifier(node: reader.integer(), number: reader.integer())
        let size = try reader.integer(UInt64.self)
        let storage = try reader.integer(UInt8.self)
        let name = try Array(reader.bytes(Int(reader.integer(UInt16.self))))
        let rest = try reader.bytes(reader.remaining)
        guard isAddress(identifier.node), size <= Int64.max, name.count <= TocLimits.nameBytes,
            !name.contains(0)
        else { return nil }
        switch storage {
        case 0 where rest.isEmpty:
            return FileStream(identifier, name: name, size: size, storage: .extents)
        case 1 where rest.count <= TocLimits.inlineBytes:
            return FileStream(identifier, name: name, size: size, storage: .inline(Array(rest)))
        case 2: return FileStream(identifier, name: name, size: size, storage: .unavailable(text(rest)))
        default: return nil
        }
    }

    private static func extents(_ reader: inout BigEndianReader) throws(Truncated) -> DecodedFrame? {
        let stream = try StreamIdentifier(node: reader.integer(), number: reader.integer())
        let count = reader.remaining / 24
        guard isAddress(stream.node), count <= TocLimits.extentsPerRecord else { return nil }
        var extents: [FileExtent] = []
        extents.reserveCapacity(count)
        for _ in 0..<count {
            let extent = try FileExtent(
                fileOffset: reader.integer(), volumeOffset: reader.integer(), count: reader.integer())
            guard extent.isSound else { return nil }
            extents.append(extent)
        }
        return .record(.extents(stream, extents))
    }
}
