import Blocks
import CLibTSK

/// A file system that libtsk has opened on a range of a store.
///
/// libtsk keeps its errors per thread, and its structures are used by one thread at a time here.
final class TskFileSystem {
    let image: TskImage
    let info: UnsafeMutablePointer<TSK_FS_INFO>

    /// - Parameter type: what the superblock says it is; libtsk never guesses.
    /// - Throws: ``TocError`` `damaged` when libtsk cannot open it as that.
    init(_ store: any BlockStore, _ range: ByteRange, _ type: TSK_FS_TYPE_ENUM) throws(TocError) {
        image = try TskImage(store, range)
        let opened = tsk_fs_open_img(image.info, 0, type)
        do throws(TocError) { try image.check() } catch {
            if let opened { tsk_fs_close(opened) }
            throw error
        }
        guard let opened else { throw TocError(.damaged, Self.lastError()) }
        info = opened
        // It is closed by `deinit`, which runs since all is set.
        guard info.pointee.block_size > 0 else { throw TocError(.damaged, "its block size is 0") }
    }

    deinit { tsk_fs_close(info) }

    /// Bytes of what libtsk addresses: a cluster, on FAT a sector.
    var blockSize: UInt64 { UInt64(info.pointee.block_size) }

    /// What libtsk said last on this thread, for people.
    static func lastError() -> String {
        guard let text = tsk_error_get() else { return "libtsk gives no reason" }
        defer { tsk_error_reset() }
        return String(cString: text)
    }

    /// `count` bytes of an attribute's content from `offset`, as far as there are; nil when libtsk cannot.
    func content(
        _ attribute: UnsafePointer<TSK_FS_ATTR>, _ offset: UInt64, _ count: Int
    ) throws(TocError) -> [UInt8]? {
        guard count > 0, let start = TSK_OFF_T(exactly: offset) else { return [] }
        var got = -1
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            buffer.initialize(repeating: 0)
            buffer.withMemoryRebound(to: CChar.self) {
                got = tsk_fs_attr_read(attribute, start, $0.baseAddress, count, TSK_FS_FILE_READ_FLAG_NONE)
            }
            filled = max(0, min(got, count))
        }
        try image.check()
        return got < 0 ? nil : bytes
    }
}

/// A file of libtsk's, reused for one node after another.
final class TskFile {
    let pointer: UnsafeMutablePointer<TSK_FS_FILE>
    private let system: TskFileSystem

    /// - Parameter address: the first node to open; the root's always works or nothing does.
    init?(_ system: TskFileSystem, _ address: UInt64) throws(TocError) {
        let opened = tsk_fs_file_open_meta(system.info, nil, address)
        try system.image.check()
        guard let opened else { return nil }
        pointer = opened
        self.system = system
    }

    deinit { tsk_fs_file_close(pointer) }

    /// The node at `address`; nil when libtsk finds none there that could be read.
    func open(_ address: UInt64) throws(TocError) -> UnsafeMutablePointer<TSK_FS_META>? {
        let opened = tsk_fs_file_open_meta(system.info, pointer, address)
        try system.image.check()
        guard opened != nil, let meta = pointer.pointee.meta else { return nil }
        return meta
    }

    /// Its attributes as libtsk has them loaded, in their order; nil when it cannot. They live until the next node is
    /// opened, or the file goes.
    func attributes() throws(TocError) -> [UnsafePointer<TSK_FS_ATTR>]? {
        guard let meta = pointer.pointee.meta else { return nil }
        if meta.pointee.attr_state != TSK_FS_META_ATTR_STUDIED {
            guard system.info.pointee.load_attrs?(pointer) == 0 else {
                try system.image.check()
                return nil
            }
            try system.image.check()
        }
        var found: [UnsafePointer<TSK_FS_ATTR>] = []
        var next = meta.pointee.attr?.pointee.head
        while let attribute = next, found.count < TocLimits.attributesPerNode {
            if attribute.pointee.flags.rawValue & TSK_FS_ATTR_INUSE.rawValue != 0 {
                found.append(UnsafePointer(attribute))
            }
            next = attribute.pointee.next
        }
        return found
    }
}

extension UnsafePointer<TSK_FS_ATTR> {
    func has(_ flag: TSK_FS_ATTR_FLAG_ENUM) -> Bool { pointee.flags.rawValue & flag.rawValue != 0 }

    var name: [UInt8] {
        guard let name = pointee.name else { return [] }
        return bytes(of: name, atMost: TocLimits.nameBytes)
    }

    /// Of a resident one.
    var resident: UnsafeRawBufferPointer? {
        guard has(TSK_FS_ATTR_RES), let buffer = pointee.rd.buf, pointee.size >= 0,
            UInt64(pointee.size) <= UInt64(pointee.rd.buf_size)
        else {
            return pointee.size == 0 && has(TSK_FS_ATTR_RES)
                ? UnsafeRawBufferPointer(start: nil, count: 0) : nil
        }
        return UnsafeRawBufferPointer(start: buffer, count: Int(pointee.size))
    }
}

/// A C string's bytes, as many as are allowed.
func bytes(of string: UnsafePointer<CChar>, atMost limit: Int) -> [UInt8] {
    var count = 0
    while count < limit, string[count] != 0 { count += 1 }
    return [UInt8](UnsafeRawBufferPointer(start: string, count: count))
}
