import Blocks
import Foundation
import TestSupport

@testable import OriginalImage

/// A cache: the first byte says which log is edited (bits 0 and 1: an open epoch, an ended one, a void one, a blank
/// cache), and that checksums are left as they are (bit 2) or those of the originals are (bit 3); edits follow
/// (``EditedBytes``).
///
/// What must hold: whatever reads or recovers it ends without a trap; what the reader of a store finds right, the reader
/// of a stream finds right, too, with the same originals; a log that opens goes on: an epoch can be ended, released and
/// begun anew, and what is then appended is there.
func fuzzLog(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let how = input.byte()
    var bytes = EditedBytes(FuzzedLog.bases[Int(how & 3)], &input, isFixed: true).bytes
    if how & 4 == 0 { FuzzedLog.fixChecksums(&bytes, originals: how & 8 == 0) }
    readLog(bytes)
    openLog(bytes)
}

enum FuzzedLog {
    static let volume = UUID(uuidString: "00112233-4455-6677-8899-AABBCCDDEEFF")!
    static let boot = UUID(uuidString: "B0B0B0B0-0000-4000-8000-000000000001")!
    static let epoch = UUID(uuidString: "0E0E0E0E-0000-4000-8000-000000000001")!
    /// 10 chunks and a short one of 1000 bytes.
    static let geometry = ChunkGeometry(volumeSize: 10 * 4096 + 1000, chunkSize: 4096)!
    private static let size = 14 * 4096
    static let settings = OriginalImageLog.Settings(
        volume: volume, geometry: geometry, durability: .process, boot: boot)

    static let bases: [[UInt8]] = (0..<4).map { kind in
        let store = MemoryStore(size: size)
        do throws(LogError) {
            if kind == 3 { return contents(store) }
            let log = try OriginalImageLog(store, settings: settings)
            try log.begin(number: 1, uuid: epoch, institutedAt: 1_700_000_000_000_000_000)
            try append([0, 1, 3], to: log)
            try append([10], to: log)
            switch kind {
            case 1: _ = try log.end()
            case 2: log.void("the original image cache is full", epoch: epoch)
            default: _ = try log.mark()
            }
            if kind == 0 { try append([5, 4], to: log) }
        } catch { preconditionFailure("a log in memory: \(error)") }
        return contents(store)
    }

    static func contents(_ store: MemoryStore) -> [UInt8] {
        guard let bytes = try? store.bytes(at: 0, count: Int(store.size)) else {
            preconditionFailure("a store in memory that cannot be read")
        }
        return bytes
    }

    static func original(_ chunk: UInt64) -> [UInt8] {
        [UInt8](
            repeating: chunk % 4 == 3 ? 0 : UInt8(truncatingIfNeeded: chunk + 1),
            count: geometry.length(of: chunk))
    }

    static func append(_ chunks: [UInt64], to log: OriginalImageLog) throws(LogError) {
        guard let epoch = log.epoch?.uuid else { throw .wrongState(nil) }
        for chunk in chunks {
            let bytes = original(chunk)
            let outcome: Result<Void, LogError> = bytes.withUnsafeBytes { buffer in
                let one = [LogOriginal(chunk: chunk, bytes: buffer)]
                return one.withUnsafeBufferPointer { list in
                    do throws(LogError) { return .success(try log.append(list, epoch: epoch)) } catch {
                        return .failure(error)
                    }
                }
            }
            try outcome.get()
        }
    }

    /// Gives superblocks and the headers of batches right checksums; also the originals where the headers lead to them.
    static func fixChecksums(_ bytes: inout [UInt8], originals: Bool) {
        func seal(_ start: Int) {
            let sum = CRC32C.checksum(bytes[start..<start + 4092])
            for index in 0..<4 {
                bytes[start + 4092 + index] = UInt8(truncatingIfNeeded: sum >> (24 - 8 * UInt32(index)))
            }
        }
        func number(_ place: Int, _ count: Int) -> UInt64 {
            bytes[place..<place + count].reduce(0) { $0 << 8 | UInt64($1) }
        }
        for start in [0, 4096] where number(start, 8) == LogFormat.superblockMagic { seal(start) }
        for start in stride(from: 8192, to: bytes.count, by: 4096)
        where number(start, 8) == LogFormat.batchMagic {
            var place = start + 4096
            for entry in 0..<Int(min(number(start + 32, 4), 250)) where originals {
                let header = start + 40 + 16 * entry
                let chunk = number(header, 8)
                guard number(header + 12, 4) == 0, chunk < geometry.chunkCount else { continue }
                let length = geometry.length(of: chunk)
                guard place + length <= bytes.count else { break }
                let sum = CRC32C.checksum(bytes[place..<place + length])
                for index in 0..<4 {
                    bytes[header + 8 + index] = UInt8(truncatingIfNeeded: sum >> (24 - 8 * UInt32(index)))
                }
                place += geometry.paddedLength(of: chunk)
            }
            seal(start)
        }
    }
}

