import Blocks
import CLibTSK

/// What libtsk's structures say, as records.
struct TskNode {
    let kind: FileSystemKind
    let range: ByteRange
    /// Bytes of what libtsk addresses.
    let blockSize: UInt64

    func node(_ meta: UnsafeMutablePointer<TSK_FS_META>) -> FileNode {
        let meta = meta.pointee
        var node = FileNode(address: meta.addr, kind: Self.kind(meta.type))
        node.links = UInt32(clamping: meta.nlink)
        node.size = UInt64(clamping: meta.size)
        node.modified = time(meta.mtime, meta.mtime_nano)
        node.accessed = time(meta.atime, meta.atime_nano)
        node.changed = time(meta.ctime, meta.ctime_nano)
        node.created = time(meta.crtime, meta.crtime_nano)
        if node.kind == .symbolicLink, let link = meta.link {
            node.target = bytes(of: link, atMost: TocLimits.targetBytes)
        }
        return node
    }

    private func time(_ seconds: time_t, _ nanoseconds: UInt32) -> FileTime? {
        // libtsk's zero is a time that is not there; nobody's file is of that very second.
        if seconds == 0 && nanoseconds == 0 { return nil }
        return FileTime(seconds: Int64(seconds), nanoseconds: nanoseconds < 1_000_000_000 ? nanoseconds : 0)
    }

    static func kind(_ type: TSK_FS_META_TYPE_ENUM) -> FileNode.Kind {
        switch type {
        case TSK_FS_META_TYPE_REG: .regular
        case TSK_FS_META_TYPE_DIR: .directory
        case TSK_FS_META_TYPE_FIFO: .fifo
        case TSK_FS_META_TYPE_CHR: .characterDevice
        case TSK_FS_META_TYPE_BLK: .blockDevice
        case TSK_FS_META_TYPE_LNK: .symbolicLink
        case TSK_FS_META_TYPE_SOCK: .socket
        default: .other
        }
    }

    /// Whether libtsk made it up: a file that stands for an area of the disk, or the directory of orphans.
    static func isVirtual(_ type: TSK_FS_NAME_TYPE_ENUM) -> Bool {
        type == TSK_FS_NAME_TYPE_VIRT || type == TSK_FS_NAME_TYPE_VIRT_DIR
    }

    static func isVirtual(_ type: TSK_FS_META_TYPE_ENUM) -> Bool {
        type == TSK_FS_META_TYPE_VIRT || type == TSK_FS_META_TYPE_VIRT_DIR
    }

    /// A stream and where its bytes lie.
    func stream(
        _ identifier: StreamIdentifier, name: [UInt8] = [], _ attribute: UnsafePointer<TSK_FS_ATTR>
    ) -> (stream: FileStream, extents: [FileExtent]) {
        let size = UInt64(clamping: attribute.pointee.size)
        func told(_ storage: FileStream.Storage, _ extents: [FileExtent] = []) -> (FileStream, [FileExtent]) {
            (FileStream(identifier, name: name, size: size, storage: storage), extents)
        }
        if attribute.has(TSK_FS_ATTR_ENC) { return told(.unavailable("encrypted")) }
        if attribute.has(TSK_FS_ATTR_COMP) { return told(.unavailable("compressed")) }
        if attribute.has(TSK_FS_ATTR_RES) {
            guard let content = attribute.resident else {
                return told(.unavailable("its resident data are damaged"))
            }
            guard content.count <= TocLimits.inlineBytes else {
                return told(.unavailable("too much resident data"))
            }
            return told(.inline([UInt8](content)))
        }
        do throws(TocError) {
            return told(.extents, try extents(attribute, size: size))
        } catch { return told(.unavailable(error.description)) }
    }

    /// The runs of a non-resident attribute, as far as they hold data that were written.
    private func extents(
        _ attribute: UnsafePointer<TSK_FS_ATTR>, size: UInt64
    ) throws(TocError) -> [FileExtent] {
        // Behind the valid data length there is what was on the disk before.
        let valid = min(UInt64(clamping: attribute.pointee.nrd.initsize), size)
        let skip = UInt64(attribute.pointee.nrd.skiplen)
        guard skip == 0 else { throw TocError(.damaged, "its content begins within a compression unit") }
        var end = valid
        if valid == size {
            let (rounded, overflow) = size.addingReportingOverflow(blockSize - 1)
            end = overflow ? size : rounded / blockSize * blockSize
        }
        var extents: [FileExtent] = []
        var covered: UInt64 = 0
        var next = attribute.pointee.nrd.run
        while let run = next?.pointee {
            next = run.next
            let offset = run.offset.multipliedReportingOverflow(by: blockSize)
            let address = run.addr.multipliedReportingOverflow(by: blockSize)
            let length = run.len.multipliedReportingOverflow(by: blockSize)
            guard !offset.overflow, !length.overflow, offset.partialValue == covered,
                !covered.addingReportingOverflow(length.partialValue).overflow
            else { throw TocError(.damaged, "its runs do not follow one another") }
            covered += length.partialValue
            let isHole = run.flags.rawValue & TSK_FS_ATTR_RUN_FLAG_SPARSE.rawValue != 0
            if offset.partialValue >= end { continue }
            if run.flags.rawValue & TSK_FS_ATTR_RUN_FLAG_FILLER.rawValue != 0 {
                throw TocError(.damaged, "some of its runs are missing")
            }
            if isHole { continue }
            let count = min(length.partialValue, end - offset.partialValue)
            guard !address.overflow,
                let place = ByteRange(checking: address.partialValue, count, within: range.count)
            else { throw TocError(.damaged, "a run lies beyond the file system's end") }
            if count == 0 { continue }
            if let last = extents.last, last.volumeOffset + last.count == range.offset + place.offset,
                last.fileOffset + last.count == offset.partialValue
            {
                extents[extents.count - 1].count += count
            } else {
                extents.append(
                    FileExtent(
                        fileOffset: offset.partialValue, volumeOffset: range.offset + place.offset,
                        count: count))
            }
            if extents.count > TocLimits.extentsPerStream {
                throw TocError(.damaged, "it has too many extents")
            }
        }
        guard covered >= valid else { throw TocError(.damaged, "its runs end before its size") }
        return extents
    }
}
