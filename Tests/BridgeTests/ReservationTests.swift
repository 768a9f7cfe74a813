import Blocks
import Foundation
import SCSI
import TestSupport
import Testing

@testable import Bridge

@Suite struct ReservationTests {
    private typealias Action = PersistentReserveOutAction

    /// Three initiator ports at two units.
    private struct Ports {
        let bench: Bench
        let nexuses: [Nexus]

        init() throws {
            bench = try Bench([
                Bench.unit(0, MemoryStore(size: 64 * 512)), Bench.unit(1, MemoryStore(size: 64 * 512)),
            ])
            nexuses = [bench.nexus, Bench.makeNexus(2), Bench.makeNexus(3)]
            for nexus in nexuses.dropFirst() { open(nexus) }
        }

        func open(_ nexus: Nexus) {
            bench.device.openNexus(nexus)
            for unit in 0...1 { _ = bench.send(.testUnitReady, unit, on: nexus) }
        }

        func out(
            _ port: Int, _ action: PersistentReserveOutAction, key: UInt64 = 0, action actionKey: UInt64 = 0,
            type: ReservationType? = nil
        ) -> SCSIOutcome {
            bench.send(
                .reservation(.persistentOut(PersistentReserveOut(action, type: type))),
                data: ReservationParameters(key: key, serviceActionKey: actionKey).encoded(),
                on: nexuses[port])
        }

        /// Registers each port under its number + 1.
        func register(_ ports: Int...) {
            for port in ports { #expect(out(port, .register, action: UInt64(port + 1)).isGood) }
        }

        func data(_ action: PersistentReserveInAction, _ port: Int = 0) -> [UInt8] {
            bench.send(.reservation(.persistentIn(action, allocationLength: 4096)), on: nexuses[port]).dataIn
        }

        func keys() -> [UInt8] {
            stride(from: 15, to: data(.readKeys).count, by: 8).map { data(.readKeys)[$0] }
        }

        func read(_ port: Int) -> SCSIStatus {
            bench.send(.read(BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1))), on: nexuses[port])
                .status
        }

