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
        #expect(head.id == 3 && head.method == "volume.freeze" && head.jsonrpc == "2.0")
        let again: ControlRequest<VolumeFreezeMethod.Parameters> = try ControlCodec.decode(from: line)
        #expect(again.params == request.params)
    }
}
