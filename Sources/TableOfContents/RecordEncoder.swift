import Blocks
import Glibc

/// What the process that reads file systems writes to its standard output, frame by frame: the stream's format is in
/// <doc:RecordStream>.
enum RecordFrame {
    /// At the stream's beginning: magic and version.
    static let magic: UInt64 = 0x4F42_5245_434F_5244  // "OBRECORD"
    static let version: UInt32 = 1
    static let headerBytes = 12
    /// Before each frame's payload: its length, then its type.
    static let prefixBytes = 5

    enum Kind: UInt8 {
        case fileSystem = 1
        case node, name, stream, extents, attribute, used, problem, end
        /// A range of the volume in the answer to `--layout`; what lies on one before it is read.
        case listed = 0x20
        /// Nothing new, but it lives.
        case progress
        /// The stream is whole.
        case finished
    }

    /// Which of a node's optional fields are there.
    struct NodeFields: OptionSet {
        let rawValue: UInt16
        static let permissions = NodeFields(rawValue: 1 << 0)
        static let owner = NodeFields(rawValue: 1 << 1)
        static let group = NodeFields(rawValue: 1 << 2)
        static let modified = NodeFields(rawValue: 1 << 3)
        static let accessed = NodeFields(rawValue: 1 << 4)
        static let changed = NodeFields(rawValue: 1 << 5)
        static let created = NodeFields(rawValue: 1 << 6)
        static let target = NodeFields(rawValue: 1 << 7)
        static let device = NodeFields(rawValue: 1 << 8)
        static let all = NodeFields(rawValue: 1 << 9 - 1)
    }
}

/// Writes records to a descriptor, many at a time: the sink of the process that reads file systems.
///
/// Not for several threads at once.
public final class RecordEncoder: RecordSink {
    private let descriptor: Int32
    private let buffer: UnsafeMutableRawBufferPointer
    private var fill = 0
    /// Called for each record, before it is written.
    private let beat: () -> Void

    /// Writes the stream's head.
    /// - Parameters:
    ///   - descriptor: a pipe or file; stays open, and is the caller's.
    ///   - beat: called for each record.
    public init(_ descriptor: Int32, beat: @escaping () -> Void = {}) {
        self.descriptor = descriptor
        self.beat = beat
        buffer = .allocate(byteCount: TocLimits.streamBufferBytes, alignment: 16)
        put(RecordFrame.magic)
        put(RecordFrame.version)
    }

    deinit { buffer.deallocate() }

    /// Puts a record into the stream. Texts for people are cut at their limits; instead of a record with numbers or
    /// lengths that cannot be there goes a problem.
    /// - Throws: ``TocError`` `cancelled` when nobody reads the stream any more.
    public func put(_ record: VolumeRecord) throws(TocError) {
        beat()
        if let problem = record.fault {
            try write(.problem(problem))
        } else {
            try write(record)
        }
    }

    private func write(_ record: VolumeRecord) throws(TocError) {
        switch record {
        case .fileSystem(let description): try put(description, .fileSystem)
        case .node(let node): try put(node)
        case .name(let name):
            try begin(.name, 16 + name.name.count)
            put(name.parent)
            put(name.node)
            put(name.name)
        case .stream(let stream): try put(stream)
        case .extents(let stream, let extents):
            try begin(.extents, 12 + 24 * extents.count)
            put(stream.node)
            put(stream.number)
            for extent in extents {
                put(extent.fileOffset)
                put(extent.volumeOffset)
                put(extent.count)
            }
        case .attribute(let attribute):
            try begin(.attribute, 10 + attribute.name.count + attribute.value.count)
            put(attribute.node)
            put(UInt16(attribute.name.count))
            put(attribute.name)
            put(attribute.value)
        case .used(let ranges): try put(used: ranges)
        case .problem(let problem):
            let reason = Self.cut(problem.reason)
            try begin(.problem, 8 + reason.count)
            put(problem.node ?? UInt64.max)
            put(reason)
        case .end: try begin(.end, 0)
        }
    }

