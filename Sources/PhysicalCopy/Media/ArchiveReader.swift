import Blocks
import CLibArchive

/// The members of a tar stream, by libarchive, in their order and once.
final class ArchiveReader {
    /// A member's header.
    struct Member {
        var name: String
        var size: UInt64
        /// Where its first header stands in the stream.
        var start: UInt64
    }

    private let archive: OpaquePointer
    private let input: BackupInput

    /// No other format than tar, and no compression: what is foreign is read by as little code as possible.
    init(_ input: BackupInput) {
        self.input = input
        guard let archive = archive_read_new() else { preconditionFailure("no memory for an archive") }
        self.archive = archive
        precondition(archive_read_support_format_tar(archive) == ARCHIVE_OK)
        precondition(archive_read_support_filter_none(archive) == ARCHIVE_OK)
    }

    deinit { archive_read_free(archive) }

    /// Reads the stream's first bytes.
    func open() throws(Problem) {
        try check(
            archive_read_open(
                archive, Unmanaged.passUnretained(input).toOpaque(), nil,
                { _, context, bytes in
                    let input = Unmanaged<BackupInput>.fromOpaque(context!).takeUnretainedValue()
                    guard let block = input.next() else { return -1 }
                    bytes!.pointee = block.baseAddress
                    return block.count
                }, nil))
    }

    /// Why the stream cannot be read on.
    enum Problem: Error {
        /// The input failed; it says why.
        case input
        /// It is no tar, or not a whole one.
        case malformed(String)
    }

    private func check(_ status: Int32) throws(Problem) {
        // A warning is a header that nobody of us wrote.
        guard status != ARCHIVE_OK else { return }
        throw input.failure == nil ? .malformed(archive.message) : .input
    }

    /// Where the stream is read next.
    var position: UInt64 { UInt64(max(0, archive_filter_bytes(archive, 0))) }

    /// - Returns: nil at the archive's end.
    func next() throws(Problem) -> Member? {
        var entry: OpaquePointer?
        input.limit(MediaLimits.memberHeadBytes)
        let status = archive_read_next_header(archive, &entry)
        if status == ARCHIVE_EOF { return nil }
        try check(status)
        guard let entry, archive_entry_filetype(entry) == UInt32(S_IFREG),
            let name = archive_entry_pathname(entry), archive_entry_size(entry) >= 0
        else { throw .malformed("a member that is no file") }
        return Member(
            name: String(cString: name), size: UInt64(archive_entry_size(entry)),
            start: UInt64(max(0, archive_read_header_position(archive))))
    }

    /// - Returns: the member's next bytes, valid until the next call, and where in it they stand: what lies between is
    ///   a hole. Nil at its end.
    func read() throws(Problem) -> (offset: UInt64, bytes: UnsafeRawBufferPointer)? {
        var (bytes, count, offset): (UnsafeRawPointer?, Int, Int64) = (nil, 0, 0)
        // A map may stand before the first bytes.
        input.limit(MediaLimits.memberHeadBytes)
        defer { input.limit(nil) }
        let status = archive_read_data_block(archive, &bytes, &count, &offset)
        if status == ARCHIVE_EOF { return nil }
        try check(status)
        guard offset >= 0 else { throw .malformed("a member's map") }
        return (UInt64(offset), UnsafeRawBufferPointer(start: bytes, count: count))
    }
}
