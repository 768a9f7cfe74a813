import Blocks
import Glibc

/// The table of contents as a file of a copy: what it sums to, and how it gets there. What is in it is the module
/// TableOfContents' business.
public enum TableOfContentsFile {
    /// Reads a finished file.
    /// - Parameters:
    ///   - calls: the file system.
    ///   - progress: told the bytes read since it was told last; may throw to stop.
    public static func describe(
        _ path: String, files calls: FileSystemCalls = FileSystemCalls(),
        progress: (UInt64) throws(CopyError) -> Void = { _ in }
    ) throws(CopyError) -> TocDescription {
        try describe(path, in: FileSystemCalls.noDirectory, Files(calls), progress)
    }

    private static func describe(
        _ path: String, in directory: Files.Directory, _ files: Files,
        _ progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) -> TocDescription {
        let memory = TransferBuffer()
        defer { withExtendedLifetime(memory) {} }
        var crc = CRC32C()
        var length: UInt64 = 0
        try files.forEachPart(of: path, in: directory, memory.prefix(UInt64(CopyLimits.transferBytes))) {
            part throws(CopyError) in
            crc.update(part)
            length += UInt64(part.count)
            try progress(UInt64(part.count))
        }
        return TocDescription(length: length, checksum: crc.value)
    }

    /// What is wrong with the table of contents that a manifest names.
    static func finding(
        _ expected: TocDescription?, in directory: Files.Directory, _ files: Files,
        _ progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) -> Finding? {
        guard let expected else { return nil }
        let found: TocDescription
        do throws(CopyError) {
            found = try describe(expected.name, in: directory, files, progress)
        } catch {
            guard error.kind == .missing || error.kind == .damaged else { throw error }
            return Finding(.toc, ByteRange(offset: 0, count: expected.length), error.reason)
        }
        guard found != expected else { return nil }
        return Finding(
            .toc, ByteRange(offset: 0, count: found.length),
            "\(expected.name) has \(found.length) bytes and CRC-32C \(found.checksum), the manifest says "
                + "\(expected.length) and \(expected.checksum)")
    }
}

extension PhysicalCopy {
    /// The table of contents' path; nil: there is none.
    public var tocPath: String? { manifest.toc.map { directory + "/" + $0.name } }

    /// Where another table of contents is made while the copy is read by whoever likes, one for each maker.
    public func tocDraft() throws(CopyError) -> FileDraft {
        try FileDraft(for: directory + "/" + TocDescription.fileName, files: files.calls)
    }

    /// Makes a finished file the copy's table of contents, in place of the one that there is. Killed at any point, the
    /// manifest never names a file that is not there or another one. It is read before, and then the copy is taken for
    /// changing until it is there.
    /// - Parameter waiting: called now and then while others use the copy; may throw to give up.
    public func attachToc(
        _ draft: FileDraft, waiting: () throws(CopyError) -> Void = {}
    ) throws(CopyError) {
        let description = try TableOfContentsFile.describe(draft.path, files: files.calls)
        try files.synchronizeFile(draft.path)
        try takeForChanging(waiting)
        // Before the manifest gives up the one that there is.
        let action = "put the table of contents into \(directory)"
        guard try draft.isInPlace(action) else {
            throw CopyError(
                .cannotCreate, action,
                "\(draft.path) was removed or replaced meanwhile", advice: "build it again")
        }
        var next = manifest
        if manifest.toc != nil {
            next.toc = nil
            try replaceManifest(next)
        }
        try draft.commit(replacing: true)
        next.toc = description
        try replaceManifest(next)
    }
}
