import Blocks
import SCSI

/// POPULATE TOKEN, WRITE USING TOKEN, RECEIVE ROD TOKEN INFORMATION and REPORT ALL ROD TOKENS. The first two are copy
/// operations like EXTENDED COPY: they have list identifiers, results that are held, and a line of audit.
extension BridgeDevice {
    func execute(
        _ command: TokenCommand, _ task: SCSITask, _ unit: LogicalUnit, _ state: NexusState
    ) throws(CheckCondition) -> SCSIOutcome {
        switch command {
        case .populate(let identifier, let length):
            return try populateToken(identifier, length, task, unit, state)
        case .write(let identifier, let length):
            return try writeUsingToken(identifier, length, task, unit, state)
        case .information(let identifier, let length):
            guard let record = state.find(identifier, at: unit) else { throw .cdb(2) }
            var descriptors = BigEndianWriter()
            if let token = record.rodToken {
                descriptors.integer(UInt32(2 + token.count))
                // The ID that tells apart the tokens of one EXTENDED COPY.
                descriptors.zeros(2)
                descriptors.append(token)
            } else {
                descriptors.integer(UInt32(0))
            }
            let report = report(of: record, descriptorFormat: unit.mode.descriptorSense)
            return .data(report.encoded(followedBy: descriptors.bytes), allocationLength: length)
        case .reportAll(let length):
            let visible = units(visibleTo: task.nexus)
            return .data(AllRODTokens.encode(tokens.all(of: visible)), allocationLength: length)
        }
    }

    /// An operation as it is told: those of tokens count blocks, the others bytes (SBC-3 §5.7.1, §5.48.1).
    func report(of record: CopyRecord, descriptorFormat: Bool) -> CopyOperationReport {
        var report = record.report(descriptorFormat: descriptorFormat)
        switch record.serviceAction {
        case ServiceAction.populateToken, ServiceAction.writeUsingToken:
            guard let unit = units.first(where: { $0.number == record.unit }) else { return report }
            let bytes = record.rodToken?.withUnsafeBytes { $0.bigEndian(at: 56, as: UInt64.self) }
            report.transferCountUnits = CopyOperationReport.blocks
            report.transferCount = (bytes ?? report.transferCount) / UInt64(unit.blockSize)
        default: break
        }
        return report
    }

    // MARK: POPULATE TOKEN

    private func populateToken(
        _ identifier: UInt32, _ length: Int, _ task: SCSITask, _ unit: LogicalUnit, _ state: NexusState
    ) throws(CheckCondition) -> SCSIOutcome {
        // No list is no error and makes nothing.
        if length == 0 { return .good }
        var audit = CopyAudit(.populateToken, task.nexus, unit)
        audit.listIdentifier = identifier
        let list = try read(task, length, most: BridgeLimits.populateTokenListBytes, audit) {
            bytes throws(CheckCondition) in
            try PopulateTokenList(decoding: bytes, most: BridgeLimits.tokenRanges)
        }
        audit.segments = list.ranges.count
        // IMMED needs nothing of its own: a token is made at once, whatever it represents.
        let origin = CopyOrigin(
            task: task, unit: unit, state: state, serviceAction: ServiceAction.populateToken,
            listIdentifier: identifier)
        var outcome = try originate(origin, audit) { [self] _ throws(CheckCondition) in
            let ranges = try places(list.ranges, unit, lengthField: 14)
            let type = try type(list.type, unit)
            guard list.inactivityTimeout <= BridgeLimits.tokenSeconds.upperBound else {
                throw CheckCondition(.invalidFieldInParameterList(byte: 4))
            }
            let seconds =
                list.inactivityTimeout == 0 ? BridgeLimits.tokenDefaultSeconds : list.inactivityTimeout
            let watches =
                type == .accessUponReference
                ? [] : units.filter { $0.storage == unit.storage }.map(\.watch)
            var plan = CopyPlan(
                pieces: [], segmentCount: ranges.count, sources: [unit.number], targets: [])
            plan.totalBytes = ranges.reduce(0) { $0 + $1.count }
            return CopyWork(plan: plan) { [tokens, nexus = task.nexus] record throws(CheckCondition) in
                let data = try tokens.make(
                    type, unit, ranges, seconds: seconds, for: nexus, watches: watches)
                record.rodToken = data.token
                return .completed
            }
        }
        outcome.dataOutUsed = length
        return outcome
    }

    /// What a token of `unit` can promise. An instant's data only where all changes come through this device; of a
    /// unit that somebody else writes, it can give what is there when it is read, and says so.
    private func type(_ asked: RODType?, _ unit: LogicalUnit) throws(CheckCondition) -> RODType {
        switch asked {
        case .accessUponReference?: return .accessUponReference
        case nil: return unit.keepsInstants ? .pointInTimeChangeVulnerable : .accessUponReference
        case .pointInTimeChangeVulnerable?, .pointInTimeDefault?, .pointInTimeAny?:
            if unit.keepsInstants { return .pointInTimeChangeVulnerable }
            fallthrough
        default: throw CheckCondition(.invalidFieldInParameterList(byte: 8))
        }
    }

    // MARK: WRITE USING TOKEN

