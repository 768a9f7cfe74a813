import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// Logs written by hand over a file system that mkfs.xfs has just made; nothing is mounted.
@Suite(.enabled(if: XFSTools.arePossible, "needs mkfs.xfs"))
struct XFSLogWriterTests {
    private let scratch: ScratchDirectory
    private let store: PatchedFile
    private let geometry: XFSGeometry
    private var writer: XFSLogWriter
    /// Sector of a block that nobody uses.
    private let free: UInt64 = 80_000
    private let ones = [UInt8](repeating: 1, count: 128)
    private let twos = [UInt8](repeating: 2, count: 256)

    init() throws {
        scratch = try ScratchDirectory()
        try shell(
            "truncate -s 300M \(scratch("image")); "
                + "mkfs.xfs -q --unsupported -l size=10m -m bigtime=1 \(scratch("image"))")
        store = try PatchedFile(scratch("image"))
        let sector = XFSBuffer(count: 512)
        try XFSDisk(store, ByteRange(offset: 0, count: store.size)).read(0, sector.memory)
        geometry = try #require(XFSGeometry(sector.view))
        writer = try XFSLogWriter(store, geometry)
    }

    private func state() throws -> XFSLog.State {
        try XFSLog(geometry, XFSDisk(store, ByteRange(offset: 0, count: store.size))).state()
    }

    private func replayed() throws -> (overlay: XFSOverlay, unfinished: [UInt64]) {
        guard case .replayed(let overlay, let unfinished) = try state() else {
            throw ImageFailure("not replayed: \(try state())")
        }
        return (overlay, unfinished)
    }

    private func expectPending(_ reason: String) throws {
        guard case .pending(let its) = try state() else { throw ImageFailure("not pending: \(try state())") }
        #expect(its.contains(reason), "\(its)")
    }

    private func block(_ store: any BlockStore) throws -> [UInt8] {
        try store.bytes(at: free << 9, count: 4096)
    }

    private func pieces(_ changes: (Int, [UInt8])...) -> [UInt8] {
        var block = [UInt8](repeating: 0, count: 4096)
        for (piece, bytes) in changes {
            block.replaceSubrange(piece * 128..<piece * 128 + bytes.count, with: bytes)
        }
        return block
    }

