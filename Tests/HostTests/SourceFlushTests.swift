import Blocks
import Foundation
import HostControl
import Logging
import TestSupport
import Testing

@testable import Host

/// The system tells a failed write-back once; the volume goes on telling.
@Suite struct SourceFlushTests {
    /// Keeps what is logged.
    private struct KeptLog: LogHandler {
        let lines: Monitor<[String]>
        var metadata: Logger.Metadata = [:]
        var logLevel = Logger.Level.trace
        subscript(metadataKey key: String) -> Logger.Metadata.Value? {
            get { metadata[key] }
            set { metadata[key] = newValue }
        }
        func log(event: LogEvent) { lines.withLock { $0.append("\(event.level): \(event.message)") } }
    }

    private let lines = Monitor<[String]>([])
    private let source = FaultyStore([UInt8](repeating: 1, count: 40_960))
    private let cache = FaultyStore(size: 1 << 20)
    private let volume: CopyOnWriteVolume
    private static let failure = StoreError(.io, errno: EIO)

    init() throws {
        var settings = Fixture.settings()
        settings.logger = Logger(label: "test") { [lines] _ in KeptLog(lines: lines) }
        volume = try CopyOnWriteVolume(source: source, cache: cache, settings: settings)
    }

    private func status() -> VolumeStatus {
        volume.status(of: HostDescriptor(source: "/s", cache: "/c", uris: [], socket: "/n"))
    }

    private func expectFailedForGood(sourceLocation: SourceLocation = #_sourceLocation) throws {
        let volume = volume
        let range = ByteRange(offset: 0, count: 4096)
        let error = Self.failure
        for _ in 0..<2 {
            #expect(throws: error, sourceLocation: sourceLocation) { try volume.flush() }
            #expect(throws: error, sourceLocation: sourceLocation) {
                try volume.write([2], at: 0, durable: true)
            }
            #expect(throws: error, sourceLocation: sourceLocation) {
                try volume.writeZeroes(range, options: .durable)
            }
            #expect(throws: error, sourceLocation: sourceLocation) { try volume.trim(range, durable: true) }
        }
        // The applications go on as far as they ask for nothing that cannot be had.
        try volume.write([3], at: 0)
        #expect(try volume.bytes(at: 0, count: 1) == [3], sourceLocation: sourceLocation)
        for operation in [{ _ = try volume.begin() }, { try volume.freeze(timeout: 10) }] {
            #expect(sourceLocation: sourceLocation) { try operation() } throws: {
                guard let error = $0 as? ControlError else { return false }
                return error.code == .io && error.message.contains("start the host anew")
            }
        }
        #expect(volume.isPrompt && !volume.isFrozen && volume.snapshot == nil, sourceLocation: sourceLocation)
        #expect(
            status().flushFailure?.contains("flush of the source failed") == true,
            sourceLocation: sourceLocation)
        #expect(throws: error, sourceLocation: sourceLocation) { try volume.close() }
        let said = lines.withLock { $0 }
        #expect(said.count == 1 && said[0].hasPrefix("error: "), "\(said)", sourceLocation: sourceLocation)
        #expect(said.first?.contains("start the host anew") == true, sourceLocation: sourceLocation)
        // A new start opens the source anew.
        let restarted = try CopyOnWriteVolume(source: source, cache: cache, settings: Fixture.settings())
        try restarted.flush()
        _ = try restarted.begin()
    }

    @Test func aFailedFlushIsToldToAll() throws {
        #expect(status().flushFailure == nil)
        source.nextFlushFailure.withLock { $0 = Self.failure }
        #expect(throws: Self.failure) { try volume.flush() }
        try expectFailedForGood()
    }

    @Test func aFailedFUAWriteIsToldToAll() throws {
        source.nextFlushFailure.withLock { $0 = Self.failure }
        #expect(throws: Self.failure) { try volume.write([9], at: 5, durable: true) }
        try expectFailedForGood()
    }

    @Test func soAreThoseOfGatheredWritesZeroesAndTrims() throws {
        typealias Change = @Sendable (CopyOnWriteVolume) throws -> Void
        let changes: [Change] = [
            { volume in
                try [UInt8](repeating: 7, count: 512).withUnsafeBytes { bytes in
                    try [bytes, bytes].withUnsafeBufferPointer {
                        try volume.write(gathering: $0, at: 512, durable: true)
                    }
                }
            },
            { try $0.writeZeroes(ByteRange(offset: 0, count: 512), options: .durable) },
            { try $0.trim(ByteRange(offset: 0, count: 512), durable: true) },
        ]
        for change in changes {
            let volume = try CopyOnWriteVolume(
                source: source, cache: FaultyStore(size: 1 << 20), settings: Fixture.settings())
            try change(volume)
            source.nextFlushFailure.withLock { $0 = Self.failure }
            #expect(throws: Self.failure) { try change(volume) }
            #expect(throws: Self.failure) { try change(volume) }
            #expect(throws: Self.failure) { try volume.flush() }
        }
    }

    @Test func theFlushesOfInstitutionAndFreezeCountToo() throws {
        source.nextFlushFailure.withLock { $0 = Self.failure }
        #expect { try volume.begin() } throws: { ($0 as? ControlError)?.code == .io }
        try expectFailedForGood()
    }

    @Test func theFlushOfAFreezeCountsToo() throws {
        source.nextFlushFailure.withLock { $0 = Self.failure }
        #expect { try volume.freeze(timeout: 10) } throws: { ($0 as? ControlError)?.code == .io }
        try expectFailedForGood()
    }

    /// flush A: in the source, held │ flush B: told of the failure │ A: returns well, yet must fail.
    @Test func aFlushThatOverlapsIsTold() throws {
        let (inFlush, mayGoOn) = (Monitor(false), Monitor(false))
        source.midFlush.withLock {
            $0 = {
                inFlush.withLockAndNotify { $0 = true }
                mayGoOn.wait { $0 ? () : nil }
            }
        }
        let first = Worker { [volume] in
            #expect(throws: Self.failure) { try volume.flush() }
        }
        inFlush.wait { $0 ? () : nil }
        source.midFlush.withLock { $0 = nil }
        source.nextFlushFailure.withLock { $0 = Self.failure }
        #expect(throws: Self.failure) { try volume.flush() }
        mayGoOn.withLockAndNotify { $0 = true }
        first.join()
    }

    /// No room for the data is the application's business; its data are not lost behind its back.
    @Test func noRoomForAWriteIsNoFailedFlush() throws {
        source.failsForWantOfRoom.store(true, ordering: .relaxed)
        #expect(throws: StoreError(.noSpace, errno: ENOSPC)) { try volume.write([9], at: 5, durable: true) }
        source.failsForWantOfRoom.store(false, ordering: .relaxed)
        try volume.write([9], at: 5, durable: true)
        try volume.flush()
        #expect(status().flushFailure == nil)
        // Where there is room for the data, it was the write-back that found none.
        source.nextFlushFailure.withLock { $0 = StoreError(.noSpace, errno: ENOSPC) }
        #expect(throws: StoreError(.noSpace, errno: ENOSPC)) { try volume.write([9], at: 5, durable: true) }
        try expectFailedForGood()
    }
}
