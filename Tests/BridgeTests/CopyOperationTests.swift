import Blocks
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// Two units, of which the source's reads can be held; a copy has `steps` segments of one step of the serial mover.
struct HeldCopy {
    static let step = BridgeLimits.serialBuffer
    let source: FaultyStore
    let target: MemoryStore
    let bench: Bench
    let time = Monitor<UInt64>(1)
    let lines = LogLines()
    let steps: Int

    init(steps: Int) throws {
        self.steps = steps
        source = FaultyStore(size: steps * Self.step)
        target = MemoryStore(size: steps * Self.step)
        bench = try Bench(
            [Bench.unit(0, source), Bench.unit(1, target)], logger: lines.logger,
            clock: DeviceClock { [time] in time.withLock { $0 } })
    }

    func list(
        _ identifier: UInt32, immediate: Bool = false, sense: Bool = false,
        usage: CopyParameterList.ListIDUsage = .hold
    ) -> CopyParameterList {
        let blocks = UInt64(Self.step / 512)
        var list = CopyParameterList(
            longListIdentifier: identifier, usage: usage, cscds: [bench.cscd(0), bench.cscd(1)],
            segments: (0..<UInt64(steps)).map {
                SegmentDescriptor(
                    source: 0, sourceLBA: LBA($0 * blocks), destination: 1, destinationLBA: LBA($0 * blocks),
                    amount: .bytes(UInt32(Self.step), sourceOffset: 0, destinationOffset: 0))
            })
        list.isImmediate = immediate
        list.wantsSense = sense
        return list
    }

    /// Passes the time for which results are held, less `seconds`.
    func pass(but seconds: UInt64 = 0) {
        time.withLock { $0 += (BridgeLimits.resultsHeldSeconds - seconds) * 1_000_000_000 }
    }

    /// Waits for the end of an operation in the background.
    func awaitEnd(_ identifier: UInt32) throws -> CopyOperationReport {
        while true {
            let report = try bench.report(identifier)
            if !report.status.isInProgress { return report }
        }
    }
}

@Suite struct CopyOperationTests {
    @Test func inTheForeground() throws {
        let held = try HeldCopy(steps: 3)
        held.source.hold()
        let copy = Running(held.bench.device, held.bench.copyTask(held.list(0x1234_5678)))
        for done in 0..<3 {
            held.source.awaitHeld()
            let report = try held.bench.report(0x1234_5678)
            #expect(report.status == .inForeground && report.serviceAction == 0x01)
            #expect(report.segmentsProcessed == UInt16(done))
            #expect(report.transferCount == UInt64(done * HeldCopy.step) && report.transferCountUnits == 0)
            #expect(report.updateDelay < CopyOperationReport.noMoreUpdates)
            held.source.letOne()
        }
        #expect(copy.end().isGood)
        // Told as often as it is asked for.
        for _ in 0..<2 {
            let report = try held.bench.report(0x1234_5678)
            #expect(report.status == .completed && report.segmentsProcessed == 3)
            #expect(report.completionStatus == 0 && report.sense.isEmpty)
            #expect(report.updateDelay == CopyOperationReport.noMoreUpdates)
        }
        #expect(held.bench.status(0x1234_5679).refused(cdbByte: 2))
    }

    @Test func inTheBackground() throws {
        let held = try HeldCopy(steps: 3)
        held.source.hold()
        // Answered before a byte is moved.
        #expect(held.bench.copy(held.list(7, immediate: true)).isGood)
        held.source.awaitHeld()
        #expect(try held.bench.report(7).status == .inBackground)
        #expect(held.bench.copy(held.list(7)).failed(.illegalRequest, .operationInProgress))
        #expect(held.bench.results(.copyStatus, 7).isGood, "identifiers are of one space")
        held.source.release()
        let report = try held.awaitEnd(7)
        #expect(report.status == .completed && report.segmentsProcessed == 3)
        #expect(try held.target.all == held.source.all)
        held.bench.device.close()
        #expect(held.lines.all.last?["result"] == "done" && held.lines.all.last?["list"] == "7")
    }

