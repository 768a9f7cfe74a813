import AsyncIO
import Blocks
import Logging
import SCSI
import Synchronization

/// A SCSI target device whose logical units are files and block devices, with a third-party copy manager
/// (design §5; SPC-4, SBC-3). It knows no transport.
///
/// Commands run on the threads that bring them, as many at once as come. Only third-party copy operations, those of
/// tokens included, are bounded: in all (``BridgeLimits/concurrentCopies``), because each holds buffers, and those of
/// one nexus (``BridgeLimits/concurrentCopiesOfNexus``), because each holds a thread: one of the transport's or, with
/// IMMED, one of the device's own.
public final class BridgeDevice: SCSITargetDevice {
    /// In ascending order of their numbers, which are unique, as are their designators.
    let units: [LogicalUnit]
    /// By the names in lower case of initiators that some unit names: all that each may see.
    private let visible: [String: [LogicalUnit]]
    /// What any other initiator may see.
    private let visibleToAll: [LogicalUnit]
    let mover: any CopyMover
    let logger: Logger
    let clock: DeviceClock
    let running = Monitor(0)
    let copies = CopyMeters()
    let reservations: Reservations
    let tokens: TokenStore
    /// Held while it is changed which checksums are kept.
    let checksumChange = Monitor(())
    private let nexuses = Monitor<[ObjectIdentifier: NexusState]>([:])

    /// Opens the files and devices of `units`: read-only ones without a lock, so that a volume can be read
    /// while its host serves it; writable ones with an exclusive lock.
    /// - Parameter logger: gets one line of audit for each copy, and a warning for each unit whose file is
    ///   not whole blocks or refuses direct I/O.
    /// - Parameters:
    ///   - stateDirectory: where registrations and reservations are kept that are to outlive the device (APTPL);
    ///     taken for itself. Nil: none do.
    ///   - isCheck: the directory is only looked at, and may be another device's.
    /// - Throws: ``BridgeError``; then nothing stays open.
    public convenience init(
        units: [BridgeUnit], stateDirectory: String? = nil, isCheck: Bool = false, logger: Logger
    ) throws(BridgeError) {
        try Self.check(units)
        var opened: [LogicalUnit] = []
        do throws(BridgeError) {
            let locks = StorageLocks()
            for unit in units { opened.append(try LogicalUnit.open(unit, locks)) }
            let state: StateDirectory?
            do throws(BridgeStateError) {
                if let stateDirectory {
                    state = try StateDirectory(stateDirectory, isLocked: !isCheck)
                } else {
                    state = nil
                }
            } catch { throw .state(error) }
            try self.init(opened: opened, mover: EngineMover(), logger: logger, state: state)
        } catch {
            for unit in opened { unit.file?.close() }
            throw error
        }
        for unit in summaries { Self.report(unit, logger) }
    }

    /// Over files that are open already, with a copy engine over other system calls: for the simulator.
    package convenience init(
        files: [(unit: BridgeUnit, file: StorageFile)], chunkSize: Int, system: SystemCalls, logger: Logger
    ) throws(BridgeError) {
        let locks = StorageLocks()
        var opened: [LogicalUnit] = []
        for (unit, file) in files {
            opened.append(
                try LogicalUnit(
                    unit, store: file, storage: StorageKey(file.identity), file: file, locks: locks))
        }
        try self.init(
            opened: opened, mover: EngineMover(EnginePool(chunkSize: chunkSize, system: system)),
            logger: logger)
    }

    init(
        opened: [LogicalUnit], mover: any CopyMover, logger: Logger, clock: DeviceClock = .monotonic,
        state: StateDirectory? = nil
    ) throws(BridgeError) {
        let units = opened.sorted { $0.number < $1.number }
        self.units = units
        visibleToAll = units.filter { $0.initiators == nil }
        let named = units.reduce(into: Set<String>()) { $0.formUnion($1.initiators ?? []) }
        visible = Dictionary(
            uniqueKeysWithValues: named.map { name in
                (name, units.filter { $0.initiators?.contains(name) ?? true })
            })
        self.mover = mover
        self.logger = logger
        self.clock = clock
        tokens = TokenStore(clock: clock)
        do throws(BridgeStateError) { reservations = try Reservations(units, in: state) } catch {
            throw .state(error)
        }
        var seen: [[UInt8]: Int] = [:]
        for unit in units {
            if let other = seen.updateValue(unit.number, forKey: unit.naa.designator) {
                throw .configuration(
                    unit: unit.number,
                    reason: "its designator is that of unit \(other); give it another number")
            }
        }
    }

    deinit { close() }

    /// Ends copies in the background, and gives back files and locks. No command may be running.
    public func close() {
        let states = nexusStates
        for state in states { state.close() }
        for state in states { state.awaitBackground() }
        for unit in units { tokens.revoke(unit: unit) }
        for unit in units {
            unit.watch.forgetEnded()
            unit.file?.close()
        }
    }