        func write(_ port: Int) -> SCSIStatus {
            let transfer = BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1))
            return bench.send(.write(transfer), data: [UInt8](repeating: 1, count: 512), on: nexuses[port])
                .status
        }

        func attention(_ port: Int) -> AdditionalSenseCode? {
            bench.send(.testUnitReady, on: nexuses[port]).senseData?.code
        }
    }

    @Test func registrationsComeAndGo() throws {
        let ports = try Ports()
        #expect(ports.out(0, .register, key: 5, action: 1).status == .reservationConflict)
        #expect(
            ports.out(0, .register, action: 0).isGood
                && ports.data(.readKeys) == [UInt8](repeating: 0, count: 8))
        ports.register(0, 1)
        #expect(ports.keys() == [1, 2] && ports.data(.readKeys)[3] == 2)
        #expect(ports.out(0, .register, key: 9, action: 7).status == .reservationConflict)
        #expect(ports.out(0, .register, key: 1, action: 7).isGood && ports.keys() == [7, 2])
        #expect(
            ports.out(0, .registerAndIgnoreExistingKey, key: 99, action: 8).isGood && ports.keys() == [8, 2])
        // They outlive the session.
        let again = Bench.makeNexus(2)
        ports.bench.device.closeNexus(ports.nexuses[1])
        ports.open(again)
        #expect(ports.keys() == [8, 2])
        let status = ports.data(.readFullStatus)
        #expect(status[7] == UInt8(status.count - 8) && status[8 + 24] == 0x45)
        #expect(ports.out(0, .register, key: 8).isGood && ports.keys() == [2])
    }

    @Test func whoMayDoWhatUnderWhichType() throws {
        for type in ReservationType.allCases {
            let ports = try Ports()
            ports.register(0, 1)
            #expect(ports.out(2, .reserve, type: type).status == .reservationConflict, "not registered")
            #expect(ports.out(0, .reserve, key: 1, type: type).isGood)
            #expect(ports.out(0, .reserve, key: 1, type: type).isGood, "once more is no change")
            #expect(
                ports.out(1, .reserve, key: 2, type: type).isGood == type.isAllRegistrants, "held by another")
            let held = ports.data(.readReservation)
            #expect(held[7] == 16 && held[15] == (type.isAllRegistrants ? 0 : 1) && held[21] == type.rawValue)
            let admitted: SCSIStatus = type.admitsRegistrants ? .good : .reservationConflict
            let readers: SCSIStatus = type.excludesReads ? .reservationConflict : .good
            #expect(ports.read(0) == .good && ports.write(0) == .good, "\(type)")
            #expect(ports.read(1) == (type.admitsRegistrants ? .good : readers), "\(type)")
            #expect(ports.write(1) == admitted, "\(type)")
            #expect(ports.read(2) == readers && ports.write(2) == .reservationConflict, "\(type)")
            for command in [
                Command.testUnitReady, .readCapacity10, .inquiry(page: nil, allocationLength: 96),
            ] {
                #expect(ports.bench.send(command, on: ports.nexuses[2]).isGood)
            }
            #expect(ports.write(2) == .reservationConflict)
            #expect(
                ports.bench.send(.testUnitReady, 1, on: ports.nexuses[2]).isGood, "the other unit is free")
        }
    }

    /// Commands that are like a write in one form only, like a read, or like neither.
    @Test func whatOtherCommandsAreToAReservation() throws {
        let ports = try Ports()
        ports.register(0)
        let stranger = ports.nexuses[2]
        let always: [Command] = [
            .block(.startStop(start: true, loadOrEject: false, powerCondition: 0)),
            .block(.preventAllow(prevent: 0)),
            .receiveCopyResults(.operatingParameters, listIdentifier: 0, allocationLength: 64),
        ]
        let like: (reads: [Command], writes: [Command]) = (
            [.modeSense(ModeSense(.six, page: 0x3F, allocationLength: 255))],
            [
                .block(.startStop(start: false, loadOrEject: false, powerCondition: 0)),
                .block(.preventAllow(prevent: 1)), .copy(.abort(listIdentifier: 1)),
                .extendedCopy(parameterListLength: 0), .copy(.extendedCopy(parameterListLength: 0)),
            ]
        )
        for type in [ReservationType.writeExclusive, .exclusiveAccess] {
            #expect(ports.out(0, .reserve, key: 1, type: type).isGood)
            for command in always { #expect(ports.bench.send(command, on: stranger).isGood, "\(command)") }
            for command in like.reads {
                let status: SCSIStatus = type == .writeExclusive ? .good : .reservationConflict
                #expect(ports.bench.send(command, on: stranger).status == status, "\(command)")
            }
            for command in like.writes {
                #expect(ports.bench.send(command, on: stranger).status == .reservationConflict, "\(command)")
            }
            #expect(ports.out(0, .release, key: 1, type: type).isGood)
        }
        #expect(ports.out(0, .register, key: 1).isGood)
        #expect(ports.bench.send(.reservation(.reserve6)).isGood)
        #expect(
            ports.bench.send(always[0], on: stranger).isGood
                && ports.bench.send(always[1], on: stranger).isGood)
        #expect(ports.bench.send(like.reads[0], on: stranger).status == .reservationConflict)
    }

    @Test func releaseAndClearTellTheOthers() throws {
        let ports = try Ports()
        ports.register(0, 1)
        #expect(ports.out(0, .reserve, key: 1, type: .writeExclusiveRegistrantsOnly).isGood)
        #expect(ports.out(1, .release, key: 2, type: .writeExclusiveRegistrantsOnly).isGood, "not the holder")
        #expect(
            ports.out(0, .release, key: 1, type: .writeExclusive)
                .failed(.illegalRequest, .invalidReleaseOfPersistentReservation))
        #expect(ports.write(2) == .reservationConflict)
        #expect(ports.out(0, .release, key: 1, type: .writeExclusiveRegistrantsOnly).isGood)
        #expect(ports.attention(1) == .reservationsReleased && ports.attention(0) == nil)
        #expect(ports.write(2) == .good)
        #expect(ports.out(2, .clear, key: 0).status == .reservationConflict)
        #expect(ports.out(0, .clear, key: 1).isGood && ports.keys().isEmpty)
        #expect(ports.attention(1) == .reservationsPreempted && ports.attention(0) == nil)
    }

    @Test func holderThatUnregistersReleases() throws {
        let ports = try Ports()
        ports.register(0, 1)
        #expect(ports.out(0, .reserve, key: 1, type: .exclusiveAccessAllRegistrants).isGood)
        #expect(ports.out(0, .register, key: 1).isGood)
        #expect(ports.read(0) == .reservationConflict, "the other still holds it")
        #expect(ports.out(1, .register, key: 2).isGood && ports.read(0) == .good)
        ports.register(0, 1)
        #expect(ports.out(0, .reserve, key: 1, type: .exclusiveAccessRegistrantsOnly).isGood)
        #expect(ports.out(0, .register, key: 1).isGood)
        #expect(ports.attention(1) == .reservationsReleased && ports.read(2) == .good)
    }

    @Test func preempting() throws {
        let ports = try Ports()
        ports.register(0, 1, 2)
        #expect(ports.out(0, .reserve, key: 1, type: .writeExclusive).isGood)
        #expect(
            ports.out(1, .preempt, key: 2, action: 99, type: .writeExclusive).status == .reservationConflict)
        #expect(
            ports.out(1, .preempt, key: 2, action: 0, type: .writeExclusive).senseData?.code
                == .invalidFieldInParameterList)
        #expect(ports.out(1, .preempt, key: 2, action: 3, type: .writeExclusive).isGood)
        #expect(ports.attention(2) == .registrationsPreempted && ports.keys() == [1, 2])
        #expect(ports.write(1) == .reservationConflict, "only a registration was taken")
        #expect(ports.out(1, .preempt, key: 2, action: 1, type: .exclusiveAccess).isGood)
        #expect(ports.attention(0) == .registrationsPreempted && ports.keys() == [2])
        #expect(ports.write(1) == .good && ports.read(0) == .reservationConflict)
        ports.register(0, 2)
        #expect(ports.out(1, .release, key: 2, type: .exclusiveAccess).isGood)
        #expect(ports.out(1, .reserve, key: 2, type: .writeExclusiveAllRegistrants).isGood)
        #expect(ports.out(0, .preemptAndAbort, key: 1, action: 0, type: .writeExclusive).isGood)
        #expect(ports.keys() == [1] && ports.write(1) == .unitAttentionStatus)
        #expect(ports.write(1) == .reservationConflict)
    }

    @Test func whatIsNotDoneIsRefused() throws {
        let ports = try Ports()
        var parameters = ReservationParameters(key: 0, serviceActionKey: 1, persists: true)
        let register = Command.reservation(.persistentOut(PersistentReserveOut(.register)))
        #expect(
            ports.bench.send(register, data: parameters.encoded()).failed(
                .illegalRequest, .invalidFieldInParameterList))
        parameters.persists = false
        parameters.specifiesPorts = true
        #expect(
            ports.bench.send(register, data: parameters.encoded()).failed(
                .illegalRequest, .invalidFieldInParameterList))
        #expect(ports.bench.send(register, data: []).failed(.illegalRequest, .parameterListLengthError))
        #expect(ports.data(.reportCapabilities) == [0, 8, 0, 0x80, 0xEA, 1, 0, 0])
        #expect(ports.keys().isEmpty)
        ports.register(0)
        #expect(ports.out(0, .reserve, key: 1).refused(cdbByte: 2))
    }

    @Test func reserve6IsOfTheSession() throws {
        let ports = try Ports()
        let (reserve, release) = (Command.reservation(.reserve6), Command.reservation(.release6))
        #expect(ports.bench.send(reserve).isGood && ports.bench.send(reserve).isGood)
        let other = ports.nexuses[1]
        #expect(ports.bench.send(reserve, on: other).status == .reservationConflict)
        #expect(ports.bench.send(.testUnitReady, on: other).status == .reservationConflict)
        #expect(ports.bench.send(.readCapacity10, on: other).isGood)
        #expect(ports.out(1, .register, action: 2).status == .reservationConflict)
        #expect(ports.bench.send(release, on: other).isGood && ports.read(1) == .reservationConflict)
        #expect(ports.bench.send(release).isGood && ports.read(1) == .good)
        #expect(ports.bench.send(reserve).isGood)
        ports.bench.device.closeNexus(ports.nexuses[0])
        #expect(ports.read(1) == .good)
        #expect(ports.bench.send(reserve, on: other).isGood)
        ports.bench.device.resetLogicalUnit(LogicalUnitNumber(0)!, from: ports.nexuses[2])
        #expect(ports.read(2) == .unitAttentionStatus && ports.read(2) == .good)
        ports.register(2)
        #expect(ports.attention(1) == .busDeviceReset)
        #expect(ports.bench.send(reserve, on: other).status == .reservationConflict, "keys are registered")
    }

    /// What a session has reserved is nobody else's while the end of one of its writes is still under way.
    @Test func reserve6OutlivesTheSessionsLastWrite() throws {
        let store = FaultyStore(size: 64 << 10)
        let bench = try Bench([Bench.unit(0, store)])
        let other = Bench.makeNexus(2)
        bench.device.openNexus(other)
        _ = bench.send(.testUnitReady, on: other)
        let reserve = Command.reservation(.reserve6)
        #expect(bench.send(reserve).isGood)
        store.hold()
        let write = Running(
            bench.device,
            bench.task(
                [0x2A, 0, 0, 0, 0, 0, 0, 0, 8, 0], data: [UInt8](repeating: 7, count: 8 * 512), expecting: 0))
        store.awaitHeld()
        write.task.abort()
        let closing = Monitor(false)
        let started = BlockingThread.start {
            bench.device.closeNexus(bench.nexus)
            closing.withLockAndNotify { $0 = true }
        }
        precondition(started)
        while bench.device.nexusStates.contains(where: { $0.nexus === bench.nexus }) {}
        // For what must not come, there is no event to wait for: so long it is given.
        #expect(closing.wait(nanoseconds: 100_000_000) { $0 ? () : nil } == nil)
        #expect(bench.send(reserve, on: other).status == .reservationConflict)
        // Nor does anything begin any more.
        #expect(bench.send(reserve).status == .taskAborted)
        store.release()
        _ = write.end()
        closing.wait { $0 ? () : nil }
        #expect(bench.send(reserve, on: other).isGood)
    }

    /// A command that has found its nexus just before the end of the session reserves nothing that lasts.
    @Test func aReserve6ThatMeetsTheEndOfItsSession() throws {
        let bench = try Bench([Bench.unit(0, MemoryStore(size: 64 << 10))])
        let other = Bench.makeNexus(2)
        bench.device.openNexus(other)
        _ = bench.send(.testUnitReady, on: other)
        let reserve = Command.reservation(.reserve6)
        let task = bench.task(reserve.encoded())
        let state = try #require(bench.device.nexusStates.first { $0.nexus === bench.nexus })
        state.beginCommand()
        let closing = Monitor(false)
        let started = BlockingThread.start {
            bench.device.closeNexus(bench.nexus)
            closing.withLockAndNotify { $0 = true }
        }
        precondition(started)
        #expect(closing.wait(nanoseconds: 100_000_000) { $0 ? () : nil } == nil)
        #expect(try bench.device.reservation(.reserve6, task, bench.device.units[0]).isGood)
        #expect(bench.send(reserve, on: other).status == .reservationConflict)
        state.endCommand()
        closing.wait { $0 ? () : nil }
        #expect(bench.send(reserve, on: other).isGood)
    }

    @Test func copiesHeedReservations() throws {
        let ports = try Ports()
        let bench = ports.bench
        let list = CopyParameterList(
            listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)],
            segments: [
                SegmentDescriptor(
                    source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(0),
                    amount: .blocks(8, ofDestination: false))
            ])
        ports.register(0)
        // The command goes to unit 1; unit 0 is the source.
        #expect(ports.out(0, .reserve, key: 1, type: .writeExclusive).isGood)
        #expect(bench.copy(list, 1, on: ports.nexuses[1]).isGood, "others may read")
        #expect(bench.copy(list, 0, on: ports.nexuses[1]).status == .reservationConflict)
        #expect(ports.out(0, .release, key: 1, type: .writeExclusive).isGood)
        #expect(ports.out(0, .reserve, key: 1, type: .exclusiveAccess).isGood)
        #expect(bench.copy(list, 1, on: ports.nexuses[1]).status == .reservationConflict)
        #expect(bench.copy(list, 1).isGood, "the holder may")
    }
}