/// Reads it in every way that there is.
private func readLog(_ bytes: [UInt8]) {
    let store = MemoryStore(bytes)
    for (isStrict, base) in [(false, UInt64(0)), (true, 0), (false, 4096)] {
        do throws(LogError) {
            let reader = try LogReader(store, base: base, wantsBothSuperblocks: isStrict)
            let end = try reader.verify()
            var index: LogIndex?
            do throws(LogError) { index = try reader.index() } catch {
                preconditionFailure("verified, and no index: \(error)")
            }
            precondition(UInt64(index?.entries.count ?? 0) == end.entries, "entries that are not counted")
            var originals: [ByteRange: UInt32] = [:]
            for entry in index?.entries ?? [] {
                let range = reader.geometry.range(of: entry.chunk)
                var content = [UInt8](repeating: 0xEE, count: Int(range.count))
                try readEntry(reader, entry, &content)
                originals[range] = CRC32C.checksum(content)
            }
            stream(Array(bytes[Int(base)...]), reader, end, originals)
        } catch {
            // It is no log, or a damaged one.
        }
    }
}

private func readEntry(_ reader: LogReader, _ entry: LogEntry, _ content: inout [UInt8]) throws(LogError) {
    let outcome: Result<Void, LogError> = content.withUnsafeMutableBytes { buffer in
        do throws(LogError) { return .success(try reader.read(entry, into: buffer)) } catch {
            return .failure(error)
        }
    }
    try outcome.get()
}

/// What a reader found right passes by in pieces.
private func stream(
    _ bytes: [UInt8], _ reader: LogReader, _ end: LogPosition, _ originals: [ByteRange: UInt32]
) {
    var stream = LogStream(geometry: reader.geometry, epoch: reader.epoch.uuid, end: end)
    var passed: [ByteRange: UInt32] = [:]
    var start = 0
    while start < Int(end.position) {
        let stop = min(start + 1000, Int(end.position))
        bytes[start..<stop].withUnsafeBytes { buffer in
            var rest = buffer
            do throws(LogError) {
                while let original = try stream.next(&rest) {
                    var crc = CRC32C()
                    if let bytes = original.bytes {
                        crc.update(bytes)
                    } else {
                        crc.update(zeros: original.range.count)
                    }
                    passed[original.range] = crc.value
                }
            } catch { preconditionFailure("right as a store and not as a stream: \(error)") }
        }
        start = stop
    }
    // An end that nobody knows beforehand is where the stream was told that it is.
    precondition(stream.isOver, "the stream does not end where the log does")
    precondition(passed == originals, "other originals as a stream than as a store")
}

/// Opens it as a host does, and goes on with it.
private func openLog(_ bytes: [UInt8]) {
    let store = MemoryStore(bytes)
    do throws(LogError) {
        let log = try OriginalImageLog(store, settings: FuzzedLog.settings)
        defer { log.close() }
        if case .resumed(let entries) = log.finding {
            var found: UInt64 = 0
            var missing: [UInt64] = []
            for chunk in 0..<FuzzedLog.geometry.chunkCount {
                if log.contains(chunk) {
                    found += 1
                    check(log, chunk, isKnown: false)
                } else {
                    missing.append(chunk)
                }
            }
            precondition(found == entries && log.head.entries == entries, "other entries than were told")
            try appendUntilFull(missing, to: log)
            let end = try log.end()
            precondition(end == log.head)
            // What a host wrote behind what it found is right for every reader.
            let verified = try LogReader(store).verify()
            precondition(verified == end, "the log that was gone on with ends elsewhere")
        }
        if let state = log.epoch?.state, state != .released { try log.release() }
        try log.begin(number: 2, uuid: UUID(), institutedAt: 1)
        try appendUntilFull(Array(0..<FuzzedLog.geometry.chunkCount), to: log)
        try log.stamp(institutedAt: 2)
        _ = try log.mark()
        log.void("void", epoch: log.epoch?.uuid ?? UUID())
        try log.release()
    } catch {
        switch error {
        case .full, .store: preconditionFailure("a log in memory: \(error)")
        default: break
        }
    }
}

private func appendUntilFull(_ chunks: [UInt64], to log: OriginalImageLog) throws(LogError) {
    for chunk in chunks {
        do throws(LogError) { try FuzzedLog.append([chunk], to: log) } catch {
            guard error == .full else { throw error }
            return
        }
        check(log, chunk, isKnown: true)
    }
}

/// - Parameter isKnown: it was appended here.
private func check(_ log: OriginalImageLog, _ chunk: UInt64, isKnown: Bool) {
    var content = [UInt8](repeating: 0xEE, count: FuzzedLog.geometry.length(of: chunk))
    let isRead = content.withUnsafeMutableBytes { (try? log.readOriginal(of: chunk, into: $0)) != nil }
    guard isKnown else { return }
    precondition(isRead && content == FuzzedLog.original(chunk), "another original than was appended")
}
