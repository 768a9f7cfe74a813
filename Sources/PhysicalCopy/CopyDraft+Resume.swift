import Blocks
import Glibc

/// A copy in the making that outlives its maker: what he notes in its directory, and how the next one finds it.
extension CopyDraft {
    /// Writes the record, in place of the one that there is, and makes it durable. What it says of the copy must be so already.
    public func note(_ record: ResumeRecord) throws(CopyError) {
        try replace(ResumeRecord.fileName, with: record.encoded())
    }

    private func replace(_ name: String, with bytes: [UInt8]) throws(CopyError) {
        try files.replace(name, in: descriptor, with: bytes, "write \(path(of: name))")
    }

    /// Writes the list of what of the volume is copied, and makes it durable.
    /// - Parameter list: at most ``CopyLimits/usedBytes`` / 16 ranges.
    /// - Returns: for the record.
    public func noteUsed(_ list: RangeList) throws(CopyError) -> ResumeRecord.File {
        precondition(list.ranges.count <= CopyLimits.usedBytes / 16, "too many ranges")
        var writer = BigEndianWriter(reserving: list.ranges.count * 16)
        for range in list.ranges {
            writer.integer(range.offset)
            writer.integer(range.count)
        }
        try replace(ResumeRecord.usedFileName, with: writer.bytes)
        return ResumeRecord.File(writer.bytes)
    }

    /// The list that the record names.
    public func used(of record: ResumeRecord) throws(CopyError) -> RangeList? {
        guard let file = record.used else { return nil }
        let action = "read \(path(of: ResumeRecord.usedFileName))"
        let bytes = try files.read(
            ResumeRecord.usedFileName, in: descriptor, limit: CopyLimits.usedBytes, action)
        guard ResumeRecord.File(bytes) == file else {
            throw CopyError(
                .damaged, action, "it is not the one that the record names", advice: Self.copyAnew)
        }
        var ranges: [ByteRange] = []
        for place in stride(from: 0, to: bytes.count, by: 16) {
            let (offset, count) = bytes.withUnsafeBytes {
                ($0.bigEndian(at: place, as: UInt64.self), $0.bigEndian(at: place + 8, as: UInt64.self))
            }
            guard offset >= ranges.last?.end ?? 0,
                let range = ByteRange(checking: offset, count, within: record.volume.size)
            else { throw CopyError(.damaged, action, "it is no list of extents", advice: Self.copyAnew) }
            ranges.append(range)
        }
        return RangeList(ranges)
    }

    /// What to do when a copy cannot go on.
    public static let copyAnew = "copy anew, without --resume"

    /// Lets go of it and leaves it for ``resume(_:force:files:where:)``.
    public func keep() {
        guard !isOver else { return }
        isOver = true
        lock = nil
    }

    /// From now on it cannot be resumed, and holds nothing that is for that alone.
    func forgetRecord() throws(CopyError) {
        for name in [ResumeRecord.fileName, ResumeRecord.usedFileName] {
            try files.remove(name, in: descriptor, "remove \(path(of: name))")
        }
    }

    /// Removes what is neither of the copy's data nor for its record, as a maker leaves it that dies.
    /// - Parameter hasToc: the table of contents stays.
    public func clearUp(hasToc: Bool) throws(CopyError) {
        var kept: Set = [ResumeRecord.fileName, ResumeRecord.usedFileName, DataLocation.usualName]
        if hasToc { kept.insert(TocDescription.fileName) }
        for name in try files.names(inDirectory: descriptor, "look into \(directory)")
        where !kept.contains(name) {
            try files.remove(name, in: descriptor, "remove \(path(of: name))")
        }
    }

    /// Removes the table of contents that was built, or that whoever builds it has left, and nothing else: a record may be
    /// written at that moment.
    public func removeToc() throws(CopyError) {
        for name in try files.names(inDirectory: descriptor, "look into \(directory)")
        where name.hasPrefix(TocDescription.fileName) {
            try files.remove(name, in: descriptor, "remove \(path(of: name))")
        }
    }

    /// What is left of copies to a destination.
    public enum Leftover {
        /// Nothing that can go on.
        case nothing
        /// Somebody is making it.
        case alive
        case draft(CopyDraft, ResumeRecord)
    }

    /// Takes the draft that a maker left who has died, or who has stopped with ``keep()``.
    /// - Parameters:
    ///   - destination: as of ``init(destination:force:files:)``, ``force`` and the file system, too.
    ///   - fits: which record is looked for, where there are several.
    /// - Throws: `damaged` when there is a record and it does not verify; what ``init(destination:force:files:)`` throws because
    ///   of what is at the destination.
    public static func resume(
        _ destination: String, force: Bool, files calls: FileSystemCalls = FileSystemCalls(),
        where fits: (ResumeRecord) -> Bool
    ) throws(CopyError) -> Leftover {
        let files = Files(calls)
        let place = try CopyPlace(destination, files: files)
        let action = "resume the copy \(place.destination)"
        try place.bringBack()
        let replaces = try place.check(force: force)
        var isAlive = false
        var found: (draft: CopyDraft, record: ResumeRecord)?
        var failure: CopyError?
        for path in try place.drafts() {
            guard let lock = try DirectoryLock(path, exclusive: true, files: files, action) else {
                isAlive = true
                continue
            }
            do throws(CopyError) {
                guard let record = try record(in: lock, path, files) else { continue }
                if found == nil || fits(record) {
                    found?.draft.keep()
                    found = (CopyDraft(place, path, replacing: replaces, lock, files), record)
                }
            } catch { failure = failure ?? error }
        }
        if let found { return .draft(found.draft, found.record) }
        if let failure { throw failure }
        return isAlive ? .alive : .nothing
    }

    /// What lies beside a copy of others to its name.
    public struct Remains: Hashable, Sendable {
        public enum State: Hashable, Sendable {
            /// Somebody is making it.
            case alive
            /// It was cut off, and there is a record by which it can go on.
            case resumable
            /// It was cut off.
            case dead
        }
        /// Absolute.
        public var path: String
        public var state: State
    }

    /// Drafts of copies to a destination. Nothing is changed.
    public static func remains(
        of destination: String, files calls: FileSystemCalls = FileSystemCalls()
    ) throws(CopyError) -> [Remains] {
        let files = Files(calls)
        let place = try CopyPlace(destination, files: files)
        let action = "look for copies to \(place.destination)"
        var found: [Remains] = []
        for path in try place.drafts().sorted() {
            guard let lock = try DirectoryLock(path, exclusive: false, files: files, action) else {
                found.append(Remains(path: path, state: .alive))
                continue
            }
            let hasRecord = try files.kind(of: ResumeRecord.fileName, in: lock.descriptor, action) != nil
            found.append(Remains(path: path, state: hasRecord ? .resumable : .dead))
        }
        return found
    }

    private static func record(
        in lock: DirectoryLock, _ directory: String, _ files: Files
    ) throws(CopyError) -> ResumeRecord? {
        let action = "read \(directory)/\(ResumeRecord.fileName)"
        guard try files.kind(of: ResumeRecord.fileName, in: lock.descriptor, action) != nil else {
            return nil
        }
        let bytes = try files.read(
            ResumeRecord.fileName, in: lock.descriptor, limit: CopyLimits.resumeBytes, action)
        do throws(ResumeRecord.Malformed) { return try ResumeRecord(decoding: bytes) } catch {
            throw CopyError(.damaged, action, error.reason, advice: copyAnew)
        }
    }
}