    /// A range of the volume for who asked which there are, or what lies on one, as far as is known before it is
    /// read.
    public func list(_ description: FileSystemDescription) throws(TocError) {
        try put(description, .listed)
    }

    /// Tells that the process lives, and sends what is waiting.
    public func progress() throws(TocError) {
        try begin(.progress, 0)
        try flush()
    }

    /// The stream is whole. Nothing may be put any more.
    public func finish() throws(TocError) {
        try begin(.finished, 0)
        try flush()
    }

    /// Sends what is waiting.
    public func flush() throws(TocError) {
        var sent = 0
        while sent < fill {
            let count = Glibc.write(descriptor, buffer.baseAddress! + sent, fill - sent)
            if count > 0 {
                sent += count
            } else if errno != EINTR {
                fill = 0
                throw TocError(
                    .cancelled, "writing records: \(String(cString: strerror(errno))); nobody reads them")
            }
        }
        fill = 0
    }

    /// What a text for people is cut to.
    private static func cut(_ text: String) -> ArraySlice<UInt8> {
        Array(text.utf8).prefix(TocLimits.textBytes)
    }
}

// The frames.
extension RecordEncoder {
    private func put(_ it: FileSystemDescription, _ kind: RecordFrame.Kind) throws(TocError) {
        let texts = [it.kind.rawValue, it.label, it.uuid, it.remark].map(Self.cut)
        try begin(kind, 37 + texts.reduce(0) { $0 + 2 + $1.count })
        put(UInt32(it.index))
        put(it.range.offset)
        put(it.range.count)
        // What cannot be is nothing: the rest is worth telling.
        put(it.blockSize <= Int64.max ? it.blockSize : 0)
        put(it.root < TocLimits.address ? it.root : 0)
        put(UInt8(it.isListed ? 1 : 0) | (it.knowsUse ? 2 : 0))
        for text in texts {
            put(UInt16(text.count))
            put(text)
        }
    }

    private func put(_ node: FileNode) throws(TocError) {
        var fields: RecordFrame.NodeFields = []
        if node.permissions != nil { fields.insert(.permissions) }
        if node.owner != nil { fields.insert(.owner) }
        if node.group != nil { fields.insert(.group) }
        if node.modified != nil { fields.insert(.modified) }
        if node.accessed != nil { fields.insert(.accessed) }
        if node.changed != nil { fields.insert(.changed) }
        if node.created != nil { fields.insert(.created) }
        if node.target != nil { fields.insert(.target) }
        if node.device != nil { fields.insert(.device) }
        let targetCount = node.target?.count ?? 0
        // More than any node takes: what is not used is given back.
        let start = try begin(.node, 8 + 1 + 2 + 4 + 8 + 10 + 4 * 12 + 8 + targetCount)
        put(node.address)
        put(node.kind.rawValue)
        put(fields.rawValue)
        put(node.links)
        put(node.size)
        if let permissions = node.permissions { put(permissions) }
        if let owner = node.owner { put(owner) }
        if let group = node.group { put(group) }
        put(node.modified)
        put(node.accessed)
        put(node.changed)
        put(node.created)
        if let device = node.device {
            put(device.major)
            put(device.minor)
        }
        if let target = node.target { put(target) }
        buffer.storeBigEndian(UInt32(fill - start), at: start - RecordFrame.prefixBytes)
    }

    private func put(_ stream: FileStream) throws(TocError) {
        let rest: ArraySlice<UInt8>
        let storage: UInt8
        switch stream.storage {
        case .extents: (storage, rest) = (0, [])
        case .inline(let bytes):
            (storage, rest) = (1, bytes[...])
        case .unavailable(let reason): (storage, rest) = (2, Self.cut(reason))
        }
        try begin(.stream, 23 + stream.name.count + rest.count)
        put(stream.identifier.node)
        put(stream.identifier.number)
        put(stream.size)
        put(storage)
        put(UInt16(stream.name.count))
        put(stream.name)
        put(rest)
    }

