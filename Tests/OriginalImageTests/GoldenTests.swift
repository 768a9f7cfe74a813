import OriginalImage
import Testing

/// Each version as bytes, made from the article's tables by other means than this module: what is read today must be
/// readable for ever.
@Suite struct GoldenTests {
    private func block(_ rows: [String], crc: String) -> [UInt8] {
        func bytes(_ text: String) -> [UInt8] {
            stride(from: 0, to: text.utf8.count, by: 2).compactMap {
                UInt8(text.dropFirst($0).prefix(2), radix: 16)
            }
        }
        let fields = bytes(rows.joined())
        return fields + [UInt8](repeating: 0, count: 4092 - fields.count) + bytes(crc)
    }

    @Test func superblockOfVersion1() throws {
        let golden = block(
            [
                "4f424f494c53420a0000000100001000000000000000000400112233445566778899aabbccddeeff",
                "000000000000a3e80000000000014000000200000000000000000000000000010e0e0e0e00004000",
                "800000000000000117979cfe362a0000b0b0b0b0000040008000000000000001000000000000a000",
                "00000000000000030000000000000006",
            ], crc: "41d48263")
        let store = try Fixture.store(ended: true)
        #expect(try store.bytes(at: 0, count: 4096) == golden)
        let read = try golden.withUnsafeBytes { try LogSuperblock(decoding: $0, at: 0) }
        #expect(read.generation == 4 && read.volume == Fixture.volume && read.epoch?.state == .ended)
    }

    /// The same epoch with the flag *passed*, which came before its end: one generation more.
    @Test func superblockOfVersion2() throws {
        let golden = block(
            [
                "4f424f494c53420a0000000200001000000000000000000500112233445566778899aabbccddeeff",
                "000000000000a3e80000000000014000000200000000000100000000000000010e0e0e0e00004000",
                "800000000000000117979cfe362a0000b0b0b0b0000040008000000000000001000000000000a000",
                "00000000000000030000000000000006",
            ], crc: "1928424a")
        let store = try Fixture.store(ended: true, passed: true)
        #expect(try store.bytes(at: 4096, count: 4096) == golden)
        let read = try golden.withUnsafeBytes { try LogSuperblock(decoding: $0, at: 4096) }
        #expect(read.generation == 5 && read.epoch?.flags == .passed && read.epoch?.state == .ended)
    }

    @Test func headerOfVersion1() throws {
        let golden = block(
            [
                "4f424f494c42410a0e0e0e0e00004000800000000000000100000000000000000000000300000000",
                "000000000000000042186b7f00000000000000000000000128d76294000000000000000000000003",
                "0000000000000001",
            ], crc: "a8726852")
        #expect(try Fixture.store().bytes(at: 8192, count: 4096) == golden)
    }
}
