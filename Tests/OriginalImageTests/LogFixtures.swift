import Blocks
import Foundation
import OriginalImage
import TestSupport

/// Fixed identities, so that golden bytes can be.
enum Fixture {
    static let volume = UUID(uuidString: "00112233-4455-6677-8899-AABBCCDDEEFF")!
    static let epoch = UUID(uuidString: "0E0E0E0E-0000-4000-8000-000000000001")!
    static let boot = UUID(uuidString: "B0B0B0B0-0000-4000-8000-000000000001")!
    static let otherBoot = UUID(uuidString: "B0B0B0B0-0000-4000-8000-000000000002")!
    /// 10 chunks and a short one of 1000 bytes.
    static let geometry = ChunkGeometry(volumeSize: 10 * 4096 + 1000, chunkSize: 4096)!

    static func settings(
        _ durability: LogDurability = .process, boot: UUID = boot, volume: UUID = volume,
        geometry: ChunkGeometry = geometry, capacity: UInt64? = nil,
        recordRetry: ClosedRange<UInt64> = LogLimits.recordRetry
    ) -> OriginalImageLog.Settings {
        OriginalImageLog.Settings(
            volume: volume, geometry: geometry, durability: durability, capacity: capacity, boot: boot,
            recordRetry: recordRetry)
    }

    /// The original that the tests give chunk `chunk`: every fourth is zeros.
    static func original(_ chunk: UInt64, _ geometry: ChunkGeometry = geometry) -> [UInt8] {
        let byte: UInt8 = chunk % 4 == 3 ? 0 : UInt8(truncatingIfNeeded: chunk + 1)
        return [UInt8](repeating: byte, count: geometry.length(of: chunk))
    }

    /// Into the log's current epoch, or into `epoch`.
    static func append(_ chunks: [UInt64], to log: OriginalImageLog, epoch: UUID? = nil) throws {
        let epoch = epoch ?? log.epoch?.uuid ?? Self.epoch
        let contents = chunks.map { original($0, log.settings.geometry) }
        let all = contents.flatMap { $0 }
        try all.withUnsafeBytes { bytes in
            var offset = 0
            var originals: [LogOriginal] = []
            for (chunk, content) in zip(chunks, contents) {
                let part = UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + content.count])
                originals.append(LogOriginal(chunk: chunk, bytes: part))
                offset += content.count
            }
            try originals.withUnsafeBufferPointer { try log.append($0, epoch: epoch) }
        }
    }

    /// A log of three batches, as an array.
    static func store(
        durability: LogDurability = .process, ended: Bool = false, passed: Bool = false
    ) throws -> MemoryStore {
        let store = MemoryStore(size: 20 * 4096)
        let log = try OriginalImageLog(store, settings: settings(durability))
        try log.begin(number: 1, uuid: epoch, institutedAt: 1_700_000_000_000_000_000)
        try append([0, 1, 3], to: log)
        try append([10], to: log)
        try append([5, 4], to: log)
        if passed { try log.notePassed(epoch: epoch) }
        if ended { _ = try log.end() }
        return store
    }

    static func contents(_ store: any BlockStore) throws -> [UInt8] {
        try store.bytes(at: 0, count: Int(store.size))
    }
}

extension OriginalImageLog {
    func original(of chunk: UInt64) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xEE, count: settings.geometry.length(of: chunk))
        try bytes.withUnsafeMutableBytes { try readOriginal(of: chunk, into: $0) }
        return bytes
    }
}