extension ReservationTests {
    /// When PREEMPT AND ABORT is done, nothing that the preempted began is still to be written: neither its
    /// commands at the unit nor a copy that it sent to another and that writes to this one.
    @Test(arguments: [false, true]) func preemptAndAbortFences(byCopy: Bool) throws {
        let store = FaultyStore(size: 64 * 512)
        let bench = try Bench([
            Bench.unit(0, store), Bench.unit(1, MemoryStore(pattern: 64 * 512, seed: 4)),
        ])
        let victim = try bench.secondRegistrant(at: 0)
        let list = CopyParameterList(
            listIdentifier: 1, cscds: [bench.cscd(1), bench.cscd(0)],
            segments: [
                SegmentDescriptor(
                    source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(0),
                    amount: .blocks(8, ofDestination: false))
            ])
        let transfer = BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1))
        let write = bench.task(
            Command.write(transfer).encoded(), data: [UInt8](repeating: 1, count: 512), on: victim)
        store.hold()
        let written = Running(bench.device, byCopy ? bench.copyTask(list, 1, on: victim) : write)
        store.awaitHeld()
        let preempt = PersistentReserveOut(.preemptAndAbort, type: .writeExclusive)
        let operationsAtEnd = Monitor<Int?>(nil)
        let started = BlockingThread.start {
            let outcome = bench.send(
                .reservation(.persistentOut(preempt)),
                data: ReservationParameters(key: 1, serviceActionKey: 2).encoded())
            operationsAtEnd.withLockAndNotify { $0 = outcome.isGood ? store.operations : -1 }
        }
        #expect(started)
        while !written.task.isAborted { sched_yield() }
        // Others at the unit are served meanwhile.
        #expect(bench.send(.testUnitReady).isGood)
        #expect(operationsAtEnd.withLock { $0 } == nil, "it waits for what is being written")
        store.release()
        #expect(operationsAtEnd.wait { $0 } == 1)
        _ = written.end()
        #expect(
            bench.send(.testUnitReady, on: victim).failed(.unitAttention, .registrationsPreempted))
        let parameters = ReservationParameters(key: 2)
        let reserve = PersistentReserveOut(.reserve, type: .writeExclusive)
        #expect(
            bench.send(.reservation(.persistentOut(reserve)), data: parameters.encoded(), on: victim).status
                == .reservationConflict)
    }
}

