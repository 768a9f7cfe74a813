import Blocks
import CLibArchive

/// The members of a pax tar stream, by libarchive: its headers, sparse maps and padding go to an output as they come,
/// in no buffer of its own.
final class ArchiveWriter {
    private let archive: OpaquePointer
    private let output: BackupOutput
    private let action: String
    /// Never touched: libarchive skips what lies in a hole.
    private static let hole = ZeroedMemory(count: Int(MediaLimits.holeBytes))

    init(_ output: BackupOutput) throws(CopyError) {
        self.output = output
        action = "write the backup \(output.name)"
        guard let archive = archive_write_new() else { preconditionFailure("no memory for an archive") }
        self.archive = archive
        try check(archive_write_set_format_pax_restricted(archive))
        try check(archive_write_add_filter_none(archive))
        try check(archive_write_set_bytes_per_block(archive, 0))
        try check(
            archive_write_open(
                archive, Unmanaged.passUnretained(output).toOpaque(), nil,
                { _, context, bytes, count in
                    let output = Unmanaged<BackupOutput>.fromOpaque(context!).takeUnretainedValue()
                    return output.take(UnsafeRawBufferPointer(start: bytes, count: count)) ? count : -1
                }, nil))
    }

    deinit {
        // What was not closed before is not to be completed now. It is closed nevertheless: after archive_write_fail,
        // archive_write_free of libarchive 3.6.2 forgets 33 bytes.
        output.takeNothingMore()
        archive_write_close(archive)
        archive_write_free(archive)
    }

    private func check(_ status: Int32) throws(CopyError) {
        guard status == ARCHIVE_OK else {
            throw output.failure ?? CopyError(.io, action, archive.message)
        }
    }

    /// Begins the next member, a file.
    /// - Parameters:
    ///   - startedAt: nanoseconds since 1970; its whole seconds are the member's time.
    ///   - extents: from the member's start; nil: all of it is data.
    func begin(_ name: String, size: UInt64, startedAt: Int64, extents: [ByteRange]? = nil) throws(CopyError)
    {
        guard let entry = archive_entry_new() else { preconditionFailure("no memory for a member") }
        defer { archive_entry_free(entry) }
        archive_entry_set_pathname(entry, name)
        archive_entry_set_size(entry, Int64(size))
        archive_entry_set_filetype(entry, UInt32(S_IFREG))
        archive_entry_set_perm(entry, 0o600)
        archive_entry_set_mtime(entry, time_t(startedAt / 1_000_000_000), 0)
        if let extents {
            for extent in extents {
                archive_entry_sparse_add_entry(entry, Int64(extent.offset), Int64(extent.count))
            }
            // No data at all is not the same as no map.
            if extents.isEmpty { archive_entry_sparse_add_entry(entry, 0, 0) }
        }
        try check(archive_write_header(archive, entry))
    }

    /// The next bytes of the member.
    func write(_ bytes: UnsafeRawBufferPointer) throws(CopyError) {
        var rest = bytes
        while !rest.isEmpty {
            let count = archive_write_data(archive, rest.baseAddress, rest.count)
            guard count > 0 else { throw output.failure ?? CopyError(.io, action, archive.message) }
            rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(count))
        }
    }

    /// The next bytes of the member lie in a hole.
    func skip(_ count: UInt64) throws(CopyError) {
        var rest = count
        while rest > 0 {
            let part = min(rest, MediaLimits.holeBytes)
            try write(UnsafeRawBufferPointer(rebasing: Self.hole.buffer[..<Int(part)]))
            rest -= part
        }
    }

    /// A whole member.
    func add(_ name: String, _ bytes: [UInt8], startedAt: Int64) throws(CopyError) {
        try begin(name, size: UInt64(bytes.count), startedAt: startedAt)
        var failure: CopyError?
        bytes.withUnsafeBytes { buffer in
            do throws(CopyError) { try write(buffer) } catch { failure = error }
        }
        if let failure { throw failure }
    }

    /// Pads the last member and writes the archive's end.
    func close() throws(CopyError) { try check(archive_write_close(archive)) }
}

extension OpaquePointer {
    /// What libarchive says went wrong with this archive.
    var message: String {
        archive_error_string(self).map { String(cString: $0) } ?? "libarchive does not say why"
    }
}
