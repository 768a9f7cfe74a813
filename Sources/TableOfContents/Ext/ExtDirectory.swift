/// Entries of a directory: linear blocks, and indexed ones, whose index looks like entries that are not in use.
enum ExtDirectory {
    private static let headerSize = 8

    /// Hands on the names in one block, or in a part of inline data, without `.` and `..`.
    /// - Returns: false when not all could be read.
    static func forEachName(
        in bytes: [UInt8], hasTypes: Bool, inodeCount: UInt32,
        _ body: (UInt32, [UInt8]) throws(TocError) -> Void
    ) throws(TocError) -> Bool {
        var offset = 0
        var isWhole = true
        while offset + headerSize <= bytes.count {
            let inode = bytes.little32(offset)
            var length = Int(bytes.little16(offset + 4))
            if bytes.count >= 65_536 {
                // A length of 65,536 and more does not fit 16 bits.
                length = length == 65_535 || length == 0 ? bytes.count : length & 65_532 | (length & 3) << 16
            }
            let nameCount = hasTypes ? Int(bytes[offset + 6]) : Int(bytes.little16(offset + 6))
            guard length >= headerSize, length & 3 == 0, length <= bytes.count - offset else { return false }
            if inode != 0 {
                if nameCount == 0 || nameCount > 255 || headerSize + nameCount > length || inode > inodeCount
                {
                    isWhole = false
                } else {
                    let name = Array(bytes[offset + headerSize..<offset + headerSize + nameCount])
                    if name.contains(0) {
                        isWhole = false
                    } else if name != [0x2E], name != [0x2E, 0x2E] {
                        try body(inode, name)
                    }
                }
            }
            offset += length
        }
        return isWhole
    }
}

extension ExtReader {
    private var hasTypes: Bool { superblock.has(incompatible: 0x2) }

    /// Hands on the names of a directory.
    func names(of directory: ExtInode, into sink: any RecordSink) throws(TocError) {
        let parent = directory.number
        let put = { (inode: UInt32, name: [UInt8]) throws(TocError) in
            try sink.put(.name(FileName(parent: parent, name: name, node: UInt64(inode))))
        }
        var isWhole = true
        let size = UInt64(superblock.blockSize)
        let limit = directory.byteCountOfDirectory(superblock) / size
        try forEachRun(of: directory, limit: limit) { (run) throws(TocError) in
            for block in run.physical..<run.physical + run.count {
                let bytes = try mapBlock(block)
                let isRead = try ExtDirectory.forEachName(
                    in: bytes, hasTypes: hasTypes, inodeCount: superblock.inodeCount, put)
                isWhole = isWhole && isRead
            }
        }
        if !isWhole { throw .damaged("some entries of the directory are damaged") }
    }

    /// The same of one whose entries lie in its inode.
    func inlineNames(
        of directory: ExtInode, _ data: [UInt8], into sink: any RecordSink
    ) throws(TocError) {
        // The parent's number, then entries up to the block field's end, then entries of their own.
        guard data.count >= ExtInode.blockFieldBytes else {
            throw .damaged("the inline directory is damaged")
        }
        let parent = directory.number
        let put = { (inode: UInt32, name: [UInt8]) throws(TocError) in
            try sink.put(.name(FileName(parent: parent, name: name, node: UInt64(inode))))
        }
        var isWhole = true
        for part in [4..<ExtInode.blockFieldBytes, ExtInode.blockFieldBytes..<data.count] where !part.isEmpty
        {
            let isRead = try ExtDirectory.forEachName(
                in: Array(data[part]), hasTypes: hasTypes, inodeCount: superblock.inodeCount, put)
            isWhole = isWhole && isRead
        }
        if !isWhole { throw .damaged("some entries of the directory are damaged") }
    }
}

extension ExtInode {
    /// A directory's size has 32 bits unless `large_dir` says otherwise.
    func byteCountOfDirectory(_ superblock: ExtSuperblock) -> UInt64 {
        superblock.has(incompatible: 0x4000) ? byteCount : byteCount & 0xFFFF_FFFF
    }
}
