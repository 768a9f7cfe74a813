import Blocks

/// Reads directories of all forms by their entries alone: hash trees and free-space indexes, which lie beyond 32 GiB
/// in the data fork, are for look-ups.
final class XFSDirectoryReader {
    typealias Entry = (UnsafeRawBufferPointer, UInt64) throws(TocError) -> Void
    typealias Damage = (TocError) throws(TocError) -> Void

    private enum Magic {
        static let block2: UInt32 = 0x5844_3242
        static let data2: UInt32 = 0x5844_3244
        static let block3: UInt32 = 0x5844_4233
        static let data3: UInt32 = 0x5844_4433
    }

    /// Bytes of a data fork before the leaves.
    private static let leaves: UInt64 = 1 << 35

    private let geometry: XFSGeometry
    private let disk: XFSDisk
    private let forks: XFSForkReader
    private let budget: XFSBudget
    private let buffer: XFSBuffer

    init(_ geometry: XFSGeometry, _ disk: XFSDisk, _ forks: XFSForkReader, _ budget: XFSBudget) {
        self.geometry = geometry
        self.disk = disk
        self.forks = forks
        self.budget = budget
        buffer = XFSBuffer(count: geometry.directoryBlockSize)
    }

    /// Hands on each entry but `.` and `..`, damaged blocks to `damage`.
    func entries(_ inode: XFSInode, damage: Damage, _ entry: Entry) throws(TocError) {
        if try inode.format(.data) == .local { return try shortForm(inode, entry) }
        let blocksEach = UInt64(geometry.directoryBlockSize / geometry.blockSize)
        // Directory blocks may be put together of several extents.
        var current = UInt64.max
        var filled: UInt64 = 0
        var address: UInt64 = 0
        var isSealed = true
        try forks.extents(inode, .data) { (extent) throws(TocError) in
            var done: UInt64 = 0
            while done < extent.count {
                let at = extent.start + done
                guard at << geometry.blockLog < Self.leaves else { return }
                let (number, inside) = at.quotientAndRemainder(dividingBy: blocksEach)
                if number != current {
                    if filled != 0 { try damage(TocError(.damaged, "a directory block has a hole")) }
                    current = number
                    filled = 0
                    address = extent.offset + done << geometry.blockLog
                    isSealed = true
                }
                guard inside == filled, !extent.isUnwritten else {
                    throw TocError(.damaged, "a directory block has a hole")
                }
                let count = min(blocksEach - inside, extent.count - done)
                try budget.take(count)
                if disk.unsealed.contains(extent.offset + done << geometry.blockLog) { isSealed = false }
                let start = Int(inside) << Int(geometry.blockLog)
                try disk.read(
                    extent.offset + done << geometry.blockLog,
                    UnsafeMutableRawBufferPointer(
                        rebasing: buffer.memory[start..<start + Int(count) << Int(geometry.blockLog)]))
                done += count
                filled += count
                if filled == blocksEach {
                    filled = 0
                    current = .max
                    do throws(TocError) {
                        try block(
                            inode, isFirst: number == 0, isSealed: isSealed, address: address, entry)
                    } catch {
                        try damage(error)
                    }
                }
            }
        }
        if filled != 0 { try damage(TocError(.damaged, "a directory block has a hole")) }
    }

    private func shortForm(_ inode: XFSInode, _ entry: Entry) throws(TocError) {
        guard let fork = inode.fork(.data), inode.size <= UInt64(fork.count),
            let view = fork.slice(0, Int(inode.size)), view.count >= 6
        else { throw TocError(.damaged, "the directory is longer than its inode") }
        let isWide = view.u8(1) != 0
        var position = isWide ? 10 : 6
        for _ in 0..<view.u8(0) {
            guard position + 3 <= view.count else { throw Self.short }
            let length = Int(view.u8(position))
            let numberAt = position + 3 + length + (geometry.hasFileTypes ? 1 : 0)
            let end = numberAt + (isWide ? 8 : 4)
            guard length > 0, end <= view.count, let name = view.slice(position + 3, length) else {
                throw Self.short
            }
            try entry(name.bytes, isWide ? view.u64(numberAt) : UInt64(view.u32(numberAt)))
            position = end
        }
    }

    private static let short = TocError(.damaged, "an entry passes the directory's end")

    private func block(
        _ inode: XFSInode, isFirst: Bool, isSealed: Bool, address: UInt64, _ entry: Entry
    ) throws(TocError) {
        let view = buffer.view
        let magic = view.u32(0)
        let isWhole = magic == (geometry.isVersion5 ? Magic.block3 : Magic.block2)
        guard isWhole && isFirst || magic == (geometry.isVersion5 ? Magic.data3 : Magic.data2) else {
            throw TocError(.damaged, "a directory block is something else")
        }
        if geometry.isVersion5 {
            guard !isSealed || view.hasChecksum(at: 4) else {
                throw TocError(.damaged, "a directory block's checksum does not fit")
            }
            guard view.u64(40) == inode.number, view.u64(8) == address >> 9,
                view.equals(geometry.metaUUID, at: 24)
            else { throw TocError(.damaged, "a directory block belongs elsewhere") }
        }
        var end = view.count
        if isWhole {
            // Behind the entries: the leaf's, and two counts.
            let leaves = Int(view.u32(view.count - 8))
            guard leaves <= (view.count - 8) / 8 else {
                throw TocError(.damaged, "a directory block has more leaves than bytes")
            }
            end -= 8 + leaves * 8
        }
        try dataEntries(view, from: geometry.isVersion5 ? 64 : 16, to: end, entry)
    }

    private func dataEntries(
        _ view: XFSView, from start: Int, to end: Int, _ entry: Entry
    ) throws(TocError) {
        var position = start
        while position < end {
            guard end - position >= 8 else { throw Self.short }
            if view.u16(position) == 0xFFFF {
                let length = view.int16(position + 2)
                guard length >= 8, length % 8 == 0, length <= end - position else { throw Self.short }
                position += length
                continue
            }
            guard end - position >= 16 else { throw Self.short }
            let nameLength = Int(view.u8(position + 8))
            let length = (8 + 1 + nameLength + (geometry.hasFileTypes ? 1 : 0) + 2 + 7) & ~7
            guard nameLength > 0, length <= end - position, let name = view.slice(position + 9, nameLength),
                view.int16(position + length - 2) == position
            else { throw Self.short }
            let isSelf = name.u8(0) == 0x2E && (nameLength == 1 || nameLength == 2 && name.u8(1) == 0x2E)
            if !isSelf { try entry(name.bytes, view.u64(position)) }
            position += length
        }
    }
}