    /// The units in ascending order of their numbers.
    public var summaries: [BridgeUnitSummary] { units.map(\.summary) }

    private static func check(_ units: [BridgeUnit]) throws(BridgeError) {
        var numbers: Set<Int> = []
        for unit in units {
            guard BridgeLimits.unitNumbers.contains(unit.number) else {
                throw .configuration(
                    unit: unit.number,
                    reason: "unit numbers go from 0 to \(BridgeLimits.unitNumbers.upperBound)")
            }
            guard numbers.insert(unit.number).inserted else {
                throw .configuration(unit: unit.number, reason: "the number is given twice")
            }
            guard BridgeLimits.blockSizes.contains(unit.blockSize) else {
                throw .configuration(
                    unit: unit.number, reason: "blocks have 512 or 4096 bytes, not \(unit.blockSize)")
            }
            if unit.readOnly, unit.isThin == true {
                throw .configuration(
                    unit: unit.number,
                    reason: "it is read-only, so nothing of it can be given back; leave `thin` out")
            }
            guard let physical = unit.physicalBlockSize else { continue }
            let ratio = physical / unit.blockSize
            guard physical % unit.blockSize == 0, BridgeLimits.physicalBlockRatios.contains(ratio),
                ratio & (ratio - 1) == 0
            else {
                throw .configuration(
                    unit: unit.number,
                    reason:
                        "physical blocks have \(unit.blockSize) bytes times a power of two up to 32768, not "
                        + "\(physical)")
            }
        }
    }

    private static func report(_ unit: BridgeUnitSummary, _ logger: Logger) {
        if unit.paddingBytes > 0 {
            logger.notice(
                "the file's size is no multiple of the block size: the last block ends in padding that reads as zeros and takes only zeros",
                metadata: [
                    "unit": .stringConvertible(unit.number), "path": "\(unit.path)",
                    "padding": .stringConvertible(unit.paddingBytes),
                ])
        }
        if let why = unit.directRefusal {
            logger.warning(
                "no direct I/O: data go through the page cache",
                metadata: [
                    "unit": .stringConvertible(unit.number), "path": "\(unit.path)", "reason": "\(why)",
                ])
        }
    }

    // MARK: Nexuses

    /// What an initiator's session may see and name. The one place where that is decided.
    func units(visibleTo nexus: Nexus) -> [LogicalUnit] {
        visible[nexus.initiatorName.lowercased()] ?? visibleToAll
    }

    public func openNexus(_ nexus: Nexus) {
        let state = NexusState(nexus, units: units(visibleTo: nexus))
        nexuses.withLock { $0[ObjectIdentifier(nexus)] = state }
    }

    /// Waits for its commands and copies to end; so none of its commands may wait for this.
    public func closeNexus(_ nexus: Nexus) {
        let state = nexuses.withLock { $0.removeValue(forKey: ObjectIdentifier(nexus)) }
        state?.close()
        // A unit that the session had reserved is nobody else's before the last of its commands has ended, nor is one
        // reserved by a command that comes behind. What goes on in the background has no thread of the transport's.
        state?.awaitCommands()
        state?.awaitBackground()
        reservations.close(nexus)
    }

    public func resetLogicalUnit(_ lun: LogicalUnitNumber, from nexus: Nexus) {
        guard let unit = unit(lun, for: nexus) else { return }
        // Copies in the background are tasks of the unit that the transport does not know, and those that were asked
        // of other units write here, too.
        reservations.reset(unit: unit.number)
        unit.resetMode()
        tokens.revoke(unit: unit)
        for state in nexuses.withLock({ Array($0.values) }) {
            state.discardResults(of: unit)
            state.raise(.busDeviceReset, unit)
        }
    }

    /// Of the nexuses that are open.
    var nexusStates: [NexusState] { nexuses.withLock { Array($0.values) } }

    private func unit(_ lun: LogicalUnitNumber, for nexus: Nexus) -> LogicalUnit? {
        lun.number.flatMap { number in units(visibleTo: nexus).first { $0.number == number } }
    }

    public func usesDescriptorSense(_ lun: LogicalUnitNumber, _ nexus: Nexus) -> Bool {
        unit(lun, for: nexus)?.mode.descriptorSense ?? false
    }

    // MARK: Commands

    public func execute(_ task: SCSITask) -> SCSIOutcome {
        // A nexus that is gone has nobody to answer to.
        let found = nexuses.withLock { nexuses in
            let state = nexuses[ObjectIdentifier(task.nexus)]
            // Counted before the nexus can be closed.
            state?.beginCommand()
            return state
        }
        guard let state = found else { return SCSIOutcome(status: .taskAborted) }
        defer { state.endCommand() }
        let unit = unit(task.lun, for: task.nexus)
        let outcome: SCSIOutcome
        do throws(CheckCondition) { outcome = try dispatch(task, unit, state) } catch {
            outcome = .checkCondition(
                error.sense, descriptorFormat: unit?.mode.descriptorSense ?? false,
                dataOutUsed: task.dataOut.count)
        }
        unit?.meters.count(task, outcome)
        return outcome
    }