    private func put(used ranges: [ByteRange]) throws(TocError) {
        var rest = ranges[...]
        while !rest.isEmpty {
            let part = rest.prefix(TocLimits.extentsPerRecord)
            rest = rest.dropFirst(part.count)
            try begin(.used, 16 * part.count)
            for range in part {
                put(range.offset)
                put(range.count)
            }
        }
    }

    /// Sees that the frame fits, and writes its prefix.
    /// - Returns: where its payload begins.
    @discardableResult
    private func begin(_ kind: RecordFrame.Kind, _ count: Int) throws(TocError) -> Int {
        precondition(count <= TocLimits.frameBytes, "a frame beyond its limit")
        if fill + RecordFrame.prefixBytes + count > buffer.count { try flush() }
        put(UInt32(count))
        put(kind.rawValue)
        return fill
    }

    private func put<T: FixedWidthInteger>(_ value: T) {
        buffer.storeBigEndian(value, at: fill)
        fill += MemoryLayout<T>.size
    }

    private func put(_ time: FileTime?) {
        guard let time else { return }
        put(UInt64(bitPattern: time.seconds))
        put(time.nanoseconds)
    }

    private func put(_ bytes: some Collection<UInt8>) {
        UnsafeMutableRawBufferPointer(rebasing: buffer[fill...]).copyBytes(from: bytes)
        fill += bytes.count
    }
}

// What the stream cannot carry.
extension VolumeRecord {
    /// Why the record cannot be; nil: it can.
    fileprivate var fault: ReadProblem? {
        func fault(_ node: UInt64, _ reason: String, unless isSound: Bool) -> ReadProblem? {
            if node >= TocLimits.address {
                return ReadProblem(reason: "a node's address, \(node), cannot be")
            }
            return isSound ? nil : ReadProblem(node: node, reason: reason)
        }
        switch self {
        case .node(let node):
            func isSound(_ time: FileTime?) -> Bool { time?.nanoseconds ?? 0 < 1_000_000_000 }
            return fault(
                node.address, "its size, permissions, times or target cannot be",
                unless: node.size <= Int64.max && node.permissions ?? 0 <= 0o7777
                    && node.target?.count ?? 0 <= TocLimits.targetBytes && isSound(node.modified)
                    && isSound(node.accessed) && isSound(node.changed) && isSound(node.created))
        case .name(let name):
            if name.parent >= TocLimits.address { return fault(name.parent, "", unless: false) }
            return fault(
                name.node, "a name of it cannot be",
                unless: (1...TocLimits.nameBytes).contains(name.name.count) && !name.name.contains(0))
        case .stream(let stream):
            var isSound =
                stream.size <= Int64.max && stream.name.count <= TocLimits.nameBytes
                && !stream.name.contains(0)
            if case .inline(let bytes) = stream.storage {
                isSound = isSound && bytes.count <= TocLimits.inlineBytes
            }
            return fault(stream.identifier.node, "a stream's size, name or data cannot be", unless: isSound)
        case .extents(let stream, let extents):
            return fault(
                stream.node, "an extent of it cannot be",
                unless: extents.count <= TocLimits.extentsPerRecord && extents.allSatisfy(\.isSound))
        case .attribute(let attribute):
            return fault(
                attribute.node, "an extended attribute of it cannot be",
                unless: (1...TocLimits.nameBytes).contains(attribute.name.count)
                    && !attribute.name.contains(0) && attribute.value.count <= TocLimits.attributeBytes)
        case .problem(let problem): return problem.node.flatMap { fault($0, "", unless: true) }
        case .fileSystem, .used, .end: return nil
        }
    }
}

extension FileExtent {
    /// Whether its numbers can be.
    var isSound: Bool {
        count > 0 && ByteRange(checking: fileOffset, count, within: UInt64(Int64.max)) != nil
            && ByteRange(checking: volumeOffset, count, within: UInt64(Int64.max)) != nil
    }
}
