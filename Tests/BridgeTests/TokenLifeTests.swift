import Blocks
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// Moves nothing, and can be held while it does.
private final class IdleMover: CopyMover {
    private let state = Monitor((isHeld: false, waiting: 0))

    func hold() { state.withLock { $0.isHeld = true } }
    func awaitHeld() { state.wait { $0.waiting > 0 ? () : nil } }
    func release() { state.withLockAndNotify { $0.isHeld = false } }

    func move(_ plan: CopyPlan, _ control: CopyControl) throws(MoveFailure) {
        // That of POPULATE TOKEN.
        if plan.pieces.isEmpty { return }
        state.withLockAndNotify { $0.waiting += 1 }
        state.wait { $0.isHeld ? nil : () }
        state.withLock { $0.waiting -= 1 }
    }
}

/// Whose a token is, for how long it is good, and what ends it.
@Suite struct TokenLifeTests {
    /// A token of an instant holds its unit, whose watch holds it.
    @Test func aDeviceIsFreedWithItsTokens() throws {
        weak var unit: LogicalUnit?
        do {
            let bench = try TokenBench()
            _ = try bench.token(0, [(0, 8)])
            unit = bench.bench.device.units.first
            #expect(unit != nil)
            bench.bench.device.close()
        }
        #expect(unit == nil)
    }

    // MARK: The secret

