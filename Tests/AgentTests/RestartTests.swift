import Blocks
import Foundation
import Host
import HostControl
import PhysicalCopy
import TableOfContents
import TestSupport
import Testing

@testable import Agent

/// A copy whose cache is full, under a host that begins anew: it is as of the later instant, whenever that comes.
@Suite(.serialized) struct RestartTests {
    private static let size = 1 << 20
    private static let step: UInt64 = 64 << 10

    /// A volume whose every byte tells when it was written, and a cache of a few chunks.
    private final class Busy: Sendable {
        /// How far the host is with beginning anew.
        struct Restarts {
            var announced = 0
            /// The next one waits as soon as its log is the next epoch's.
            var isHeld = false
            var hasBegun = false
        }
        let world = LocalWorld()
        let volume: LocalVolume
        let oracle: PrefixOracle
        let restarts: Monitor<Restarts>
        private let turn = Monitor(false)
        private let overflows = Monitor((count: 0, isBusy: false))

        init(seed: UInt64, region: Range<Int> = 0..<RestartTests.size) throws {
            let restarts = Monitor(Restarts())
            self.restarts = restarts
            volume = try world.addVolume(
                "a", size: RestartTests.size, seed: seed, cache: 256 << 10, onCacheFull: .restartFrom
            ) { checkpoint in
                if checkpoint == .announced { restarts.withLockAndNotify { $0.announced += 1 } }
                if checkpoint == .begunAnew {
                    restarts.withLockAndNotify { $0.hasBegun = true }
                    restarts.wait { $0.isHeld ? nil : () }
                }
            }
            oracle = PrefixOracle(
                seed: seed,
                region: ByteRange(offset: UInt64(region.lowerBound), count: UInt64(region.count)),
                maximumLength: 8 << 10, found: Array(volume.contents[region]))
        }

        /// Writes a few times in all, which the cache has room for.
        func writeABit() {
            if oracle.operations.count < 5 { write(1) }
        }

        /// Writes so many times, one thread at a time.
        func write(_ times: Int) {
            turn.wait { isTaken -> Void? in
                guard !isTaken else { return nil }
                isTaken = true
                return ()
            }
            defer { turn.withLockAndNotify { $0 = false } }
            var left = times
            do throws(StoreError) {
                try oracle.run(on: volume.volume) {
                    left -= 1
                    return left < 0
                }
            } catch { Issue.record("\(error)") }
        }

        private func fill() -> String? {
            let before = restarts.withLock { $0.announced }
            let epoch = volume.volume.epochStatus?.uuid
            var attempts = 0
            while restarts.withLock({ $0.announced }) == before, volume.volume.epochStatus?.state == .open {
                attempts += 1
                guard attempts < 2_000 else {
                    Issue.record("the cache does not become full: is all of it passed?")
                    break
                }
                write(1)
            }
            return epoch
        }

        /// Writes until the host has begun anew; at most so many times in all.
        func overflow(atMost times: Int = .max) {
            let isWanted = overflows.wait { state -> Bool? in
                guard !state.isBusy else { return nil }
                guard state.count < times else { return false }
                state = (state.count + 1, true)
                return true
            }
            guard isWanted else { return }
            defer { overflows.withLockAndNotify { $0.isBusy = false } }
            guard let epoch = fill().flatMap({ UUID(uuidString: $0) }) else { return }
            // Nothing is passed; but what is asked of an epoch is answered when the next one is there.
            do throws(ControlError) { try volume.volume.passed([], epoch: epoch) } catch {}
        }

        /// Writes until the host begins anew and has come so far that the log is the next epoch's. There it stands until it has
        /// told its status, or is asked anything else.
        func overflowHalfway() {
            restarts.withLock { ($0.isHeld, $0.hasBegun) = (true, false) }
            _ = fill()
            restarts.wait { $0.hasBegun ? () : nil }
            world.state.withLock { [restarts] in
                $0.asking = { restarts.withLockAndNotify { $0.isHeld = false } }
            }
        }

        /// The first checkpoint comes when nobody waits for it any more.
        func passesNothing() { world.state.withLock { $0.checkpointNanoseconds = 1 << 60 } }

        var request: CopyRequest { CopyRequest(members: [world.member("a")], wantsToc: false) }