    @Test func buffers() throws {
        var writer = writer
        // A run of two pieces in one region, and one of three in two.
        try writer.commit(
            XFSLogWriter.buffer(free, [(1, ones), (3, twos), (8, ones)]),
            XFSLogWriter.buffer(free + 8, [(31, ones)]))
        var split = XFSLogWriter.buffer(free, [(16, twos), (18, ones)])
        split[0] = XFSLogWriter.buffer(free, [(16, twos + ones)])[0]
        split[0].replaceSubrange(2..<4, with: XFSLogWriter.little(3 as UInt16))
        try writer.commit(split)
        let overlay = try replayed().overlay
        #expect(try block(overlay) == pieces((1, ones), (3, twos), (8, ones), (16, twos), (18, ones)))
        #expect(try overlay.bytes(at: (free + 8) << 9, count: 4096) == pieces((31, ones)))
        // Reads of any part, across the edges of what was changed.
        let whole = try overlay.bytes(at: (free - 8) << 9, count: 12_288)
        for (offset, count) in [(0, 5000), (4095, 130), (4200, 100), (8100, 4188), (12_000, 288)] {
            #expect(
                try overlay.bytes(at: (free - 8) << 9 + UInt64(offset), count: count)
                    == Array(whole[offset..<offset + count]))
        }
        #expect(try block(store) == pieces())
    }

    /// Regions, and the transaction's header, that go on in the next record; transactions among each other.
    @Test func continued() throws {
        var writer = writer
        let items = XFSLogWriter.buffer(free, [(0, twos), (5, ones)])
        typealias Operation = XFSLogWriter.Operation
        func part(_ bytes: ArraySlice<UInt8>, _ flags: UInt8, _ transaction: UInt32 = 1) -> Operation {
            Operation(transaction: transaction, flags: flags, data: Array(bytes))
        }
        let other = XFSLogWriter.transaction(2, [XFSLogWriter.buffer(free, [(0, twos.map { $0 + 7 })])])
        try writer.record([.start(1), part(XFSLogWriter.header[..<4], 4)])
        try writer.record(
            [part(XFSLogWriter.header[4...], 0x18), part(items[0][...], 0)] + other.dropLast(2))
        try writer.record([part(items[1][..<100], 4)] + other.suffix(2))
        try writer.record([part(items[1][100..<200], 0x0C)])
        try writer.record([part(items[1][200...], 0x18), part(items[2][...], 0), .commit(1)])
        #expect(try block(replayed().overlay) == pieces((0, twos), (5, ones)))
    }

    /// What was begun before the tail, or not committed, is left out.
    @Test func incomplete() throws {
        var writer = writer
        let changes = XFSLogWriter.transaction(1, [XFSLogWriter.buffer(free, [(0, ones)])])
        try writer.record(Array(changes.dropFirst()))
        try writer.record(Array(changes.dropLast()))
        try writer.commit(XFSLogWriter.buffer(free, [(1, ones)]))
        #expect(try block(replayed().overlay) == pieces((1, ones)))
    }

    @Test func cancelled() throws {
        var writer = writer
        let all = [(0, ones), (4, ones)]
        try writer.commit(XFSLogWriter.buffer(free, all))
        try writer.commit(XFSLogWriter.cancellation(free))
        try writer.commit(XFSLogWriter.buffer(free, [(1, ones)]))
        #expect(try block(replayed().overlay) == pieces((1, ones)))
        try writer.commit(XFSLogWriter.cancellation(free))
        #expect(try block(replayed().overlay) == pieces())
        // In one transaction the cancellation comes last, wherever it stands.
        try writer.commit(XFSLogWriter.cancellation(free), XFSLogWriter.buffer(free, all))
        try writer.commit(XFSLogWriter.buffer(free, [(2, ones)]))
        // Another length is another buffer.
        try writer.commit(XFSLogWriter.cancellation(free, sectors: 16))
        #expect(try block(replayed().overlay) == pieces((2, ones)))
    }

    /// Headers of version 5 say how new they are.
    @Test func sequences() throws {
        var writer = writer
        let sector = UInt64(geometry.sectorSize) >> 9
        var header = try store.bytes(at: sector << 9, count: 512)
        let first = writer.tail
        // Flags of the free-space header that nothing looks at, near its end.
        let change = XFSLogWriter.buffer(sector, sectors: 1, [(2, ones)])
        // Two transactions of one record, and so with one number; both apply.
        try writer.record(
            XFSLogWriter.transaction(1, [change])
                + XFSLogWriter.transaction(2, [XFSLogWriter.buffer(sector, sectors: 1, [(3, ones)])]))
        let second = UInt64(writer.cycle) << 32 | writer.position
        try writer.commit(XFSLogWriter.buffer(free, [(0, ones)]))
        func overlaid() throws -> [UInt8] { try replayed().overlay.bytes(at: sector << 9, count: 512) }
        var expected = header
        expected.replaceSubrange(256..<384, with: ones)
        expected.replaceSubrange(384..<512, with: ones)
        expected.replaceSubrange(208..<216, with: XFSLogWriter.big(first))
        expected.replaceSubrange(216..<220, with: [0, 0, 0, 0])
        expected.replaceSubrange(216..<220, with: XFSLogWriter.little(CRC32C.checksum(expected)))
        #expect(try overlaid() == expected)
        // As new as the transaction: it is left alone.
        for newer in [first, second] {
            header.replaceSubrange(208..<216, with: XFSLogWriter.big(newer))
            try store.patch(sector << 9, header)
            #expect(try overlaid() == header)
        }
        header.replaceSubrange(208..<216, with: XFSLogWriter.big(second + 1))
        try store.patch(sector << 9, header)
        try expectPending("newer than the log's end")
        // Of another file system: that says nothing.
        header[64] ^= 1
        try store.patch(sector << 9, header)
        #expect(try overlaid()[384..<512].elementsEqual(ones))
        // The next number passes over what is stamped with this one.
        header[64] ^= 1
        header.replaceSubrange(208..<216, with: XFSLogWriter.big(0 as UInt64))
        try store.patch(sector << 9, header)
        try writer.record(XFSLogWriter.transaction(1, [change]))
        #expect(try overlaid()[208..<216].elementsEqual(XFSLogWriter.big(second + 2)))
    }

    private func inodeItem(
        _ inode: UInt64, _ core: [UInt8], fields: UInt32 = 1, isNarrow: Bool = false,
        in its: XFSGeometry? = nil
    )
        throws
        -> [[UInt8]]
    {
        let offset = try #require((its ?? geometry).offset(ofInode: inode))
        let format =
            XFSLogWriter.little(0x123B as UInt16) + XFSLogWriter.little(2 as UInt16)
            + XFSLogWriter.little(fields) + [0, 0, 0, 0] + (isNarrow ? [] : [0, 0, 0, 0])
            + XFSLogWriter.little(inode) + [UInt8](repeating: 0, count: 16)
            + XFSLogWriter.little(offset / 4096 * 8) + XFSLogWriter.little(32 as UInt32)
            + XFSLogWriter.little(UInt32(offset & 4095))
        return [format, core]
    }

    @Test(arguments: [false, true])
    func inodes(_ isNarrow: Bool) throws {
        var writer = writer
        let root = geometry.rootInode
        let offset = try #require(geometry.offset(ofInode: root))
        let size = geometry.inodeSize
        var disk = try store.bytes(at: offset, count: size)
        var changed = disk
        // Mode and owner; in 64 bits, a time.
        changed.replaceSubrange(2..<4, with: [0x41, 0xC0])
        changed.replaceSubrange(8..<12, with: XFSLogWriter.big(1234 as UInt32))
        changed.replaceSubrange(40..<48, with: XFSLogWriter.big(0x1122_3344_5566_7788 as UInt64))
        let sequence = UInt64(writer.cycle) << 32 | writer.position
        try writer.commit(inodeItem(root, XFSLogWriter.core(changed), isNarrow: isNarrow))
        changed.replaceSubrange(112..<120, with: XFSLogWriter.big(sequence))
        changed.replaceSubrange(100..<104, with: [0, 0, 0, 0])
        changed.replaceSubrange(100..<104, with: XFSLogWriter.little(CRC32C.checksum(changed)))
        #expect(try replayed().overlay.bytes(at: offset, count: size) == changed)
        // As new as the transaction: is replayed; newer: is not.
        try writer.commit(XFSLogWriter.buffer(free, [(0, ones)]))
        disk.replaceSubrange(112..<120, with: XFSLogWriter.big(sequence))
        try store.patch(offset, disk)
        #expect(try replayed().overlay.bytes(at: offset, count: size) == changed)
        disk.replaceSubrange(112..<120, with: XFSLogWriter.big(sequence + 1))
        try store.patch(offset, disk)
        #expect(try replayed().overlay.bytes(at: offset, count: size) == disk)
        // Its cluster was freed later.
        disk.replaceSubrange(112..<120, with: XFSLogWriter.big(0 as UInt64))
        try store.patch(offset, disk)
        try writer.commit(XFSLogWriter.cancellation(offset / 4096 * 8, sectors: 32))
        #expect(try replayed().overlay.bytes(at: offset, count: size) == disk)
        // Forks that change their owner are not replayed.
        try writer.commit(inodeItem(root, XFSLogWriter.core(changed), fields: 0x201))
        try expectPending("exchanges forks")
    }

    /// Before version 5 an inode says how often it was written, with a count that begins anew.
    @Test(arguments: [(7, 7, true), (7, 8, false), (8, 7, true), (3, 0xFFFF, true), (0x8000, 0xFFFF, false)])
    func oldInodes(_ logged: UInt16, _ written: UInt16, _ isReplayed: Bool) throws {
        try shell("mkfs.xfs -f -q --unsupported -l size=10m -m crc=0 \(scratch("image")) 2>&1")
        let sector = XFSBuffer(count: 512)
        let disk = XFSDisk(store, ByteRange(offset: 0, count: store.size))
        try disk.read(0, sector.memory)
        let geometry = try #require(XFSGeometry(sector.view))
        var writer = try XFSLogWriter(store, geometry)
        let offset = try #require(geometry.offset(ofInode: geometry.rootInode))
        try store.patch(offset + 30, [UInt8(written >> 8), UInt8(written & 0xFF)])
        let inode = try store.bytes(at: offset, count: geometry.inodeSize)
        var core = Array(XFSLogWriter.core(inode)[..<96])
        // The last two bytes of eight, and no number of 64 bits.
        core.replaceSubrange(24..<32, with: [0, 0, 0, 0, 0, 0] + XFSLogWriter.little(logged))
        core.replaceSubrange(8..<12, with: XFSLogWriter.little(1234 as UInt32))
        // Two numbers of 32 bits each.
        for place in [32, 36, 40, 44, 48, 52] {
            core.replaceSubrange(place..<place + 4, with: inode[place..<place + 4].reversed())
        }
        try writer.commit(inodeItem(geometry.rootInode, core, in: geometry))
        guard case .replayed(let overlay, _) = try XFSLog(geometry, disk).state() else {
            throw ImageFailure("not replayed")
        }
        var expected = inode
        if isReplayed {
            expected.replaceSubrange(8..<12, with: XFSLogWriter.big(1234 as UInt32))
            expected.replaceSubrange(24..<32, with: [UInt8](repeating: 0, count: 8))
        }
        #expect(try overlay.bytes(at: offset, count: geometry.inodeSize) == expected)
    }

    @Test func intents() throws {
        var writer = writer
        try writer.commit(
            XFSLogWriter.intent(0x1236, 1), XFSLogWriter.intent(0x1240, 2), XFSLogWriter.intent(0x1242, 3))
        try writer.commit(
            XFSLogWriter.intent(0x1244, 4, [geometry.rootInode]), XFSLogWriter.intent(0x1246, 4, [131]),
            XFSLogWriter.intent(0x1248, 5, [132, 133]))
        #expect(try replayed().unfinished == [geometry.rootInode, 131, 132, 133].sorted())
        try writer.commit(XFSLogWriter.intent(0x1247, 4), XFSLogWriter.intent(0x1249, 5))
        #expect(try replayed().unfinished == [geometry.rootInode])
        let range = ByteRange(offset: 0, count: store.size)
        let found = try CollectedRecords(#require(try XFSReader(store, range, index: 0)))
        #expect(found.problems.map(\.node) == [geometry.rootInode] && found.description?.knowsUse == true)
        try writer.commit(XFSLogWriter.intent(0x1245, 4))
        #expect(try replayed().unfinished == [])
        try writer.commit(XFSLogWriter.intent(0x1250, 9))
        try expectPending("not known here")
    }

    /// Of the last eight records the first that does not verify ends the log; an older one is damage.
    @Test func torn() throws {
        var writer = writer
        var places: [UInt64] = []
        for piece in 0..<12 {
            places.append(writer.position)
            try writer.commit(XFSLogWriter.buffer(free, [(piece, ones)]))
        }
        let all = try block(replayed().overlay)
        for index in [11, 9, 4] {
            let place = writer.log.offset + (places[index] + 1) << 9 + 40
            try store.patch(place, [0xFF])
            let found = try block(replayed().overlay)
            #expect(found == pieces((0, [UInt8](repeating: 1, count: 128 * index))))
        }
        try store.patch(writer.log.offset + (places[4] + 1) << 9 + 40, [0])
        #expect(try block(replayed().overlay) != all)
        try store.patch(writer.log.offset + (places[3] + 1) << 9 + 40, [0xFF])
        try store.patch(writer.log.offset + (places[11] + 1) << 9 + 40, [0])
        try expectPending("checksum")
    }

    /// A buffer of 256 KiB has seven more header sectors; and a log that goes round its end, in all ways.
    @Test(arguments: [1, 3, 9, 300])
    func wrapped(_ before: UInt64) throws {
        let count = geometry.logRange.map { $0.count / 512 } ?? 0
        // All of the first round but its end is older.
        let stamp = XFSLogWriter.big(1 as UInt32) + [UInt8](repeating: 0, count: 508)
        try store.patch(writer.log.offset, Array(repeatElement(stamp, count: Int(count)).joined()))
        var writer = try XFSLogWriter(store, geometry, at: count - before - 20)
        try writer.commit(XFSLogWriter.buffer(free, [(0, ones)]))
        while writer.cycle == 1, writer.position + 2 < count - before {
            try writer.commit(XFSLogWriter.buffer(free, [(1, ones)]))
        }
        let many = (0..<440).map { index in
            XFSLogWriter.buffer(free + 16 + UInt64(index) * 8, [(0, twos + twos)])
        }
        try writer.record(XFSLogWriter.transaction(3, many), bufferBytes: 256 << 10)
        try writer.commit(XFSLogWriter.buffer(free, [(2, ones)]))
        try #require(writer.cycle == 2)
        let overlay = try replayed().overlay
        #expect(try block(overlay) == pieces((0, ones), (1, ones), (2, ones)))
        #expect(try overlay.bytes(at: (free + 16 + 439 * 8) << 9, count: 4096) == pieces((0, twos + twos)))
    }

    @Test func hostile() throws {
        var writer = writer
        let begin = writer
        func restart() throws {
            writer = begin
            try store.patch(writer.log.offset + begin.position << 9, [UInt8](repeating: 0, count: 64 << 10))
        }
        func expect(_ reason: String, _ items: [[UInt8]]...) throws {
            try restart()
            try writer.commit(XFSLogWriter.buffer(free, [(0, ones)]))
            try writer.record(XFSLogWriter.transaction(5, items))
            try expectPending(reason)
        }
        try expect("beyond its end", XFSLogWriter.buffer(free, sectors: 1, [(31, ones)]))
        try expect("cannot be right", XFSLogWriter.buffer(.max - 3, [(0, ones)]))
        try expect("cannot be right", XFSLogWriter.buffer(store.size >> 9 - 7, [(0, ones)]))
        try expect("cannot be right", XFSLogWriter.buffer(free, sectors: 300, [(0, ones)]))
        try expect("too short", [XFSLogWriter.little(0x123C as UInt16) + [1, 0]])
        try expect("lacks regions", [XFSLogWriter.little(0x123C as UInt16) + [9, 0]])
        try expect("regions", [XFSLogWriter.little(0x123C as UInt16) + [0, 0]])
        try expect("no inode", inodeItem(geometry.rootInode, [UInt8](repeating: 0, count: 176)))
        try expect("no core", inodeItem(geometry.rootInode, [UInt8](repeating: 0, count: 176), fields: 0))
        try expect(
            "cannot be any",
            [XFSLogWriter.little(0x123F as UInt16) + [1, 0] + [UInt8](repeating: 255, count: 24)])
        try restart()
        try writer.record((0...UInt32(XFSLimits.openTransactions)).map { .start($0) })
        try expectPending("open")
        try restart()
        writer.tail = 1 << 32 | 3
        try writer.commit(XFSLogWriter.buffer(free, [(0, ones)]))
        try expectPending("cannot be right")
    }
}

enum XFSTools {
    static let arePossible = (try? shell("command -v mkfs.xfs")) != nil
}
