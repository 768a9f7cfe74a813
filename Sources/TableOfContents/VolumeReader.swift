import Blocks

/// What lies on a volume: its partitions, and the file systems on them.
///
/// Its bytes are hostile. libtsk, which reads most kinds, is written in C and has had its defects: so this belongs
/// into a process of its own, which may crash or hang.
public final class VolumeReader {
    /// In the order of offsets; their ``FileSystemDescription/index`` is the place here.
    public let fileSystems: [FileSystemDescription]

    private let cache: ReadCache

    /// Looks for partitions and superblocks; reads no directory yet.
    /// - Throws: ``TocError`` `store` when the volume cannot be read.
    public init(_ store: any BlockStore) throws(TocError) {
        cache = ReadCache(store)
        let layout = try VolumeLayout(cache)
        var found: [FileSystemDescription] = []
        for (index, range) in layout.ranges.enumerated() {
            let reader = try Self.reader(cache, range)
            var description: FileSystemDescription
            if let reader {
                description = reader.description
            } else {
                description = try Self.foreign(cache, range)
            }
            description.index = index
            let remarks = (index == 0 ? layout.remarks : []) + [description.remark]
            if layout.overlaps(index) {
                description.knowsUse = false
                description.remark = "it overlaps another partition"
            }
            description.remark = (remarks.dropLast() + [description.remark]).filter { !$0.isEmpty }
                .joined(separator: "; ")
            found.append(description)
        }
        fileSystems = found
    }

    /// Hands on what one of ``fileSystems`` has, from its ``VolumeRecord/fileSystem(_:)`` to its
    /// ``VolumeRecord/end``. Of one that is not listed, and whose use is not known, that is all.
    /// - Throws: what `sink` throws; ``TocError`` `store` when the volume cannot be read.
    public func read(_ index: Int, _ scope: ReadScope, into sink: any RecordSink) throws(TocError) {
        let description = fileSystems[index]
        let output = Renamed(sink, description)
        guard description.isListed || description.knowsUse,
            let reader = try Self.reader(cache, description.range)
        else {
            try output.put(.fileSystem(description))
            return try output.put(.end)
        }
        try reader.read(description.knowsUse ? scope : scope.subtracting(.use), into: output)
    }

    /// The reader of what begins a range; nil: nobody here reads that.
    private static func reader(
        _ store: any BlockStore, _ range: ByteRange
    ) throws(TocError) -> (any FileSystemReader)? {
        if let reader = try ExtVolumeReader(store, range) { return reader }
        if let reader = try XFSReader(store, range, index: 0) { return reader }
        guard let found = try Probe.look(store, range) else { return nil }
        do throws(TocError) {
            if found.kind == .iso9660 { return try ISO9660Reader(store, range, found) }
            return try SleuthKitReader(store, range, found)
        } catch {
            guard error.kind == .damaged else { throw error }
            return Unreadable(
                description: FileSystemDescription(
                    index: 0, kind: found.kind, range: range, label: found.label, uuid: found.uuid,
                    isListed: false, remark: "its files cannot be listed: \(error.description)"))
        }
    }

    /// What is on a range that nobody here reads.
    private static func foreign(_ store: any BlockStore, _ range: ByteRange) throws(TocError)
        -> FileSystemDescription
    {
        if let (kind, label, uuid) = try ForeignKinds.recognize(store, range) {
            return FileSystemDescription(
                index: 0, kind: kind, range: range, label: label, uuid: uuid, isListed: false,
                remark: "files on \(kind.rawValue) cannot be listed")
        }
        return FileSystemDescription(
            index: 0, kind: .unknown, range: range, isListed: false,
            remark: "no known file system begins here")
    }
}

/// A file system whose superblock is there, and little else.
private struct Unreadable: FileSystemReader {
    let description: FileSystemDescription

    func read(_ scope: ReadScope, into sink: any RecordSink) throws(TocError) {
        try sink.put(.fileSystem(description))
        try sink.put(.end)
    }
}

/// Puts the volume's description of a file system in place of the one that its reader has.
private final class Renamed: RecordSink {
    private let sink: any RecordSink
    private let description: FileSystemDescription

    init(_ sink: any RecordSink, _ description: FileSystemDescription) {
        self.sink = sink
        self.description = description
    }

    func put(_ record: VolumeRecord) throws(TocError) {
        if case .fileSystem = record { return try sink.put(.fileSystem(description)) }
        try sink.put(record)
    }
}