        func judge(_ outcome: CopyOutcome, sourceLocation: SourceLocation = #_sourceLocation) throws {
            let copy = try PhysicalCopy(outcome.copy)
            let opener: DataOpener = { location, _ throws(CopyError) in
                guard case .path(let path) = location else { preconditionFailure("not here") }
                do throws(AgentError) { return try LocalWorld.open(path, false) } catch {
                    throw error.copyError
                }
            }
            let bytes = try copy.openVolume(opener).bytes(at: 0, count: RestartTests.size)
            let verdict = oracle.judge(bytes, within: oracle.bounds(at: outcome.instant))
            #expect(verdict.isConsistent, "\(verdict)", sourceLocation: sourceLocation)
            #expect(try copy.verify(opener).isClean, sourceLocation: sourceLocation)
            let epoch = copy.manifest.epoch
            #expect(epoch.restarts == outcome.restarts, sourceLocation: sourceLocation)
            #expect(
                epoch.institutedAt == outcome.instant && epoch.number == (outcome.restarts ?? 0) + 1,
                sourceLocation: sourceLocation)
            #expect(volume.volume.epochStatus?.state == .released, sourceLocation: sourceLocation)
            #expect(world.names == ["a.cache", "a.source", "copy"], sourceLocation: sourceLocation)
            let notices = world.state.withLock { $0.notices }
            #expect(!notices.contains { $0.contains("cannot go on") }, sourceLocation: sourceLocation)
        }
    }

    @Test(
        "The cache is full in the raw pass, again and again",
        arguments: [Manifest.Mode.overlay, .append],
        [EpochDescription.Ending.endedBeforeCacheCopy, .endedAfterCacheCopy])
    func inTheRawPass(mode: Manifest.Mode, ending: EpochDescription.Ending) async throws {
        for seed: UInt64 in 1...(Tier.isFull ? 3 : 1) {
            let busy = try Busy(seed: seed)
            var request = busy.request
            (request.mode, request.ending) = (mode, ending)
            let outcome = try #require(
                try await busy.world.copy(request) { bridge in
                    bridge.commandBytes = Self.step
                    bridge.copied = {
                        busy.writeABit()
                        busy.overflow(atMost: 3)
                    }
                }.first)
            #expect(outcome.restarts == 3)
            #expect(outcome.copiedAgainBytes ?? 0 > 0 && outcome.firstInstant ?? .max < outcome.instant)
            try busy.judge(outcome)
            #expect(busy.world.state.withLock { $0.notices.contains { $0.contains("later instant") } })
        }
    }

    @Test(
        "The host begins anew right before a step",
        arguments: [
            "snapshot.end a", "snapshot.mark a", "cache.release a", "snapshot.passed a", "snapshot.changes a",
        ],
        [Manifest.Mode.overlay, .append])
    func rightBefore(step: String, mode: Manifest.Mode) async throws {
        let busy = try Busy(seed: 5)
        // What is passed fills no cache: that would go on for ever.
        if !step.contains("passed") { busy.passesNothing() }
        let isFirst = Monitor(true)
        busy.world.state.withLock { state in
            state.before[step] = {
                let isNow = isFirst.withLock { first in
                    defer { first = false }
                    return first
                }
                if isNow { busy.overflow() }
            }
        }
        var request = busy.request
        request.mode = mode
        if step.contains("mark") { request.ending = .endedAfterCacheCopy }
        // When the copy is whole nothing counts any more.
        if step.contains("release") { request.ending = .endedAfterCacheCopy }
        let outcome = try #require(
            try await busy.world.copy(request) { bridge in
                bridge.commandBytes = Self.step
                bridge.copied = {
                    busy.writeABit()
                    if step.contains("changes") { busy.overflow(atMost: 1) }
                }
            }.first)
        #expect(outcome.restarts == (step.contains("release") ? nil : step.contains("changes") ? 2 : 1))
        try busy.judge(outcome)
    }

    /// Behind the marker the log goes on, is full, and is begun anew under the copy of its originals.
    @Test(arguments: [Manifest.Mode.overlay, .append]) func whileOriginalsAreCopied(mode: Manifest.Mode)
        async throws
    {
        let busy = try Busy(seed: 6)
        busy.passesNothing()
        var request = busy.request
        (request.mode, request.ending) = (mode, .endedAfterCacheCopy)
        let isMarked = Monitor(false)
        busy.world.state.withLock { $0.before["snapshot.mark a"] = { isMarked.withLock { $0 = true } } }
        let outcome = try #require(
            try await busy.world.copy(request) { bridge in
                bridge.commandBytes = 64 << 10
                bridge.copied = {
                    busy.writeABit()
                    if isMarked.withLock({ $0 }) { busy.overflow(atMost: 2) }
                }
            }.first)
        #expect(outcome.restarts ?? 0 >= 1)
        try busy.judge(outcome)
    }

    enum Moment: CaseIterable, Sendable {
        /// The agent is about to look at the bridge's units, or at the copy, or has read the snapshot and looks at the log.
        case beforeTheUnits, beforeTheCopy, withinTheUnits, withinTheCopy
        /// It has the log's originals copied.
        case overTheOriginals
    }

    /// Its status tells the epoch as open meanwhile, while the log is the next one's already: no sign of a wrong unit, or of a
    /// damaged copy.
    @Test("The host is about to begin anew", arguments: Moment.allCases)
    func halfway(moment: Moment) async throws {
        let busy = try Busy(seed: 11)
        busy.passesNothing()
        let (opened, read) = (Monitor(0), Monitor(0))
        let isMarked = Monitor(false)
        /// Pieces that are compared: all of so small a volume.
        let pieces = Self.size / Int(AgentLimits.sampleBytes)
        busy.world.state.withLock { state in
            state.before["open snapshot"] = {
                let count = opened.next()
                if count == 1, moment == .beforeTheUnits { busy.overflowHalfway() }
                if count == 2, moment == .beforeTheCopy { busy.overflowHalfway() }
            }
            state.readSnapshot = {
                let count = read.next()
                // What is read from here on differs from the snapshot.
                if count == 1 { busy.write(3) }
                if count == pieces, moment == .withinTheUnits { busy.overflowHalfway() }
                if count == 2 * pieces, moment == .withinTheCopy { busy.overflowHalfway() }
            }
            state.before["snapshot.mark a"] = { isMarked.withLock { $0 = true } }
        }
        var request = busy.request
        request.mode = moment == .overTheOriginals ? .append : .overlay
        request.ending = .endedAfterCacheCopy
        let isFirst = Monitor(true)
        let outcome = try #require(
            try await busy.world.copy(request) { bridge in
                bridge.commandBytes = Self.step
                bridge.copied = {
                    guard moment == .overTheOriginals, isMarked.withLock({ $0 }) else { return }
                    let isNow = isFirst.withLock { first in
                        defer { first = false }
                        return first
                    }
                    if isNow { busy.overflowHalfway() }
                }
            }.first)
        #expect(outcome.restarts == 1)
        try busy.judge(outcome)
    }

    @Test("A host that has begun anew too often in a row gives the copy up, and nothing else")
    func theLimit() async throws {
        let busy = try Busy(seed: 12)
        busy.passesNothing()
        let error = await #expect(throws: AgentError.self) {
            try await busy.world.copy(busy.request) { bridge in
                bridge.commandBytes = Self.step
                bridge.copied = { busy.overflow() }
            }
        }
        #expect(error?.status == .tryAgain && error?.reason.contains("void") == true, "\(error!)")
        #expect(busy.restarts.withLock { $0.announced } == HostLimits.restarts)
        #expect(try busy.world.postMortem("copy").reason.contains("void"))
        #expect(busy.volume.volume.epochStatus?.state == .released)
        #expect(busy.world.names == ["a.cache", "a.source", "copy"])
        let verdict = busy.oracle.judgeSource(busy.volume.contents)
        #expect(verdict.isConsistent, "\(verdict)")
        // The same place, once the writers are quiet.
        let outcome = try #require(try await busy.world.copy(busy.request).first)
        #expect(outcome.restarts == nil)
    }

    @Test("A table of contents is of the copy's instant, or there is none", arguments: [true, false])
    func theTableOfContents(isBuiltFirst: Bool) async throws {
        let busy = try Busy(seed: 7)
        let isBuilt = Monitor(false)
        busy.world.state.withLock { state in
            state.contents = [
                .fileSystem(
                    FileSystemDescription(
                        index: 0, kind: .ext4, range: ByteRange(offset: 0, count: UInt64(Self.size)),
                        isListed: true,
                        knowsUse: true)), .end,
            ]
            // Otherwise the host begins anew while it is built.
            if isBuiltFirst {
                state.before["snapshot.passed a"] = { isBuilt.withLockAndNotify { $0 = true } }
            } else {
                state.before["read files"] = { busy.overflow(atMost: 1) }
            }
        }
        var request = busy.request
        request.wantsToc = true
        let commands = Monitor(0)
        let outcome = try #require(
            try await busy.world.copy(request) { bridge in
                bridge.commandBytes = Self.step
                bridge.copied = {
                    let count = commands.next()
                    // Whatever is copied behind it waits, so that it is not passed.
                    if isBuiltFirst, count >= 8 {
                        isBuilt.wait { $0 ? () : nil }
                        busy.overflow(atMost: 1)
                    }
                }
            }.first)
        #expect(outcome.restarts == 1)
        try busy.judge(outcome)
        let copy = try PhysicalCopy(outcome.copy)
        #expect((copy.manifest.toc != nil) == isBuiltFirst)
        #expect((outcome.toc != nil) == isBuiltFirst)
        #expect(busy.world.log.filter { $0 == "read files" }.count == (isBuiltFirst ? 2 : 1))
        if isBuiltFirst {
            let path = try #require(copy.tocPath)
            #expect(try TocDatabase(path).info.instant == outcome.instant)
        } else {
            #expect(busy.world.state.withLock { $0.notices.contains { $0.contains("no table of contents") } })
        }
    }

    /// What is in use is read anew: what only the later instant has is copied, what only the earlier had is zeros.
    @Test func whatIsInUse() async throws {
        let busy = try Busy(seed: 8, region: 256 << 10..<768 << 10)
        @Sendable func contents(_ used: [ByteRange]) -> [VolumeRecord] {
            [
                .fileSystem(
                    FileSystemDescription(
                        index: 0, kind: .ext4, range: ByteRange(offset: 0, count: UInt64(Self.size)),
                        isListed: true,
                        knowsUse: true)), .used(used), .end,
            ]
        }
        let first = [ByteRange(offset: 0, count: 512 << 10)]
        let second = [ByteRange(offset: 256 << 10, count: 512 << 10)]
        busy.passesNothing()
        busy.world.state.withLock { $0.contents = contents(first) }
        var request = busy.request
        request.usedOnly = true
        let commands = Monitor(0)
        let outcome = try #require(
            try await busy.world.copy(request) { bridge in
                bridge.commandBytes = Self.step
                bridge.copied = {
                    let count = commands.next()
                    guard count == 3 else { return }
                    busy.world.state.withLock { $0.contents = contents(second) }
                    busy.overflow()
                }
            }.first)
        #expect(outcome.restarts == 1 && outcome.usedBytes == 512 << 10)
        #expect(busy.world.log.filter { $0 == "read use" }.count == 2)
        let data = Array(FileManager.default.contents(atPath: outcome.copy + "/data.img") ?? Data())
        let used = Int(second[0].offset)..<Int(second[0].end)
        let verdict = busy.oracle.judge(Array(data[used]), within: busy.oracle.bounds(at: outcome.instant))
        #expect(verdict.isConsistent, "\(verdict)")
        #expect(
            data[..<used.lowerBound].allSatisfy { $0 == 0 } && data[used.upperBound...].allSatisfy { $0 == 0 }
        )
    }

    @Test func severalVolumesHaveNoInstantInCommonAnyMore() async throws {
        let busy = try Busy(seed: 9)
        let other = try busy.world.addVolume("b", size: 1 << 20, seed: 1)
        let request = CopyRequest(
            members: ["a", "b"].map {
                .init(control: "\($0).ctl", destination: busy.world.path("copy-\($0)"))
            },
            wantsToc: false)
        let error = await #expect(throws: AgentError.self) {
            try await busy.world.copy(request) { bridge in
                bridge.commandBytes = Self.step
                bridge.copied = { busy.overflow(atMost: 1) }
            }
        }
        #expect(
            error?.status == .tryAgain && error?.reason.contains("no instant in common") == true, "\(error!)")
        for volume in [busy.volume, other] { #expect(volume.volume.epochStatus?.state == .released) }
        #expect(!busy.world.names.contains { $0.contains("partial") })
    }

    /// A copy that goes on, and whose host begins anew then.
    @Test func behindAResume() async throws {
        let busy = try Busy(seed: 10)
        let commands = Monitor(0)
        let isNoted = Monitor(false)
        busy.world.state.withLock {
            $0.before["snapshot.passed a"] = { isNoted.withLockAndNotify { $0 = true } }
        }
        let error = await #expect(throws: AgentError.self) {
            try await busy.world.copy(busy.request) { bridge in
                bridge.commandBytes = Self.step
                bridge.copied = { busy.overflow(atMost: 1) }
                bridge.dies = {
                    let count = commands.next()
                    guard count >= 10 else { return false }
                    isNoted.wait { $0 ? () : nil }
                    return true
                }
            }
        }
        #expect(error?.status == .unavailable && error?.advice?.contains("--resume") == true, "\(error!)")
        var request = busy.request
        request.resumes = true
        busy.writeABit()
        let outcome = try #require(
            try await busy.world.copy(request) { bridge in
                bridge.commandBytes = Self.step
                bridge.copied = { busy.overflow(atMost: 3) }
            }.first)
        #expect(outcome.restarts ?? 0 >= 2)
        try busy.judge(outcome)
    }
}