extension ReservationTests {
    /// PREEMPT AND ABORT waits for what it aborted, not for what the preempted begins later and may do: here a copy
    /// that reads the unit.
    @Test func preemptAndAbortDoesNotWaitForWhatComesLater() throws {
        let (written, read) = (FaultyStore(size: 64 * 512), FaultyStore(size: 64 * 512))
        let bench = try Bench([
            Bench.unit(0, written), Bench.unit(1, read), Bench.unit(2, MemoryStore(size: 64 * 512)),
        ])
        let victim = Bench.makeNexus(2)
        bench.device.openNexus(victim)
        for unit in 0...2 { _ = bench.send(.testUnitReady, unit, on: victim) }
        for (nexus, key) in [(bench.nexus, UInt64(1)), (victim, 2)] {
            let parameters = ReservationParameters(key: 0, serviceActionKey: key)
            let register = Command.reservation(.persistentOut(PersistentReserveOut(.register)))
            #expect(bench.send(register, data: parameters.encoded(), on: nexus).isGood)
        }
        written.hold()
        read.hold()
        let transfer = BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1))
        let write = Running(
            bench.device,
            bench.task(
                Command.write(transfer).encoded(), data: [UInt8](repeating: 1, count: 512), on: victim))
        written.awaitHeld()
        let preempt = PersistentReserveOut(.preemptAndAbort, type: .writeExclusive)
        let fence = Running(
            bench.device,
            bench.task(
                Command.reservation(.persistentOut(preempt)).encoded(),
                data: ReservationParameters(key: 1, serviceActionKey: 2).encoded()))
        while !write.task.isAborted { sched_yield() }
        let segments = [UInt16(1), 0].map {
            SegmentDescriptor(
                source: $0, sourceLBA: LBA(0), destination: 2, destinationLBA: LBA(0),
                amount: .blocks(8, ofDestination: false))
        }
        let list = CopyParameterList(
            listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1), bench.cscd(2)], segments: segments)
        let copy = Running(bench.device, bench.copyTask(list, 2, on: victim))
        read.awaitHeld()
        #expect(fence.isRunning && bench.device.reservations.tasks(at: 0).contains { $0 === copy.task })
        written.release()
        #expect(fence.end().isGood)
        #expect(copy.isRunning && !copy.task.isAborted)
        read.release()
        #expect(copy.end().isGood)
        _ = write.end()
    }
}

