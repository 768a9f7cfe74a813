import Blocks
import Foundation
import HostControl
import TestSupport
import Testing

@testable import Host

/// How long applications stand still, and what ends it.
@Suite struct StandstillTests {
    private let source = FaultyStore([UInt8](repeating: 1, count: 40_960))
    private let turnstile = Turnstile()

    private func volume(drainSeconds: Double = 60) throws -> CopyOnWriteVolume {
        var settings = Fixture.settings()
        settings.drainSeconds = drainSeconds
        return try CopyOnWriteVolume(
            source: source, cache: FaultyStore(size: 1 << 20), settings: settings, defects: [],
            hook: { [turnstile] in turnstile.pass($0) })
    }

    private func expect(
        _ code: ControlError.Code, saying text: String = "",
        sourceLocation: SourceLocation = #_sourceLocation,
        _ body: () throws -> Void
    ) {
        #expect(sourceLocation: sourceLocation) { try body() } throws: {
            guard let error = $0 as? ControlError else { return false }
            return error.code == code && (text.isEmpty || error.message.contains(text))
        }
    }

    /// Has a write stand inside the gate.
    private func writerInTheGate(of volume: CopyOnWriteVolume) -> Worker {
        turnstile.hold(at: .passedGate)
        let writer = Worker { try volume.write([2], at: 0) }
        turnstile.waitForArrival()
        return writer
    }

    @Test func whatIsSlowComesBeforeTheGateIsClosed() throws {
        let volume = try volume()
        let seen = Monitor<[Bool]>([])
        source.midFlush.withLock { $0 = { seen.withLock { $0.append(volume.gate.isClosed) } } }
        try volume.freeze(timeout: 100)
        #expect(seen.withLock { $0 } == [false, true])
        #expect(volume.thaw())
        seen.withLock { $0 = [] }
        _ = try volume.begin()
        #expect(seen.withLock { $0 } == [false, true])
        source.midFlush.withLock { $0 = nil }
    }

    @Test func aStuckWriteHoldsTheOthersForAWhileOnly() throws {
        #expect(HostLimits.drainSeconds == 10)
        let volume = try volume(drainSeconds: 0.05)
        let writer = writerInTheGate(of: volume)
        expect(.timedOut, saying: "writes in flight did not finish in time; try again") {
            _ = try volume.begin()
        }
        #expect(volume.isPrompt && volume.snapshot == nil && volume.epochStatus?.state == .released)
        expect(.timedOut, saying: "in flight") { try volume.freeze(timeout: 300) }
        expect(.timedOut) { try volume.freeze(timeout: 0.02) }
        #expect(volume.isPrompt && !volume.isFrozen)
        turnstile.open()
        writer.join()
        try volume.freeze(timeout: 300)
        _ = try volume.begin()
        #expect(volume.thaw() && volume.epochStatus?.state == .open)
    }

    /// freeze: flushes behind the gate, held │ time-out: opens the gate │ a write: passes │ freeze: goes on, fails.
    @Test func theTimeoutCountsWhileTheFreezeIsUnderWay() throws {
        let volume = try volume()
        source.midFlush.withLock {
            $0 = { while volume.gate.isClosed { sched_yield() } }
        }
        expect(.timedOut, saying: "it is thawed") { try volume.freeze(timeout: 0.5) }
        source.midFlush.withLock { $0 = nil }
        #expect(!volume.isFrozen && !volume.thaw())
        try volume.write([2], at: 0)
    }

    /// The same of an institution, whose flush behind the gate has no time-out but the drain's.
    @Test func aSlowFlushBehindTheGateHoldsNobodyForLong() throws {
        let volume = try volume(drainSeconds: 0.5)
        source.midFlush.withLock {
            $0 = { while volume.gate.isClosed { sched_yield() } }
        }
        expect(.timedOut, saying: "it is thawed") { _ = try volume.begin() }
        source.midFlush.withLock { $0 = nil }
        #expect(volume.snapshot == nil && volume.epochStatus?.state == .released)
        try volume.write([2], at: 0)
        #expect(volume.log.head.entries == 0)
        _ = try volume.begin()
    }

    @Test func aTimeoutBeforeTheGateIsClosedClosesNothing() throws {
        let volume = try volume()
        let isClosed = Monitor(false)
        source.midFlush.withLock {
            $0 = {
                let start = MonotonicClock.now
                while MonotonicClock.now - start < 30_000_000 { sched_yield() }
                isClosed.withLock { [closed = volume.gate.isClosed] in $0 = $0 || closed }
            }
        }
        expect(.timedOut, saying: "not frozen") { try volume.freeze(timeout: 0.02) }
        #expect(!isClosed.withLock { $0 } && !volume.isFrozen && volume.isPrompt)
    }

    @Test func nothingStandsStillOnceTheHostEnds() throws {
        let volume = try volume()
        try volume.freeze(timeout: 300)
        let writer = Worker { try volume.write([2], at: 0) }
        try volume.endStandstills(force: false)
        writer.join()
        #expect(!volume.isFrozen && volume.isPrompt)
        expect(.ending) { try volume.freeze(timeout: 1) }
        expect(.ending) { try volume.freeze(timeout: 1, renew: true) }
        expect(.ending) { _ = try volume.begin() }
        #expect(volume.epochStatus == nil)
        try volume.endStandstills(force: false)
        try volume.close()
    }

    @Test func anOpenEpochKeepsTheHostUnlessForced() throws {
        let volume = try volume()
        let epoch = try #require(UUID(uuidString: try volume.begin().uuid))
        expect(.epochOpen) { try volume.endStandstills(force: false) }
        try volume.freeze(timeout: 300)
        try volume.endStandstills(force: true)
        #expect(!volume.isFrozen && volume.epochStatus?.state == .open)
        // What is under way may end, as long as there is a cache to write to.
        _ = try volume.mark(epoch: epoch)
        try volume.close()
        expect(.ending) { _ = try volume.end(epoch: epoch) }
        #expect(volume.epochStatus?.state == .open)
    }

    /// writer: in the gate, held │ freeze or institution: waits for it │ the host ends: the waiting gives up at once,
    /// others' writes pass, and no epoch is there.
    @Test(arguments: [false, true])
    func aStandstillUnderWayDoesNotHoldTheEnd(isFreeze: Bool) throws {
        let volume = try volume()
        let held = writerInTheGate(of: volume)
        let standstill = Worker {
            expect(.ending) {
                if isFreeze { try volume.freeze(timeout: 300) } else { _ = try volume.begin() }
            }
        }
        while volume.isPrompt { sched_yield() }  // the gate is closed
        try volume.endStandstills(force: false)
        standstill.join()
        #expect(!held.isDone && volume.isPrompt && !volume.isFrozen && volume.snapshot == nil)
        turnstile.open()
        held.join()
        try volume.write([3], at: 4096)
        #expect(volume.log.head.entries == 0)
        try volume.close()
    }

    /// institution: flushes behind the gate, held │ the host ends: opens the gate │ institution: goes on, opens no epoch.
    @Test func anInstitutionWhoseGateWasOpenedInstitutesNothing() throws {
        let volume = try volume()
        source.midFlush.withLock {
            $0 = {
                guard volume.gate.isClosed else { return }
                do { try volume.endStandstills(force: false) } catch { Issue.record(error) }
            }
        }
        expect(.ending) { _ = try volume.begin() }
        #expect(volume.snapshot == nil && volume.epochStatus?.state == .released)
        let isEpochOpen = volume.isEpochOpen.load(ordering: .acquiring)
        #expect(!isEpochOpen)
    }
}
