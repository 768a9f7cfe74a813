import Foundation
import HostControl
import Testing

@Suite struct LinesTests {
    @Test func linesComeWholeHoweverTheBytesCome() throws {
        let stream = Array("one\n\ntwo\r\n{\"three\":3}\nfou".utf8)
        for size in 1...stream.count {
            var lines = ControlLines()
            var found: [[UInt8]] = []
            var rest = stream[...]
            while !rest.isEmpty {
                found += try lines.feed(rest.prefix(size))
                rest = rest.dropFirst(size)
            }
            #expect(found == ["one", "two", "{\"three\":3}"].map { Array($0.utf8) })
            #expect(lines.pendingBytes == 3)
        }
    }

    @Test func theLimitAndOneMore() throws {
        var lines = ControlLines()
        let longest = [UInt8](repeating: 65, count: Limits.lineBytes - 1)
        #expect(try lines.feed(longest + [10]) == [longest])
        #expect(throws: ControlLines.TooLong.self) { try lines.feed(longest + [65]) }
    }

    @Test func valuesComeBack() throws {
        let request = ControlRequest(
            id: 3, method: "volume.freeze", params: VolumeFreezeMethod.Parameters(timeout: 2.5))
        var lines = ControlLines()
        let line = try #require(try lines.feed(try ControlCodec.line(of: request)).first)
        let head: ControlRequestHead = try ControlCodec.decode(from: line)
        #expect(head.id == .integer(3) && head.method == "volume.freeze" && head.jsonrpc == "2.0")
        let again: ControlRequest<VolumeFreezeMethod.Parameters> = try ControlCodec.decode(from: line)
        #expect(again.params == request.params)
    }

    @Test("An id comes back as it came, byte for byte")
    func idsComeBack() throws {
        for id in [
            "0", "-7", "9223372036854775807", "-9223372036854775808", "9223372036854775808", "1.5",
            "123456789012345678901234567890", #""""#, #""7""#, #""a \"b\" \\ /é""#, "null",
            "\"\(String(repeating: "x", count: Limits.idBytes))\"",
        ] {
            let line = Array(#"{"jsonrpc":"2.0","id":\#(id),"method":"m"}"#.utf8)
            let head: ControlRequestHead = try ControlCodec.decode(from: line)
            let answer = try ControlCodec.line(
                of: ControlResponse(id: try #require(head.id), result: Empty()))
            #expect(
                String(decoding: answer, as: UTF8.self) == #"{"id":\#(id),"jsonrpc":"2.0","result":{}}"#
                    + "\n")
        }
        let notification: ControlRequestHead = try ControlCodec.decode(
            from: Array(#"{"jsonrpc":"2.0","method":"m"}"#.utf8))
        #expect(notification.id == nil)
        for id in ["true", "[]", "{}", "1e999", "\"\(String(repeating: "x", count: Limits.idBytes + 1))\""] {
            #expect(throws: (any Error).self) {
                try ControlCodec.decode(
                    ControlRequestHead.self, from: Array(#"{"jsonrpc":"2.0","id":\#(id),"method":"m"}"#.utf8))
            }
        }
    }

    /// The most extents with the largest numbers, in a request and in an answer.
    @Test func asManyExtentsAsMayBeFitALine() throws {
        let extents = [VolumeExtent](
            repeating: VolumeExtent(offset: .max, count: .max), count: Limits.extents)
        let request = ControlRequest(
            id: .max, method: SnapshotPassedMethod.name,
            params: SnapshotPassedMethod.Parameters(epoch: UUID().uuidString, extents: extents))
        #expect(try ControlCodec.line(of: request).count <= Limits.lineBytes)
        let answer = ControlResponse(
            id: .string(String(repeating: "x", count: Limits.idBytes)),
            result: SnapshotChangesMethod.Result(extents: extents, next: .max))
        #expect(try ControlCodec.line(of: answer).count <= Limits.lineBytes)
    }
}
