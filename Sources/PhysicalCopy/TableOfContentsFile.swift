import Blocks
import Glibc

/// The table of contents as a file of a copy: what it sums to, and how it gets there. What is in it is the module
/// TableOfContents' business.
public enum TableOfContentsFile {
    /// Where the next one is made, in the copy's directory.
    public static let temporaryName = ".\(TocDescription.fileName).new"

    /// Reads a finished file.
    /// - Parameter progress: told the bytes read since it was told last; may throw to stop.
    public static func describe(
        _ path: String, progress: (UInt64) throws(CopyError) -> Void = { _ in }
    ) throws(CopyError) -> TocDescription {
        let memory = TransferBuffer()
        defer { withExtendedLifetime(memory) {} }
        var crc = CRC32C()
        var length: UInt64 = 0
        try Files.forEachPart(of: path, memory.prefix(UInt64(CopyLimits.transferBytes))) {
            part throws(CopyError) in
            crc.update(part)
            length += UInt64(part.count)
            try progress(UInt64(part.count))
        }
        return TocDescription(length: length, checksum: crc.value)
    }

    /// What is wrong with the table of contents that a manifest names.
    static func finding(
        _ expected: TocDescription?, in directory: String, _ progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) -> Finding? {
        guard let expected else { return nil }
        let found: TocDescription
        do throws(CopyError) {
            found = try describe(directory + "/" + expected.name, progress: progress)
        } catch {
            guard error.kind == .missing else { throw error }
            return Finding(.toc, ByteRange(offset: 0, count: 0), "\(expected.name) is not there")
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

    /// Makes the finished file at ``TableOfContentsFile/temporaryName`` the copy's table of contents, in place of the
    /// one that there is. Killed at any point, the manifest never names a file that is not there or another one.
    /// - Precondition: opened for ``Use/changing``.
    public func attachToc(progress: (UInt64) throws(CopyError) -> Void = { _ in }) throws(CopyError) {
        let temporary = directory + "/" + TableOfContentsFile.temporaryName
        let description = try TableOfContentsFile.describe(temporary, progress: progress)
        try Files.synchronize(temporary)
        var next = manifest
        if manifest.toc != nil {
            next.toc = nil
            try replaceManifest(next)
        }
        let path = directory + "/" + description.name
        guard rename(temporary, path) == 0 else { throw .system(errno, "place \(path)") }
        try Files.synchronize(directory)
        next.toc = description
        try replaceManifest(next)
    }
}