    @Test func aFailureInTheBackgroundIsHeld() throws {
        let held = try HeldCopy(steps: 3)
        held.source.fail(at: UInt64(HeldCopy.step + 5), .io)
        #expect(held.bench.copy(held.list(7, immediate: true)).isGood)
        let report = try held.awaitEnd(7)
        #expect(report.status == .failed && report.completionStatus == 2 && report.segmentsProcessed == 1)
        let sense = try #require(SenseData(decoding: report.sense))
        #expect(sense.key == .copyAborted && sense.code == .thirdPartyDeviceFailure)
        #expect(sense.commandSpecificInformation == 1)
        // What is wrong with the list is told at once.
        var bad = held.list(8, immediate: true)
        bad.segments[2].destination = 2
        #expect(held.bench.copy(bad).failed(.copyAborted, .unreachableCopyTarget))
        #expect(try held.bench.report(8).status == .failed)
    }

    @Test func abortEndsItAndNothingRunsOn() throws {
        let held = try HeldCopy(steps: 50)
        for isImmediate in [false, true] {
            held.source.hold()
            let before = held.source.operations
            let copy = Running(
                held.bench.device, held.bench.copyTask(held.list(9, immediate: isImmediate)))
            held.source.awaitHeld()
            let abort = Running(
                held.bench.device, held.bench.task(Command.copy(.abort(listIdentifier: 9)).encoded()))
            held.awaitTerminated(9)
            #expect(abort.isRunning, "it waits for the copy")
            held.source.release()
            #expect(abort.end().isGood)
            let operations = held.source.operations
            #expect(operations - before == 1)
            if isImmediate {
                #expect(copy.end().isGood)
            } else {
                #expect(copy.end().failed(.copyAborted, .commandsClearedByDeviceServer))
            }
            let report = try held.bench.report(9)
            #expect(report.status == .terminated && report.completionStatus == 2)
            #expect(report.transferCount == UInt64((operations - before) * HeldCopy.step))
            #expect(held.bench.abortCopy(9).refused(cdbByte: 2), "it does not run")
            #expect(held.source.operations == operations)
        }
        #expect(held.bench.abortCopy(10).refused(cdbByte: 2))
    }

    @Test func identifiersAreTheNexusOwn() throws {
        let held = try HeldCopy(steps: 2)
        let other = Bench.makeNexus(2)
        held.bench.device.openNexus(other)
        _ = held.bench.send(.testUnitReady, on: other)
        held.source.hold()
        #expect(held.bench.copy(held.list(5, immediate: true)).isGood)
        held.source.awaitHeld()
        #expect(held.bench.status(5, on: other).refused(cdbByte: 2))
        #expect(held.bench.abortCopy(5, on: other).refused(cdbByte: 2))
        #expect(held.bench.copy(held.list(5, immediate: true), on: other).isGood)
        held.source.awaitHeld(2)
        held.source.release()
        #expect(try held.awaitEnd(5).status == .completed)
    }