extension SCSIStatus {
    fileprivate static var unitAttentionStatus: SCSIStatus { .checkCondition }
}

@Suite struct OperationTableTests {
    /// Every operation that is reported is dispatched, and every one that is dispatched is reported.
    @Test func theTableAndTheDispatcherAgree() throws {
        let bench = try Bench([Bench.unit(0, MemoryStore(size: 64 * 512))])
        // UNMAP is the device's, but these units are not thin and refuse it.
        for code in UInt8.min...UInt8.max where code != OperationCode.unmap.rawValue {
            let operations = OperationTable.operations(of: OperationCode(rawValue: code))
            for action in UInt8(0)...0x1F {
                var cdb = [code, action] + [UInt8](repeating: 0, count: 14)
                // An allocation length that nobody finds too short.
                if code == 0xA0 || code == 0xA3 { cdb[9] = 64 }
                let outcome = bench.device.execute(bench.task(cdb))
                if operations.isEmpty {
                    #expect(outcome.failed(.illegalRequest, .invalidOperationCode), "\(code)")
                    break
                }
                #expect(!outcome.failed(.illegalRequest, .invalidOperationCode), "\(code)")
                guard operations[0].serviceAction != nil else { break }
                let isKnown = operations.contains { $0.serviceAction == action }
                #expect(outcome.refused(cdbByte: 1) == !isKnown, "\(code) \(action)")
            }
        }
    }

