import Blocks
import Foundation
import HostControl
import OriginalImage
import TestSupport

@testable import Host

/// What clients of the control socket send, to a real volume in memory: a byte says who (bit 0: which of two
/// connections; bit 1: it is closed, and the next comes in its place; bit 2: a write of one byte comes first, where bits
/// 4 to 7 say; bit 3: the last epoch's UUID is put in where the line has `EPOCH`), and a line follows up to its end.
///
/// What must hold: each line is answered with one line of JSON, or not at all when it was a notification; what the host
/// says of its volume fits what was written; and in the end, when nobody is connected any more, the volume reads what was
/// written last, is written, is flushed, and takes an epoch whose snapshot is the volume at its instant.
func fuzzControl(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let fuzzed = FuzzedHost()
    for _ in 0..<48 where !input.isEmpty {
        let how = input.byte()
        var line: [UInt8] = []
        while !input.isEmpty {
            let byte = input.byte()
            if byte == UInt8(ascii: "\n") { break }
            line.append(byte)
        }
        fuzzed.take(how, line)
    }
    fuzzed.finish()
}

private final class FuzzedHost {
    private static let chunk = 4096
    private static let chunks = 16
    private let source: MemoryStore
    private let volume: CopyOnWriteVolume
    private let dispatcher: ControlDispatcher
    private var holders = [EpochHolder(), EpochHolder()]
    /// What the volume must read.
    private var expected: [UInt8]
    private var written: UInt8 = 0

    init() {
        expected = (0..<Self.chunk * Self.chunks).map { UInt8(truncatingIfNeeded: $0 / 512 + 1) }
        source = MemoryStore(expected)
        // Room for a few originals only: that it fills is part of it.
        let cache = MemoryStore(size: 8 * Self.chunk)
        do throws(LogError) {
            volume = try CopyOnWriteVolume(
                source: source, cache: cache,
                settings: VolumeSettings(
                    uuid: FuzzedLog.volume, chunkSize: UInt64(Self.chunk), durability: .process,
                    boot: FuzzedLog.boot), defects: [])
        } catch { preconditionFailure("a volume in memory: \(error)") }
        dispatcher = ControlDispatcher(
            volume: volume,
            place: HostDescriptor(
                source: "/source", cache: "/cache", uris: ["nbd+unix:///?socket=/s"], socket: "/s"))
    }

    func take(_ how: UInt8, _ line: [UInt8]) {
        let who = Int(how & 1)
        if how & 2 != 0 {
            disconnect(who)
            holders[who] = EpochHolder()
        }
        // A write waits while the volume is frozen.
        if how & 4 != 0, !volume.isFrozen { write(Int(how >> 4)) }
        var line = line
        if how & 8 != 0, let epoch = volume.epochStatus?.uuid,
            let place = line.firstRange(of: Array("EPOCH".utf8))
        {
            line.replaceSubrange(place, with: epoch.utf8)
        }
        guard line.count < HostControl.Limits.lineBytes else { return }
        let answer = dispatcher.answer(to: line, holder: holders[who])
        if let sent = answer.line { check(sent) }
    }

    private func check(_ line: [UInt8]) {
        precondition(line.count <= HostControl.Limits.lineBytes, "an answer that is too long")
        precondition(
            line.last == UInt8(ascii: "\n") && !line.dropLast().contains(UInt8(ascii: "\n")), "not one line")
        guard let object = try? JSONSerialization.jsonObject(with: Data(line)) as? [String: Any] else {
            preconditionFailure("an answer that is no object: \(String(decoding: line, as: UTF8.self))")
        }
        precondition(object["jsonrpc"] as? String == "2.0" && object["id"] != nil)
        precondition(
            (object["result"] == nil) != (object["error"] == nil), "neither result nor error, or both")
    }

    private func disconnect(_ who: Int) {
        holders[who].release()
        volume.disconnect(holders[who])
    }

    private func write(_ chunk: Int) {
        written &+= 1
        expected[chunk * Self.chunk] = written
        guard (try? volume.write([written], at: UInt64(chunk * Self.chunk))) != nil else {
            preconditionFailure("a write that failed")
        }
    }

    func finish() {
        for who in holders.indices { disconnect(who) }
        precondition(!volume.isFrozen, "frozen by nobody")
        for chunk in 0..<Self.chunks { write(chunk) }
        precondition((try? volume.bytes(at: 0, count: expected.count)) == expected, "it reads something else")
        precondition((try? volume.flush()) != nil, "it cannot be flushed")
        precondition(
            (try? source.bytes(at: 0, count: expected.count)) == expected, "the source is something else")
        checkEpoch()
        precondition((try? volume.close()) != nil, "it cannot be closed")
    }

    /// Unless the host was told to end, an epoch can be had.
    private func checkEpoch() {
        let holder = EpochHolder()
        do throws(ControlError) {
            if let last = volume.epochStatus, last.state != .released, let uuid = UUID(uuidString: last.uuid)
            {
                try volume.release(epoch: uuid)
            }
            let epoch = try volume.begin(holder: holder)
            let instant = expected
            for chunk in [3, 7, 3] { write(chunk) }
            precondition(
                (try? volume.snapshot?.bytes(at: 0, count: instant.count)) == instant, "another snapshot")
            guard let uuid = UUID(uuidString: epoch.uuid) else {
                preconditionFailure("an epoch without UUID")
            }
            _ = try volume.end(epoch: uuid)
            try volume.release(epoch: uuid)
        } catch { precondition(error.code == .ending, "no epoch to be had: \(error)") }
    }
}