    @Test func identifiersAreTheUnitsOwn() throws {
        let held = try HeldCopy(steps: 2)
        held.source.hold()
        #expect(held.bench.copy(held.list(5, immediate: true), 0).isGood)
        #expect(held.bench.status(5, 1).refused(cdbByte: 2))
        #expect(held.bench.copy(held.list(5, immediate: true), 1).isGood)
        #expect(
            held.bench.copy(held.list(5, immediate: true), 1).failed(.illegalRequest, .operationInProgress))
        held.source.awaitHeld(2)
        held.source.release()
        #expect(try held.awaitEnd(5).status == .completed && held.bench.status(5, 1).isGood)
        held.bench.device.close()
    }

    @Test func backgroundEndsWithItsNexusAndWithTheDevice() throws {
        let held = try HeldCopy(steps: 50)
        held.source.hold()
        let other = Bench.makeNexus(2)
        held.bench.device.openNexus(other)
        _ = held.bench.send(.testUnitReady, on: other)
        #expect(held.bench.copy(held.list(1, immediate: true)).isGood)
        #expect(held.bench.copy(held.list(1, immediate: true), on: other).isGood)
        held.source.awaitHeld(2)
        let closing = Monitor(false)
        BlockingThread.start {
            held.bench.device.closeNexus(held.bench.nexus)
            closing.withLockAndNotify { $0 = true }
        }
        // It waits for the operation, which waits for its read.
        held.awaitClosed(held.bench.nexus)
        #expect(!closing.withLock { $0 })
        held.source.release()
        closing.wait { $0 ? () : nil }
        #expect(try held.awaitEnd(1, on: other).status == .completed)
        held.source.hold()
        #expect(held.bench.copy(held.list(2, immediate: true), on: other).isGood)
        held.source.awaitHeld()
        let before = held.source.operations
        let states = held.bench.device.nexusStates
        BlockingThread.start {
            while !states.allSatisfy(\.isClosed) {}
            held.source.release()
        }
        held.bench.device.close()
        #expect(held.source.operations - before == 1)
        #expect(held.lines.all.last?["result"] == "aborted")
    }

    @Test func aResetEndsWhatReadsOrWritesTheUnit() throws {
        for (asked, reset, isImmediate) in [(0, 0, true), (0, 1, true), (0, 1, false), (1, 0, false)] {
            let held = try HeldCopy(steps: 50)
            held.source.hold()
            let copy = Running(
                held.bench.device, held.bench.copyTask(held.list(1, immediate: isImmediate), asked))
            held.source.awaitHeld()
            let done = Monitor(false)
            BlockingThread.start {
                held.bench.device.resetLogicalUnit(LogicalUnitNumber(reset)!, from: held.bench.nexus)
                done.withLockAndNotify { $0 = true }
            }
            held.awaitAborted(at: reset)
            held.source.release()
            done.wait { $0 ? () : nil }
            let operations = held.source.operations
            #expect(operations <= 1)
            #expect(copy.end().status == (isImmediate ? .good : .taskAborted))
            #expect(held.source.operations == operations)
            #expect(held.lines.all.last?["result"] == "aborted")
        }
    }

    @Test func resultsAreHeldForTheirTime() throws {
        let held = try HeldCopy(steps: 1)
        #expect(held.bench.copy(held.list(1)).isGood)
        held.pass(but: 1)
        #expect(try held.bench.report(1).status == .completed)
        held.time.withLock { $0 += 1_000_000_000 }
        #expect(held.bench.status(1).refused(cdbByte: 2))
        // While it runs, no time is too long.
        held.source.hold()
        #expect(held.bench.copy(held.list(2, immediate: true)).isGood)
        held.source.awaitHeld()
        held.pass()
        #expect(try held.bench.report(2).status == .inBackground)
        held.source.release()
        _ = try held.awaitEnd(2)
        held.pass(but: 1)
        #expect(held.bench.status(2).isGood)
    }

    @Test func asManyResultsAreHeldAsMayBe() throws {
        let held = try HeldCopy(steps: 1)
        held.source.hold()
        #expect(held.bench.copy(held.list(0, immediate: true)).isGood)
        held.source.awaitHeld()
        var empty = held.list(0)
        empty.segments = []
        for identifier in 1...UInt32(BridgeLimits.heldResults) {
            held.time.withLock { $0 += 1 }
            empty.listIdentifier = identifier
            #expect(held.bench.copy(empty).isGood)
        }
        #expect(held.bench.status(0).isGood && held.bench.status(1).refused(cdbByte: 2))
        #expect(held.bench.status(2).isGood && held.bench.status(UInt32(BridgeLimits.heldResults)).isGood)
        held.source.release()
    }

    @Test func goodWithSense() throws {
        let held = try HeldCopy(steps: 3)
        #expect(held.bench.copy(held.list(1)).sense.isEmpty)
        let outcome = held.bench.copy(held.list(1, sense: true))
        let sense = try #require(SenseData(decoding: outcome.sense))
        #expect(outcome.isGood && sense.key == .completed && sense.code == .extendedCopyInformationAvailable)
        #expect(sense.commandSpecificInformation == 3)
    }

    @Test func listIdentifierUsage() throws {
        let held = try HeldCopy(steps: 1)
        for usage in [CopyParameterList.ListIDUsage.hold, .discard] {
            #expect(held.bench.copy(held.list(3, usage: usage)).isGood)
            #expect(try held.bench.report(3).status == .completed)
        }
        #expect(held.bench.copy(held.list(0, usage: .none)).isGood)
        #expect(held.bench.status(0).refused(cdbByte: 2))
        func pointer(_ list: [UInt8]) -> SenseKeySpecific? {
            let cdb = Command.copy(.extendedCopy(parameterListLength: list.count)).encoded()
            let outcome = held.bench.device.execute(held.bench.task(cdb, data: list))
            #expect(outcome.failed(.illegalRequest, .invalidFieldInParameterList))
            return outcome.senseData?.specific
        }
        #expect(
            pointer(held.list(3, usage: .none).encoded())
                == .fieldPointer(inCDB: false, byte: 20, bit: nil))
        #expect(
            pointer(held.list(0, immediate: true, usage: .none).encoded())
                == .fieldPointer(inCDB: false, byte: 15, bit: 0))
        var reserved = held.list(0).encoded()
        reserved[1] = 0x08
        #expect(pointer(reserved) == .fieldPointer(inCDB: false, byte: 1, bit: 4))
    }

    @Test func anAbortBeforeItGoesToTheBackgroundIsNotLost() throws {
        let held = try HeldCopy(steps: 3)
        let task = held.bench.copyTask(held.list(1, immediate: true))
        task.abort()
        _ = held.bench.device.execute(task)
        #expect(try held.awaitEnd(1).status == .terminated)
        held.bench.device.close()
        #expect(held.source.operations == 0 && held.lines.all.last?["result"] == "aborted")
    }

    @Test func theCommandIsNotKeptInTheBackground() throws {
        let held = try HeldCopy(steps: 1)
        held.source.hold()
        weak var command: SCSITask?
        do {
            let task = held.bench.copyTask(held.list(1, immediate: true))
            command = task
            #expect(held.bench.device.execute(task).isGood)
        }
        held.source.awaitHeld()
        #expect(command == nil)
        held.source.release()
        _ = try held.awaitEnd(1)
        held.bench.device.close()
    }

    @Test func longerListsThanTheLimitsAllowAreRefused() throws {
        let held = try HeldCopy(steps: 1)
        let bench = held.bench
        func send(_ list: [UInt8], _ count: Int, _ command: (Int) -> Command) -> SCSIOutcome {
            bench.send(command(count), data: list + [UInt8](repeating: 0, count: count - list.count))
        }
        let range = BlockDeviceRange(lba: LBA(0), count: BlockCount(1))
        let short = CopyParameterList(
            listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)], segments: held.list(1).segments)
        for (list, most, command) in [
            (
                short.encoded(), 16 + BridgeLimits.descriptorListBytes,
                { Command.extendedCopy(parameterListLength: $0) }
            ),
            (
                held.list(1).encoded(), 48 + BridgeLimits.descriptorListBytes,
                { .copy(.extendedCopy(parameterListLength: $0)) }
            ),
            (
                PopulateTokenList([range]).encoded(), 16 + 16 * BridgeLimits.tokenRanges,
                { .token(.populate(listIdentifier: 1, parameterListLength: $0)) }
            ),
            (
                WriteUsingTokenList(token: RODToken.blockDeviceZero, [range]).encoded(),
                536 + 16 * BridgeLimits.tokenRanges,
                { .token(.write(listIdentifier: 1, parameterListLength: $0)) }
            ),
        ] as [([UInt8], Int, (Int) -> Command)] {
            #expect(send(list, most, command).isGood, "\(command(most))")
            #expect(
                send(list, most + 1, command).failed(.illegalRequest, .parameterListLengthError),
                "\(command(most))")
        }
    }

    @Test func writeProtectionEndsCopiesToTheUnit() throws {
        for isImmediate in [true, false] {
            let held = try HeldCopy(steps: 50)
            held.source.hold()
            let copy = Running(
                held.bench.device, held.bench.copyTask(held.list(1, immediate: isImmediate)))
            held.source.awaitHeld()
            let list = ModeParameterList.encode([.control(softwareWriteProtect: true)], form: .six)
            let select = Command.modeSelect(ModeSelect(.six, parameterListLength: list.count)).encoded()
            // That of the source matters to nobody's writes.
            #expect(held.bench.device.execute(held.bench.task(select, 0, data: list)).isGood)
            let protecting = Running(held.bench.device, held.bench.task(select, 1, data: list))
            while held.bench.device.units[1].writeProtection == nil {}
            #expect(protecting.isRunning, "it waits for the copy")
            held.source.release()
            #expect(protecting.end().isGood)
            let operations = held.source.operations
            #expect(operations == 1)
            if isImmediate {
                #expect(copy.end().isGood)
            } else {
                #expect(copy.end().failed(.copyAborted, .softwareWriteProtected))
            }
            let report = try held.awaitEnd(1)
            #expect(report.status == .failed)
            #expect(SenseData(decoding: report.sense)?.code == .softwareWriteProtected)
            held.bench.device.close()
            #expect(held.source.operations == operations)
        }
    }

    @Test func refusedCommandsLeaveTheirLine() throws {
        let held = try HeldCopy(steps: 1)
        let other = Bench.makeNexus(2)
        held.bench.device.openNexus(other)
        for unit in 0...1 { _ = held.bench.send(.testUnitReady, unit, on: other) }
        var strange = held.list(5)
        strange.cscds[1].designation = .naaLocallyAssigned(0x123)
        #expect(held.bench.copy(strange, 1).failed(.copyAborted, .copyTargetDeviceNotReachable))
        var line = try #require(held.lines.all.last)
        #expect(line["unit"] == "1" && line["refused"] == "3000000000000123" && line["to"] == "-")
        #expect(held.bench.abortCopy(5).refused(cdbByte: 2))
        line = try #require(held.lines.all.last)
        #expect(line["message"] == "COPY OPERATION ABORT" && line["result"] == "nothing runs")
        #expect(held.bench.send(.reservation(.reserve6)).isGood)
        let list = held.list(6).encoded()
        for (command, message) in [
            (Command.copy(.extendedCopy(parameterListLength: list.count)), "EXTENDED COPY"),
            (.copy(.abort(listIdentifier: 6)), "COPY OPERATION ABORT"),
            (.token(.populate(listIdentifier: 6, parameterListLength: 0)), "POPULATE TOKEN"),
            (.token(.write(listIdentifier: 6, parameterListLength: 0)), "WRITE USING TOKEN"),
        ] {
            let count = held.lines.all.count
            #expect(held.bench.send(command, data: list, on: other).status == .reservationConflict)
            line = try #require(held.lines.all.last)
            #expect(held.lines.all.count == count + 1 && line["message"] == message)
            #expect(line["unit"] == "0" && line["result"] == "reservation conflict")
            #expect(line["refused"] == "-" && line["session"] == "2")
        }
    }

    @Test func backgroundCountsAmongThoseThatMayRun() throws {
        let held = try HeldCopy(steps: 1)
        held.source.hold()
        for identifier in 0..<UInt32(BridgeLimits.concurrentCopiesOfNexus) {
            #expect(held.bench.copy(held.list(identifier, immediate: true)).isGood)
        }
        #expect(held.bench.copy(held.list(1000, immediate: true)).status == .taskSetFull)
        #expect(held.lines.all.last?["result"] == "task set full")
        held.source.release()
        for identifier in 0..<UInt32(BridgeLimits.concurrentCopiesOfNexus) {
            #expect(try held.awaitEnd(identifier).status == .completed)
        }
        held.bench.device.close()
    }
}

extension HeldCopy {
    func awaitEnd(_ identifier: UInt32, on nexus: Nexus) throws -> CopyOperationReport {
        while true {
            let report = try bench.report(identifier, on: nexus)
            if !report.status.isInProgress { return report }
        }
    }

    /// Waits until the device knows the nexus no more.
    func awaitClosed(_ nexus: Nexus) {
        while bench.device.nexusStates.contains(where: { $0.nexus === nexus }) {}
    }

    /// Waits until COPY OPERATION ABORT has named an operation.
    func awaitTerminated(_ identifier: UInt32) {
        let unit = bench.device.units[0]
        while !bench.device.nexusStates.contains(where: {
            $0.find(identifier, at: unit)?.isTerminated == true
        }) {}
    }

    /// Waits until the copies at a unit are marked.
    func awaitAborted(at unit: Int) {
        while !bench.device.reservations.tasks(at: unit).contains(where: \.isAborted) {}
    }
}