    @Test func onlyTheVeryToken() throws {
        let bench = try TokenBench()
        let token = try bench.token(0, [(0, 8)])
        for offset in [16, 63, 100, 128, 140, 171, 172, 511] {
            var other = token
            other[offset] ^= 1
            #expect(bench.write(other, 1, [(0, 8)]).refusedToken(.tokenCorrupt))
        }
        for (offset, code): (Int, AdditionalSenseCode) in [
            (3, .unsupportedTokenType), (7, .invalidTokenLength), (8, .tokenUnknown), (15, .tokenUnknown),
        ] {
            var other = token
            other[offset] ^= 1
            let refused = bench.write(other, 1, [(0, 8)])
            // One bit turns a type into another that is made, too; then it is the token that does not fit.
            #expect(refused.refusedToken(code) || refused.refusedToken(.tokenCorrupt))
        }
        #expect(
            bench.write([UInt8](repeating: 0, count: 512), 1, [(0, 8)]).refusedToken(.unsupportedTokenType))
        #expect(bench.write(token, 1, [(0, 8)]).isGood)
    }

    @Test func noTwoAreAlike() throws {
        let bench = try TokenBench()
        let tokens = try (0..<64).map { _ in try bench.token(0, [(0, 8)]) }
        #expect(Set(tokens.map { Array($0[8..<16]) }).count == 64)
        // The 256 bits behind the target device descriptor, of which each is as often 0 as 1.
        let secrets = tokens.map { Array($0[140..<172]) }
        #expect(Set(secrets).count == 64)
        for bit in 0..<256 {
            let ones = secrets.count { $0[bit / 8] >> UInt8(bit % 8) & 1 == 1 }
            #expect((5...59).contains(ones))
        }
        #expect(TokenStore.secretBytes == 32)
    }

    @Test func aDeviceThatStartsAnewKnowsNone() throws {
        let token = try TokenBench().token(0, [(0, 8)])
        #expect(try TokenBench().write(token, 1, [(0, 8)]).refusedToken(.tokenUnknown))
    }

    @Test func equality() {
        #expect(TokenStore.areEqual([1, 2, 3], [1, 2, 3]) && TokenStore.areEqual([], []))
        for other: [UInt8] in [[1, 2], [1, 2, 4], [0, 2, 3], [1, 2, 3, 0], []] {
            #expect(!TokenStore.areEqual([1, 2, 3], other))
        }
    }

    // MARK: Who may use it

    @Test func another() throws {
        let bench = try TokenBench()
        // Of a unit that both see: another session may use it, from its own units to its own units.
        let shared = try bench.token(0, [(0, 8)])
        #expect(bench.write(shared, 3, [(0, 8)], on: bench.beta).isGood)
        #expect(
            bench.write(shared, 2, [(0, 8)], on: bench.beta).failed(.illegalRequest, .logicalUnitNotSupported)
        )
        // Of a unit that the other does not see: for that one there is no such token, dead or alive.
        let own = try bench.token(2, [(0, 8)])
        #expect(bench.write(own, 3, [(0, 8)], on: bench.beta).refusedToken(.tokenUnknown))
        #expect(bench.write(own, 1, [(0, 8)], on: bench.beta).refusedToken(.tokenUnknown))
        #expect(bench.write(own, 1, [(0, 8)], delete: true).isGood)
        #expect(bench.write(own, 1, [(0, 8)], on: bench.beta).refusedToken(.tokenUnknown))
        #expect(bench.write(own, 1, [(0, 8)]).refusedToken(.tokenDeleted))
    }

    @Test func resultsAreTheSessionsOwn() throws {
        let bench = try TokenBench()
        _ = try bench.token(0, [(0, 8)])
        let other = bench.bench.send(
            .token(.information(listIdentifier: 7, allocationLength: 1024)), on: bench.beta)
        #expect(other.refused(cdbByte: 2))
        #expect(try bench.information().token != nil)
    }

    @Test func whatIsReported() throws {
        let bench = try TokenBench()
        func all(_ nexus: Nexus) throws -> Set<[UInt8]> {
            let outcome = bench.bench.send(.token(.reportAll(allocationLength: 1 << 20)), on: nexus)
            return Set(try AllRODTokens.decode(outcome.dataIn))
        }
        let shared = try bench.token(0, [(0, 8)])
        let own = try bench.token(2, [(0, 8)])
        let heads = [shared, own].map { Array($0.prefix(96)) }
        #expect(try all(bench.alpha) == Set(heads))
        #expect(try all(bench.beta) == [heads[0]])
        // What is reported is not enough to use it.
        let forged = heads[0] + [UInt8](repeating: 0, count: 416)
        #expect(bench.write(forged, 1, [(0, 8)]).refusedToken(.tokenCorrupt))
        #expect(bench.write(shared, 1, [(0, 8)], delete: true).isGood)
        #expect(try all(bench.alpha) == [heads[1]])
    }

    // MARK: How long

    @Test func inactivity() throws {
        let bench = try TokenBench()
        let short = try bench.token(0, [(0, 8)], timeout: 10)
        let long = try bench.token(0, [(0, 8)])
        bench.pass(seconds: 9)
        #expect(bench.write(short, 1, [(0, 8)]).isGood)
        // Each use begins the time anew.
        bench.pass(seconds: 9)
        #expect(bench.write(short, 1, [(0, 8)]).isGood)
        bench.pass(seconds: 10)
        #expect(bench.write(short, 1, [(0, 8)]).refusedToken(.tokenExpired))
        #expect(bench.write(long, 1, [(0, 8)]).isGood)
        bench.pass(seconds: UInt64(BridgeLimits.tokenDefaultSeconds) - 1)
        #expect(bench.write(long, 1, [(0, 8)]).isGood)
        bench.pass(seconds: UInt64(BridgeLimits.tokenDefaultSeconds))
        #expect(bench.write(long, 1, [(0, 8)]).refusedToken(.tokenExpired))
        // The most that is told, and one more.
        var list = PopulateTokenList(TokenBench.ranges([(0, 1)]))
        list.inactivityTimeout = BridgeLimits.tokenSeconds.upperBound
        #expect(bench.populate(0, list).isGood)
        list.inactivityTimeout += 1
        #expect(bench.populate(0, list).refused(listByte: 4))
    }

    @Test func noneExpiresInUse() throws {
        let held = FaultyStore(size: 64 << 10)
        var stores: [any BlockStore] = (0..<6).map { MemoryStore(pattern: 64 << 10, seed: UInt64($0)) }
        stores[0] = held
        let bench = try TokenBench(stores)
        let token = try bench.token(0, [(0, 8)], timeout: 10)
        held.hold()
        let running = Running(bench.bench.device, bench.writeTask(token, 1, [(0, 8)]))
        held.awaitHeld()
        bench.pass(seconds: 100)
        // Another one is made, which sorts out what has ended.
        _ = try bench.token(1, [(0, 8)])
        held.release()
        #expect(running.end().isGood)
        bench.pass(seconds: 9)
        #expect(bench.write(token, 1, [(0, 8)]).isGood)
        bench.pass(seconds: 10)
        #expect(bench.write(token, 1, [(0, 8)]).refusedToken(.tokenExpired))
    }

    @Test func deletion() throws {
        let bench = try TokenBench()
        let token = try bench.token(0, [(0, 8)])
        // A command that did not succeed deletes nothing.
        #expect(!bench.write(token, 1, [(0, 9)], delete: true).isGood)
        #expect(bench.write(token, 1, [(0, 4)]).isGood)
        #expect(bench.write(token, 1, [(0, 4)], delete: true).isGood)
        #expect(bench.write(token, 1, [(0, 4)]).refusedToken(.tokenDeleted))
    }

    @Test func bounds() throws {
        let bench = try TokenBench()
        let list = PopulateTokenList(TokenBench.ranges([(0, 1)]))
        for _ in 0..<BridgeLimits.tokensOfInitiator { #expect(bench.populate(0, list).isGood) }
        let full = bench.populate(0, list)
        #expect(full.failed(.illegalRequest, .insufficientResourcesToCreateRODToken))
        // Another session of the same initiator is no other initiator; the other one has its own.
        let again = Nexus(
            initiatorName: TokenBench.alpha.uppercased(), sessionIdentifier: 9, authenticatedName: nil)
        bench.bench.device.openNexus(again)
        _ = bench.bench.send(.testUnitReady, on: again)
        #expect(
            bench.populate(0, list, on: again).failed(
                .illegalRequest, .insufficientResourcesToCreateRODToken))
        #expect(bench.populate(0, list, on: bench.beta).isGood)
        // Expired ones make room.
        bench.pass(seconds: UInt64(BridgeLimits.tokenDefaultSeconds))
        #expect(bench.populate(0, list).isGood)
    }

    @Test func boundOfAll() throws {
        let bench = try TokenBench()
        let list = PopulateTokenList(TokenBench.ranges([(0, 1)]))
        for number in 0..<BridgeLimits.tokens {
            let name = "iqn.2026-01.net.example:\(number / BridgeLimits.tokensOfInitiator)"
            let nexus = Nexus(
                initiatorName: name, sessionIdentifier: UInt64(100 + number), authenticatedName: nil)
            bench.bench.device.openNexus(nexus)
            _ = bench.bench.send(.testUnitReady, on: nexus)
            #expect(bench.populate(0, list, on: nexus).isGood)
            // A token outlives the session that made it.
            bench.bench.device.closeNexus(nexus)
        }
        #expect(
            bench.populate(0, list).failed(.illegalRequest, .insufficientResourcesToCreateRODToken))
    }

    // MARK: What ends it

    @Test func reset() throws {
        let bench = try TokenBench()
        let zero = try bench.token(0, [(0, 8)], type: .accessUponReference)
        let one = try bench.token(1, [(0, 8)])
        bench.bench.device.resetLogicalUnit(LogicalUnitNumber(0)!, from: bench.alpha)
        for unit in 0..<7 { _ = bench.bench.send(.testUnitReady, unit, on: bench.alpha) }
        #expect(bench.write(zero, 1, [(50, 8)]).refusedToken(.tokenRevoked))
        #expect(bench.write(one, 0, [(50, 8)]).isGood)
    }

    /// Every command that changes represented blocks ends a token of an instant, and none that changes others.
    @Test func changes() throws {
        let bench = try TokenBench()
        let block = [UInt8](repeating: 0x5A, count: 512)
        let old = try bench.bench.device.units[0].store.bytes(at: 20 * 512, count: 512)
        func transfer(_ lba: UInt64) -> BlockTransfer {
            BlockTransfer(.sixteen, lba: LBA(lba), count: BlockCount(1))
        }
        func xcopy(_ lba: UInt64) -> [UInt8] {
            CopyParameterList(
                listIdentifier: 1, cscds: [bench.bench.cscd(0), bench.bench.cscd(1)],
                segments: [
                    SegmentDescriptor(
                        source: 1, sourceLBA: LBA(0), destination: 0, destinationLBA: LBA(lba),
                        amount: .blocks(1, ofDestination: false))
                ]
            ).encoded()
        }
        func zeros(_ lba: UInt64) -> [UInt8] {
            WriteUsingTokenList(
                token: RODToken.blockDeviceZero, TokenBench.ranges([(lba, 1)])
            ).encoded()
        }
        let commands: [(String, (UInt64) -> (Command, [UInt8]))] = [
            ("WRITE", { (.write(transfer($0)), block) }),
            ("WRITE SAME", { (.writeSame16(WriteSame(lba: LBA($0), count: BlockCount(1))), block) }),
            (
                "WRITE SAME of zeros",
                { (.writeSame16(WriteSame(lba: LBA($0), count: BlockCount(1), noDataOut: true)), []) }
            ),
            (
                "UNMAP",
                {
                    let list = UnmapList([.init(lba: LBA($0), count: BlockCount(1))]).encoded()
                    return (.block(.unmap(anchor: false, parameterListLength: list.count)), list)
                }
            ),
            ("ORWRITE", { (.block(.orWrite(transfer($0))), block) }),
            (
                "EXTENDED COPY",
                { (.extendedCopy(parameterListLength: xcopy($0).count), xcopy($0)) }
            ),
            (
                "WRITE USING TOKEN",
                {
                    let list = zeros($0)
                    return (.token(.write(listIdentifier: 99, parameterListLength: list.count)), list)
                }
            ),
        ]
        for (name, command) in commands {
            let token = try bench.token(0, [(20, 1), (30, 2)])
            let other = try bench.token(0, [(40, 1)])
            for lba: UInt64 in [19, 21, 29, 32] {
                let (command, data) = command(lba)
                #expect(bench.bench.send(command, data: data, on: bench.alpha).isGood, "\(name)")
            }
            #expect(bench.write(token, 1, [(0, 3)]).isGood, "\(name) elsewhere")
            let (command, data) = command(31)
            #expect(bench.bench.send(command, data: data, on: bench.alpha).isGood, "\(name)")
            #expect(bench.write(token, 1, [(0, 1)]).refusedToken(.tokenRevoked), "\(name)")
            #expect(bench.write(other, 1, [(0, 1)]).isGood, "\(name)")
        }
        // A comparison that fails changes nothing, one that holds does.
        let token = try bench.token(0, [(20, 1)])
        func compare(_ bytes: [UInt8]) -> SCSIOutcome {
            bench.bench.send(.block(.compareAndWrite(transfer(20))), data: bytes + block, on: bench.alpha)
        }
        #expect(!compare(block).isGood)
        #expect(bench.write(token, 1, [(0, 1)]).isGood)
        #expect(compare(old).isGood)
        #expect(bench.write(token, 1, [(0, 1)]).refusedToken(.tokenRevoked))
    }

    @Test func accessUponReferenceSeesWhatIsThere() throws {
        let bench = try TokenBench()
        // Asked for, of a read-only unit over the bytes of another, and of one that is not locked.
        let tokens = [
            try bench.token(0, [(3, 1)], type: .accessUponReference), try bench.token(4, [(3, 1)]),
            try bench.token(5, [(3, 1)]),
        ]
        #expect(
            try tokens.map { try RODToken(decoding: $0).type } == [
                .accessUponReference, .accessUponReference, .accessUponReference,
            ])
        #expect(try RODToken(decoding: bench.token(0, [(9, 1)])).type == .pointInTimeChangeVulnerable)
        for unit in [0, 5] { #expect(bench.overwrite(unit, 3).isGood) }
        for token in tokens {
            #expect(bench.write(token, 1, [(8, 1)]).isGood)
            #expect(
                try bench.bench.device.units[1].store.bytes(at: 8 * 512, count: 512)
                    == [UInt8](repeating: 0x5A, count: 512))
        }
    }

    /// What changes while a WRITE USING TOKEN runs makes it fail, whatever of it was written.
    @Test func aChangeMeanwhile() throws {
        let held = FaultyStore(size: 64 << 10)
        var stores: [any BlockStore] = (0..<6).map { MemoryStore(pattern: 64 << 10, seed: UInt64($0)) }
        stores[1] = held
        let bench = try TokenBench(stores)
        let token = try bench.token(0, [(0, 8)])
        held.hold()
        let running = Running(bench.bench.device, bench.writeTask(token, 1, [(0, 8)]))
        held.awaitHeld()
        #expect(bench.overwrite(0, 7).isGood)
        held.release()
        #expect(running.end().refusedToken(.tokenRevoked))
        #expect(try bench.information(8, 1).report.status == .failed)
    }

    /// A write ends a token before its first byte is there to be read.
    @Test func aChangeThatBegins() throws {
        let held = FaultyStore(size: 64 << 10)
        var stores: [any BlockStore] = (0..<6).map { MemoryStore(pattern: 64 << 10, seed: UInt64($0)) }
        stores[0] = held
        let bench = try TokenBench(stores)
        _ = try bench.token(0, [(0, 8)])
        held.hold()
        let write = bench.bench.task(
            Command.write(BlockTransfer(.sixteen, lba: LBA(5), count: BlockCount(1))).encoded(),
            data: [UInt8](repeating: 1, count: 512), on: bench.alpha)
        let running = Running(bench.bench.device, write)
        held.awaitHeld()
        #expect(bench.bench.device.tokens.all(of: bench.bench.device.units).isEmpty)
        held.release()
        #expect(running.end().isGood)
    }

    /// A token waits for a write that is under way, so that its instant lies behind it.
    @Test func aChangeThatIsUnderWay() throws {
        let held = FaultyStore(size: 64 << 10)
        var stores: [any BlockStore] = (0..<6).map { MemoryStore(pattern: 64 << 10, seed: UInt64($0)) }
        stores[0] = held
        let bench = try TokenBench(stores)
        held.hold()
        let write = bench.bench.task(
            Command.write(BlockTransfer(.sixteen, lba: LBA(5), count: BlockCount(1))).encoded(),
            data: [UInt8](repeating: 1, count: 512), on: bench.alpha)
        let writing = Running(bench.bench.device, write)
        held.awaitHeld()
        let list = PopulateTokenList(TokenBench.ranges([(0, 8)])).encoded()
        let populate = bench.bench.task(
            Command.token(.populate(listIdentifier: 7, parameterListLength: list.count)).encoded(),
            data: list,
            on: bench.alpha)
        let populating = Running(bench.bench.device, populate)
        let watch = bench.bench.device.units[0].watch
        while !watch.isAwaited, populating.isRunning {}
        #expect(watch.isAwaited && populating.isRunning)
        held.release()
        #expect(writing.end().isGood && populating.end().isGood)
        let token = try #require(try bench.information().token)
        #expect(bench.write(token, 1, [(0, 8)]).isGood)
        #expect(
            try bench.bench.device.units[1].store.bytes(at: 5 * 512, count: 512)
                == [UInt8](repeating: 1, count: 512))
        // A write elsewhere is no change of it.
        #expect(bench.overwrite(0, 20).isGood && bench.write(token, 1, [(0, 8)]).isGood)
    }

    /// A copy that goes on revokes a token of what it writes, behind the units' stores, and nobody waits for it.
    @Test func aCopyThatIsUnderWay() throws {
        let mover = IdleMover()
        let bench = try TokenBench(
            (0..<6).map { MemoryStore(pattern: 64 << 10, seed: UInt64($0)) }, mover: mover)
        let before = try bench.token(0, [(23, 2)])
        let elsewhere = try bench.token(0, [(0, 8)])
        let segments = [(0, 100), (8, 20)].map { (source: Int, target: Int) in
            SegmentDescriptor(
                source: 0, sourceLBA: LBA(UInt64(source)), destination: 1,
                destinationLBA: LBA(UInt64(target)),
                amount: .blocks(4, ofDestination: false))
        }
        let list = CopyParameterList(
            listIdentifier: 1, cscds: [bench.bench.cscd(1), bench.bench.cscd(0)], segments: segments)
        mover.hold()
        let copying = Running(bench.bench.device, bench.bench.copyTask(list, on: bench.beta))
        mover.awaitHeld()
        let within = try bench.token(0, [(102, 1)])
        let beside = try bench.token(0, [(104, 1), (24, 1), (19, 1)])
        mover.release()
        #expect(copying.end().isGood)
        for token in [before, within] { #expect(bench.write(token, 1, [(0, 1)]).refusedToken(.tokenRevoked)) }
        for token in [elsewhere, beside] { #expect(bench.write(token, 1, [(0, 1)]).isGood) }
        #expect(bench.write(try bench.token(0, [(102, 1)]), 1, [(0, 1)]).isGood)
    }

    /// What two uses of one token copied while others wrote is the same, and was there at one instant.
    @Test(arguments: [1, 2, 3] as [UInt64]) func oneInstantAmongWrites(seed: UInt64) throws {
        let bench = try TokenBench()
        let blocks = 6
        let source = bench.bench.device.units[0].store
        try source.write([UInt8](repeating: 0, count: blocks * 512), at: 0)
        var random = SeededGenerator(seed: seed)
        // Blocks are overwritten one after another, again and again, each time with the next number.
        var next = 0
        var (taken, refused) = (0, 0)
        for _ in 0..<300 {
            let count = Int(random.next() % 4)
            let first = next
            let writer = Monitor(false)
            let started = BlockingThread.start {
                for number in first..<first + count {
                    let transfer = BlockTransfer(
                        .sixteen, lba: LBA(UInt64(number % blocks)), count: BlockCount(1))
                    let version = UInt8(truncatingIfNeeded: number / blocks + 1)
                    let outcome = bench.bench.send(
                        .write(transfer), data: [UInt8](repeating: version, count: 512), on: bench.beta)
                    #expect(outcome.isGood)
                }
                writer.withLockAndNotify { $0 = true }
            }
            precondition(started, "no thread for a test")
            let token = try bench.token(0, [(0, UInt64(blocks))])
            var copies: [[UInt8]] = []
            for _ in 0..<2 {
                let outcome = bench.write(token, 1, [(0, UInt64(blocks))])
                if outcome.isGood {
                    copies.append(try bench.bench.device.units[1].store.bytes(at: 0, count: blocks * 512))
                } else {
                    #expect(outcome.refusedToken(.tokenRevoked))
                    refused += 1
                }
            }
            writer.wait { $0 ? () : nil }
            next += count
            for copy in copies {
                taken += 1
                let versions = (0..<blocks).map { copy[$0 * 512] }
                for block in 0..<blocks {
                    #expect(copy[block * 512..<(block + 1) * 512].allSatisfy { $0 == versions[block] })
                }
                // Newer ones first, and at most one step from the newest to the oldest.
                let steps = zip(versions, versions.dropFirst()).count { $0 != $1 }
                #expect(steps <= 1 && versions[0] &- versions[blocks - 1] <= 1, "\(versions)")
            }
            if copies.count == 2 { #expect(copies[0] == copies[1]) }
            // Its end is not the next one's business.
            _ = bench.write(token, 1, [(0, 0)], delete: true)
        }
        // Rounds without writes there were for certain.
        #expect(taken > 0 && taken + refused == 600)
    }

    @Test func ontoItself() throws {
        let bench = try TokenBench()
        let token = try bench.token(0, [(0, 8)])
        #expect(bench.write(token, 0, [(20, 1), (7, 1)]).refused(listByte: 552))
        #expect(bench.write(token, 0, [(20, 8)]).isGood)
        // Of what is there when it is read, order is kept as EXTENDED COPY keeps it.
        let now = try bench.token(0, [(0, 8)], type: .accessUponReference)
        let before = try bench.bench.device.units[0].store.bytes(at: 0, count: 4096)
        #expect(bench.write(now, 0, [(1, 8)]).isGood)
        #expect(try bench.bench.device.units[0].store.bytes(at: 512, count: 4096) == before)
    }

    // MARK: Reservations

    @Test func reservationsOfOthers() throws {
        let bench = try TokenBench()
        let token = try bench.token(0, [(0, 8)])
        func reserve(_ unit: Int, _ type: ReservationType) {
            let steps: [(PersistentReserveOut, ReservationParameters)] = [
                (PersistentReserveOut(.register), ReservationParameters(key: 0, serviceActionKey: 5)),
                (PersistentReserveOut(.reserve, type: type), ReservationParameters(key: 5)),
            ]
            for (fields, parameters) in steps {
                let outcome = bench.bench.send(
                    .reservation(.persistentOut(fields)), unit, data: parameters.encoded(), on: bench.beta)
                #expect(outcome.isGood)
            }
        }
        // Exclusive access to the source: neither made nor read.
        reserve(0, .exclusiveAccess)
        #expect(
            bench.populate(0, PopulateTokenList(TokenBench.ranges([(0, 1)]))).status == .reservationConflict)
        #expect(bench.write(token, 1, [(0, 8)]).status == .reservationConflict)
        // Write exclusive at the destination: not written; at a source: read all the same.
        let other = try bench.token(2, [(0, 8)])
        reserve(1, .writeExclusive)
        #expect(bench.write(other, 1, [(0, 8)]).status == .reservationConflict)
        #expect(bench.populate(1, PopulateTokenList(TokenBench.ranges([(0, 1)]))).isGood)
        #expect(bench.write(token, 1, [(0, 8)], on: bench.beta).isGood)
    }
}
