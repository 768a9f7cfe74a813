/// Inodes as the log has them: the core in the byte order of the machine that wrote the log, forks as on disk but for
/// roots of extent trees.
enum XFSLogCore {
    static let magic: UInt16 = 0x494E
    /// Where inodes before version 3 count how often they were written, and the count after which it begins anew.
    private static let flushesAt = 30
    private static let mostFlushes: UInt16 = .max

    private enum Flags2 {
        static let bigTime: UInt64 = 1 << 3
        static let largeExtentCounts: UInt64 = 1 << 4
    }

    /// Bytes that a logged core has.
    static func bytes(_ geometry: XFSGeometry) -> Int { geometry.isVersion5 ? 176 : 96 }

    /// Whether what is logged was written to its place already, before version 5.
    static func isOlder(_ core: XFSLogRegion, than disk: XFSView) -> Bool {
        let logged = core.u16(flushesAt)
        let written = disk.u16(flushesAt)
        return logged < written && !(written == mostFlushes && logged < mostFlushes / 2)
    }

    /// An inode as it is when its chunk has just been made.
    static func makeFree(
        _ inode: UnsafeMutableRawBufferPointer, number: UInt64, generation: UInt32, _ geometry: XFSGeometry
    ) {
        inode.initializeMemory(as: UInt8.self, repeating: 0)
        put(inode, 0, magic)
        inode[4] = geometry.isVersion5 ? 3 : 2
        put(inode, 92, generation)
        put(inode, 96, UInt32.max)
        guard geometry.isVersion5 else { return }
        put(inode, 152, number)
        inode[160..<176].copyBytes(from: geometry.metaUUID)
        seal(inode)
    }

    static func replay(
        _ item: XFSLogInode, into inode: UnsafeMutableRawBufferPointer, sequence: UInt64,
        _ geometry: XFSGeometry
    ) throws(TocError) {
        let core = item.core
        copy(core, to: inode)
        if geometry.isVersion5 {
            put(inode, 112, sequence)
            inode[160..<176].copyBytes(from: core.view.bytes[160..<176])
        }
        let literal = geometry.inodeCore
        let forkOffset = Int(inode[82]) * 8
        guard forkOffset <= inode.count - literal else {
            throw TocError(.damaged, "an inode's attributes begin beyond it")
        }
        let cut = forkOffset == 0 ? inode.count : literal + forkOffset
        let data = UnsafeMutableRawBufferPointer(rebasing: inode[literal..<cut])
        if item.fields & XFSLogInode.Fields.device != 0, data.count >= 4 { put(data, 0, item.device) }
        if let fork = item.dataFork {
            try replay(fork, into: data, isRoot: item.fields & XFSLogInode.Fields.dataRoot != 0, geometry)
        }
        if let fork = item.attributesFork {
            try replay(
                fork, into: UnsafeMutableRawBufferPointer(rebasing: inode[cut...]),
                isRoot: item.fields & XFSLogInode.Fields.attributesRoot != 0, geometry)
        }
        if geometry.isVersion5 { seal(inode) }
    }

    /// Field by field; where they lie is the same.
    private static func copy(_ core: XFSLogRegion, to inode: UnsafeMutableRawBufferPointer) {
        let isVersion3 = core.view.u8(4) >= 3 && core.count >= 176
        let flags2 = isVersion3 ? core.u64(120) : 0
        func halves(_ places: Int...) { for place in places { put(inode, place, core.u16(place)) } }
        func words(_ places: Int...) { for place in places { put(inode, place, core.u32(place)) } }
        func longs(_ places: Int...) { for place in places { put(inode, place, core.u64(place)) } }
        func times(_ places: Int...) {
            for place in places {
                if flags2 & Flags2.bigTime != 0 {
                    put(inode, place, core.u64(place))
                } else {
                    put(inode, place, core.u32(place))
                    put(inode, place + 4, core.u32(place + 4))
                }
            }
        }
        halves(0, 2)
        inode[4] = core.view.u8(4)
        inode[5] = core.view.u8(5)
        put(inode, 6, UInt16(0))
        words(8, 12, 16)
        halves(20, 22)
        times(32, 40, 48)
        longs(56, 64)
        words(72, 76)
        halves(80)
        inode[82] = core.view.u8(82)
        inode[83] = core.view.u8(83)
        words(84)
        halves(88, 90)
        words(92)
        if isVersion3 {
            // Of large extent counters the first is here; else this is zero.
            put(inode, 24, flags2 & Flags2.largeExtentCounts != 0 ? core.u64(24) : 0)
            longs(104, 120)
            words(128)
            inode[132..<144].copyBytes(from: repeatElement(0, count: 12))
            times(144)
            longs(152)
        } else {
            put(inode, 24, UInt64(0))
        }
    }

    private static func replay(
        _ logged: XFSLogRegion, into fork: UnsafeMutableRawBufferPointer, isRoot: Bool,
        _ geometry: XFSGeometry
    ) throws(TocError) {
        guard isRoot else {
            // Regions are filled up to a multiple of four bytes.
            guard logged.count <= fork.count + 3 else {
                throw TocError(.damaged, "an inode's fork has no room in it")
            }
            let count = min(logged.count, fork.count)
            UnsafeMutableRawBufferPointer(rebasing: fork[..<count])
                .copyMemory(from: .init(rebasing: logged.view.bytes[..<count]))
            return
        }
        // In memory a root has the header of a whole block, and as many keys and pointers as were made room for.
        let header = XFSTreeKind.extents.header(geometry)
        guard logged.count >= header, fork.count >= 4 else {
            throw TocError(.damaged, "the root of an extent tree is too short")
        }
        let view = logged.view
        let count = view.int16(6)
        let room = (logged.count - header) / 16
        let target = (fork.count - 4) / 16
        guard count <= room, count <= target else {
            throw TocError(.damaged, "the root of an extent tree has no room in its inode")
        }
        put(fork, 0, view.u16(4))
        put(fork, 2, view.u16(6))
        for index in 0..<count {
            put(fork, 4 + index * 8, view.u64(header + index * 8))
            put(fork, 4 + (target + index) * 8, view.u64(header + (room + index) * 8))
        }
    }

    private static func put<T: FixedWidthInteger>(
        _ memory: UnsafeMutableRawBufferPointer, _ offset: Int, _ value: T
    ) {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= memory.count)
        memory.storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
    }

    private static func seal(_ inode: UnsafeMutableRawBufferPointer) {
        let sum = XFSView(UnsafeRawBufferPointer(inode)).checksum(at: XFSInode.checksumOffset)
        inode.storeBytes(of: sum.littleEndian, toByteOffset: XFSInode.checksumOffset, as: UInt32.self)
    }
}