    @Test func reportSupportedOperationCodes() throws {
        let bench = try Bench([Bench.unit(0, MemoryStore(size: 64 * 512))])
        func ask(_ selection: CapabilityReport.Selection, timeouts: Bool = false) -> SCSIOutcome {
            bench.send(
                .capabilityReport(.operationCodes(selection, timeouts: timeouts, allocationLength: 8192)))
        }
        // The unit is thick: no UNMAP.
        let count = OperationTable.all.count - 1
        #expect(ask(.code(.unmap)).dataIn == [0, 1, 0, 0] && ask(.either(.unmap, 0)).dataIn == [0, 1, 0, 0])
        #expect(
            ask(.all).dataIn.count == 4 + 8 * count
                && ask(.all, timeouts: true).dataIn.count == 4 + 20 * count)
        #expect(ask(.code(.read10)).dataIn[1] == 3 && ask(.code(.read10)).dataIn[4] == 0x28)
        #expect(ask(.code(OperationCode(rawValue: 0xC1))).dataIn == [0, 1, 0, 0])
        #expect(ask(.code(.maintenanceIn)).refused(cdbByte: 2))
        #expect(ask(.serviceAction(.read10, 0)).refused(cdbByte: 2))
        #expect(ask(.serviceAction(.maintenanceIn, 0x0C)).dataIn[5] == 0x0C)
        #expect(ask(.either(.maintenanceIn, 0x01)).dataIn == [0, 1, 0, 0])
        #expect(ask(.either(.read10, 0), timeouts: true).dataIn.count == 4 + 10 + 12)
        let functions = bench.send(
            .capabilityReport(.taskManagementFunctions(extended: true, allocationLength: 64)))
        #expect(functions.dataIn == [0xDA, 0, 0, 12] + [UInt8](repeating: 0, count: 12))
    }
}
