/// An extended attribute as an inode's body or an attribute block has it.
struct ExtAttributeEntry: Hashable {
    enum Value: Hashable {
        case here([UInt8])
        /// The content of an inode (`ea_inode`).
        case inode(UInt32, count: Int)
    }

    /// Which namespace: e_name_index.
    let space: UInt8
    let name: [UInt8]
    let value: Value

    static let magic: UInt32 = 0xEA02_0000
    static let inlineDataSpace: UInt8 = 7
    static let inlineDataName = Array("data".utf8)
    private static let headerSize = 16

    /// The entries that begin at `start`; values count from `base`. Stops where it cannot go on.
    /// - Returns: what could be read, and whether that was all.
    static func all(in bytes: [UInt8], from start: Int, valuesFrom base: Int) -> ([ExtAttributeEntry], Bool) {
        var entries: [ExtAttributeEntry] = []
        var offset = start
        while true {
            guard offset + 4 <= bytes.count else { return (entries, false) }
            if bytes.little32(offset) == 0 { return (entries, true) }
            let nameEnd = offset + headerSize + Int(bytes[offset])
            guard nameEnd <= bytes.count else { return (entries, false) }
            let valueOffset = base + Int(bytes.little16(offset + 2))
            let inode = bytes.little32(offset + 4)
            let count = Int(bytes.little32(offset + 8))
            guard count <= TocLimits.attributeBytes else { return (entries, false) }
            let value: Value
            if inode != 0 {
                value = .inode(inode, count: count)
            } else {
                guard count == 0 || valueOffset + count <= bytes.count else { return (entries, false) }
                value = .here(count == 0 ? [] : Array(bytes[valueOffset..<valueOffset + count]))
            }
            entries.append(
                ExtAttributeEntry(
                    space: bytes[offset + 1], name: Array(bytes[offset + headerSize..<nameEnd]), value: value)
            )
            offset = (nameEnd + 3) & ~3
        }
    }

    var isInlineData: Bool { space == Self.inlineDataSpace && name == Self.inlineDataName }

    /// As Linux names it; nil for what it does not show.
    var fullName: [UInt8]? {
        switch space {
        case 1: Array("user.".utf8) + name
        case 2: Array("system.posix_acl_access".utf8)
        case 3: Array("system.posix_acl_default".utf8)
        case 4: Array("trusted.".utf8) + name
        case 6: Array("security.".utf8) + name
        case 10: Array("gnu.".utf8) + name
        default: nil
        }
    }

    var isAccessControlList: Bool { space == 2 || space == 3 }

    /// The access control list as setxattr(2) takes it (version 2, 8 bytes an entry), of ext's own form (version 1,
    /// without the identifier where a tag has none); nil when it is not one.
    static func accessControlList(_ bytes: [UInt8]) -> [UInt8]? {
        guard bytes.count >= 4, bytes.little32(0) == 1 else { return nil }
        var result: [UInt8] = [2, 0, 0, 0]
        var offset = 4
        while offset < bytes.count {
            guard offset + 4 <= bytes.count else { return nil }
            result += bytes[offset..<offset + 4]
            switch bytes.little16(offset) {
            case 0x02, 0x08:  // A named user, a named group.
                guard offset + 8 <= bytes.count else { return nil }
                result += bytes[offset + 4..<offset + 8]
                offset += 8
            case 0x01, 0x04, 0x10, 0x20:  // Owner, owning group, mask, others.
                result += [0xFF, 0xFF, 0xFF, 0xFF]
                offset += 4
            default: return nil
            }
        }
        return result
    }
}

extension ExtReader {
    /// The first bytes of a file, at most as many as it has; holes are zeros.
    func content(of inode: ExtInode, count: Int) throws(TocError) -> [UInt8] {
        var result = [UInt8](repeating: 0, count: count)
        let size = superblock.blockSize
        try forEachRun(of: inode, limit: UInt64((count + size - 1) / size)) { (run) throws(TocError) in
            guard !run.isUnwritten else { return }
            let start = Int(run.logical) * size
            let part = min(count - start, Int(run.count) * size)
            guard part > 0 else { return }
            result.replaceSubrange(
                start..<start + part, with: try bytes(at: run.physical * UInt64(size), count: part))
        }
        return result
    }

    /// All attributes of an inode, inline data among them.
    /// - Parameter damaged: called when some could not be read.
    func attributes(
        of inode: ExtInode, damaged: (String) throws(TocError) -> Void
    ) throws(TocError) -> [ExtAttributeEntry] {
        var entries: [ExtAttributeEntry] = []
        let body = inode.body
        if body.count >= 4, body.little32(0) == ExtAttributeEntry.magic {
            let (found, isWhole) = ExtAttributeEntry.all(in: body, from: 4, valuesFrom: 4)
            entries = found
            if !isWhole { try damaged("the extended attributes in the inode are damaged") }
        }
        if inode.attributeBlock != 0 {
            do throws(TocError) {
                let block = try block(inode.attributeBlock)
                guard block.little32(0) == ExtAttributeEntry.magic else {
                    throw .damaged("the block of extended attributes is damaged")
                }
                let (found, isWhole) = ExtAttributeEntry.all(in: block, from: 32, valuesFrom: 0)
                entries += found
                if !isWhole { throw .damaged("the block of extended attributes is damaged") }
            } catch {
                guard error.isDamage else { throw error }
                try damaged(error.description)
            }
        }
        return entries
    }

    func value(of entry: ExtAttributeEntry) throws(TocError) -> [UInt8] {
        switch entry.value {
        case .here(let bytes): return bytes
        case .inode(let number, let count):
            let inode = try inode(UInt64(number))
            guard inode.has(ExtInode.Flag.attributeValue), inode.byteCount == UInt64(count) else {
                throw .damaged("an extended attribute's inode is damaged")
            }
            return try content(of: inode, count: count)
        }
    }
}