    private func dispatch(
        _ task: SCSITask, _ unit: LogicalUnit?, _ state: NexusState
    ) throws(CheckCondition) -> SCSIOutcome {
        // INQUIRY, REPORT LUNS and REQUEST SENSE neither wait for a unit to be there nor report its unit
        // attentions (SAM-5 §5.14).
        let code = task.cdb.first.map(OperationCode.init(rawValue:))
        let isSpecial = code == .inquiry || code == .reportLUNs || code == .requestSense
        guard isSpecial || unit != nil else { throw CheckCondition(SenseTable.unitNotSupported) }
        if !isSpecial, let unit, let attention = state.takeAttention(unit) { throw CheckCondition(attention) }
        let command = try Command(decoding: task.cdb)
        switch command {
        case .inquiry(let page, let length):
            return .data(try InquiryAnswer.data(page, unit), allocationLength: length)
        case .reportLUNs(let select, let length):
            return .data(try reportLUNs(select, task.nexus), allocationLength: length)
        case .requestSense(let isDescriptor, let length):
            let sense = pendingSense(unit, state)
            return .data(
                isDescriptor ? sense.encodedDescriptor() : sense.encodedFixed(), allocationLength: length)
        default: break
        }
        guard let unit else { preconditionFailure("only the three above come without a unit") }
        let written = OperationTable.writesBlocks(task.cdb) ? [unit.number] : []
        reservations.begin(task, at: [unit.number], writing: written)
        defer { reservations.end(task, at: [unit.number]) }
        if isExcluded(task, unit) {
            CopyAudit(command, task.nexus, unit)?.log(CopyAudit.reservationConflict, logger)
            return .reservationConflict(task)
        }
        return try execute(command, task, unit, state)
    }

    private func execute(
        _ command: Command, _ task: SCSITask, _ unit: LogicalUnit, _ state: NexusState
    ) throws(CheckCondition) -> SCSIOutcome {
        let blocks = BlockCommands(unit: unit, task: task)
        switch command {
        case .testUnitReady: return .good
        case .readCapacity10: return SCSIOutcome(status: .good, dataIn: unit.capacity.encoded10())
        case .readCapacity16(let length):
            return .data(unit.capacity.encoded16(), allocationLength: length)
        case .read(let transfer): return try blocks.read(transfer)
        case .write(let transfer): return try blocks.write(transfer)
        case .synchronizeCache(let fields): return try blocks.synchronizeCache(fields)
        case .writeSame16(let fields): return try blocks.writeSame(fields, form: .sixteen)
        case .block(let command): return try blocks.execute(command)
        case .modeSense(let fields):
            return .data(try ModeSenseAnswer.data(fields, unit), allocationLength: fields.allocationLength)
        case .modeSelect(let fields): return try modeSelect(fields, task, unit)
        case .reservation(let command): return try reservation(command, task, unit)
        case .capabilityReport(let report): return try OperationTable.report(report, unit)
        case .copy(let command): return try execute(command, task, unit, state)
        case .extendedCopy(let length):
            return try extendedCopy(.lid1, task, parameterListLength: length, unit, state)
        case .receiveCopyResults(let action, let identifier, let length):
            return .data(try copyResults(action, identifier, unit, state), allocationLength: length)
        case .token(let command): return try execute(command, task, unit, state)
        case .buffer(let command): return try execute(command, task, unit)
        case .inquiry, .reportLUNs, .requestSense:
            preconditionFailure("answered before a unit was looked for")
        }
    }

    private func reportLUNs(_ select: UInt8, _ nexus: Nexus) throws(CheckCondition) -> [UInt8] {
        switch select {
        case ReportLUNs.selectAddressed, ReportLUNs.selectAll:
            return ReportLUNs.encode(units(visibleTo: nexus).map(\.lun))
        case ReportLUNs.selectWellKnown: return ReportLUNs.encode([])
        default: throw .cdb(2)
        }
    }

    /// REQUEST SENSE gives a unit attention as data and clears it (SPC-4 §6.39).
    private func pendingSense(_ unit: LogicalUnit?, _ state: NexusState) -> SenseData {
        guard let unit else { return SenseTable.unitNotSupported }
        return state.takeAttention(unit) ?? SenseData(.noSense, .noAdditionalSense)
    }
}

extension SCSIOutcome {
    /// GOOD with data, as much as the initiator has space for.
    static func data(_ bytes: [UInt8], allocationLength: Int) -> SCSIOutcome {
        SCSIOutcome(status: .good, dataIn: Array(bytes.prefix(allocationLength)))
    }
}