    private func writeUsingToken(
        _ identifier: UInt32, _ length: Int, _ task: SCSITask, _ unit: LogicalUnit, _ state: NexusState
    ) throws(CheckCondition) -> SCSIOutcome {
        if length == 0 { return .good }
        var audit = CopyAudit(.writeUsingToken, task.nexus, unit)
        audit.listIdentifier = identifier
        let list = try read(task, length, most: BridgeLimits.writeUsingTokenListBytes, audit) {
            bytes throws(CheckCondition) in
            try WriteUsingTokenList(decoding: bytes, most: BridgeLimits.tokenRanges)
        }
        audit.segments = list.ranges.count
        let origin = CopyOrigin(
            task: task, unit: unit, state: state, serviceAction: ServiceAction.writeUsingToken,
            listIdentifier: identifier, isImmediate: list.immediate)
        let visible = units(visibleTo: task.nexus)
        var outcome = try originate(origin, audit) { [self] _ throws(CheckCondition) in
            if let protection = unit.writeProtection {
                throw CheckCondition(SenseData(.dataProtect, protection))
            }
            let ranges = try places(list.ranges, unit, lengthField: 534)
            return try work(list, ranges, unit, visible)
        }
        outcome.dataOutUsed = length
        return outcome
    }

    private func work(
        _ list: WriteUsingTokenList, _ ranges: [ByteRange], _ unit: LogicalUnit, _ visible: [LogicalUnit]
    ) throws(CheckCondition) -> CopyWork {
        if list.token == RODToken.blockDeviceZero {
            // As many zeros as are wanted, from any offset.
            let pieces = ranges.enumerated().filter { !$1.isEmpty }.map { index, range in
                CopyPiece(
                    segment: index, source: nil, sourceOffset: 0, target: unit, targetOffset: range.offset,
                    count: range.count)
            }
            return CopyWork(
                plan: CopyPlan(
                    pieces: pieces, segmentCount: ranges.count, sources: [], targets: [unit.number]))
        }
        let use = try tokens.use(list.token, units: visible)
        let data = use.data
        let total = ranges.reduce(0) { $0 + $1.count }
        let (offset, overflow) = list.offset.value.multipliedReportingOverflow(by: UInt64(unit.blockSize))
        guard !overflow, offset <= data.count else {
            throw CheckCondition(.invalidFieldInParameterList(byte: 8))
        }
        guard total <= data.count - offset else {
            throw CheckCondition(.invalidFieldInParameterList(byte: 534))
        }
        if data.type == .pointInTimeChangeVulnerable, data.unit.storage == unit.storage,
            let index = ranges.firstIndex(where: { data.represents($0) })
        {
            // It would end the token by which it is done. Nothing is written rather than a part.
            throw CheckCondition(
                .invalidFieldInParameterList(
                    byte: WriteUsingTokenList.headerLength + index * BlockDeviceRange.length))
        }
        let plan = CopyPlan(
            pieces: Self.pieces(data, offset, total, unit, ranges), segmentCount: ranges.count,
            sources: [data.unit.number], targets: [unit.number])
        return CopyWork(plan: plan) { [deletes = list.deleteToken] _ throws(CheckCondition) in
            // What was read may be younger than the token.
            if use.data.end == .tokenRevoked { throw TokenStore.invalid(.tokenRevoked) }
            if deletes { use.data.end(.tokenDeleted) }
            return .completed
        }
    }

    /// `total` bytes of `data` from `offset` on, one after another to `ranges`.
    private static func pieces(
        _ data: RepresentedData, _ offset: UInt64, _ total: UInt64, _ unit: LogicalUnit,
        _ ranges: [ByteRange]
    ) -> [CopyPiece] {
        var pieces: [CopyPiece] = []
        var places = data.places(offset, total)[...]
        for (index, range) in ranges.enumerated() {
            var position = range.offset
            while position < range.end, let place = places.first {
                let count = min(place.count, range.end - position)
                pieces.append(
                    CopyPiece(
                        segment: index, source: data.unit, sourceOffset: place.offset, target: unit,
                        targetOffset: position, count: count))
                position += count
                places.removeFirst()
                if count < place.count {
                    places = [ByteRange(offset: place.offset + count, count: place.count - count)] + places
                }
            }
        }
        return pieces
    }

    /// The bytes of block ranges; empty ones stay among them.
    private func places(
        _ ranges: [BlockDeviceRange], _ unit: LogicalUnit, lengthField: Int
    ) throws(CheckCondition) -> [ByteRange] {
        var places: [ByteRange] = []
        var total: UInt64 = 0
        for range in ranges {
            guard range.lba.value <= unit.blockCount,
                let place = ByteRange(
                    checking: range.lba.value * UInt64(unit.blockSize),
                    range.count.value * UInt64(unit.blockSize), within: unit.store.size)
            else { throw CheckCondition(SenseTable.outOfRange(range.lba)) }
            places.append(place)
            // No overflow: they lie apart within a unit.
            total += place.count
        }
        guard total <= BridgeLimits.tokenBytes else {
            throw CheckCondition(.invalidFieldInParameterList(byte: lengthField))
        }
        return places
    }
}
