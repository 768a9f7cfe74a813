import Blocks

/// What lies on a volume: the ranges of its partitions, and what each of them holds.
///
/// Its bytes are hostile. libtsk, which reads most kinds, is written in C and has had its defects: so each range
/// belongs into a process of its own, which may crash or hang.
public enum VolumeReader {
    /// The ranges that may hold a file system each: partitions, or the whole volume. Nothing in them is read but, where
    /// that decides whether there are partitions, their first sectors; libtsk has no part in it.
    /// - Returns: in the order of offsets; of kind ``FileSystemKind/unknown``, with
    ///   ``FileSystemDescription/index``. A range that shares bytes with another has no
    ///   ``FileSystemDescription/knowsUse``.
    /// - Throws: ``TocError`` `store` when the volume cannot be read.
    public static func places(_ store: any BlockStore) throws(TocError) -> [FileSystemDescription] {
        let layout = try VolumeLayout(ReadCache(store))
        return layout.ranges.indices.map { index in
            let isApart = !layout.overlaps(index)
            let remarks =
                (index == 0 ? layout.remarks : []) + (isApart ? [] : ["it overlaps another partition"])
            return FileSystemDescription(
                index: index, kind: .unknown, range: layout.ranges[index], isListed: false,
                knowsUse: isApart, remark: remarks.joined(separator: "; "))
        }
    }

    /// Hands on what a range holds, from its ``VolumeRecord/fileSystem(_:)`` (whose index is 0) to its
    /// ``VolumeRecord/end``. Where nobody here reads that, and its use is not known, that is all.
    /// - Parameters:
    ///   - range: of `store`.
    ///   - advance: called now and then while the reader comes to parts of the volume that it has not read yet.
    ///   - announce: told what the superblock says before libtsk is asked, or a log replayed, which may be the end of
    ///     the process.
    /// - Throws: what `sink` and `announce` throw; ``TocError`` `store` when the volume cannot be read.
    public static func read(
        _ store: any BlockStore, _ range: ByteRange, _ scope: ReadScope, into sink: any RecordSink,
        advance: @escaping @Sendable () -> Void = {},
        announce: (FileSystemDescription) throws(TocError) -> Void = { _ in }
    ) throws(TocError) {
        let cache = ReadCache(store, advance: advance)
        if let reader = try reader(cache, range, advance, announce) {
            return try reader.read(reader.description.knowsUse ? scope : scope.subtracting(.use), into: sink)
        }
        try sink.put(.fileSystem(try foreign(cache, range)))
        try sink.put(.end)
    }

    /// The reader of what begins a range; nil: nobody here reads that.
    private static func reader(
        _ store: any BlockStore, _ range: ByteRange, _ advance: @escaping () -> Void,
        _ announce: (FileSystemDescription) throws(TocError) -> Void
    ) throws(TocError) -> (any FileSystemReader)? {
        if let reader = try ExtVolumeReader(store, range) { return reader }
        if let reader = try XFSReader(store, range, index: 0, advance: advance, announce: announce) {
            return reader
        }
        guard let found = try Probe.look(store, range) else { return nil }
        var description = FileSystemDescription(
            index: 0, kind: found.kind, range: range, label: found.label, uuid: found.uuid, isListed: false)
        try announce(description)
        do throws(TocError) {
            if found.kind == .iso9660 { return try ISO9660Reader(store, range, found) }
            return try SleuthKitReader(store, range, found)
        } catch {
            guard error.kind == .damaged else { throw error }
            description.remark = "its files cannot be listed: \(error.description)"
            return Unreadable(description: description)
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
