import Blocks
import SCSI

/// What of a unit can be changed by MODE SELECT. Shared by all nexuses (the mode page policy that holds without VPD
/// page 87h), not saved: a reset of the unit and a restart of the bridge bring the default values back.
struct ModeValues: Equatable, Sendable {
    /// D_SENSE: sense data of the unit's commands come in descriptor form.
    var descriptorSense = false
    /// SWP: the unit takes no writes.
    var softwareWriteProtect = false
    /// WCE: GOOD may come before the data are on stable storage, because direct I/O leaves them in the device's cache.
    /// Without, what a command writes is on stable storage before its GOOD.
    var writeCache = true

    init() {}

    static let defaults = ModeValues()

    /// In ascending order of their codes, as MODE SENSE tells them.
    var pages: [ModePage] {
        [
            .caching(writeCache: writeCache),
            .control(descriptorSense: descriptorSense, softwareWriteProtect: softwareWriteProtect),
            ModePage(code: ModePage.informationalExceptions, body: [UInt8](repeating: 0, count: 10)),
        ]
    }

    /// The same pages with exactly the bits set that MODE SELECT may change.
    static let changeable: [ModePage] = {
        var turned = ModeValues()
        turned.descriptorSense.toggle()
        turned.softwareWriteProtect.toggle()
        turned.writeCache.toggle()
        return zip(ModeValues().pages, turned.pages).map { old, new in
            ModePage(code: old.code, body: zip(old.body, new.body).map(^))
        }
    }()

    /// Takes over the pages of `list`, or nothing.
    /// - Throws: INVALID FIELD IN PARAMETER LIST with the place of the first field that there is not, or that differs
    ///   from what holds and cannot be changed.
    mutating func apply(_ list: ModeParameterList, _ unit: LogicalUnit) throws(CheckCondition) {
        if let descriptor = list.blockDescriptor { try Self.check(descriptor, unit) }
        var values = self
        for page in list.pages { try values.take(page) }
        self = values
    }

    private static func check(
        _ descriptor: ModeParameterList.BlockDescriptor, _ unit: LogicalUnit
    ) throws(CheckCondition) {
        guard descriptor.count == 0 || descriptor.count == unit.blockCount || descriptor.asksForMaximum else {
            throw CheckCondition(.invalidFieldInParameterList(byte: descriptor.offset))
        }
        guard descriptor.blockLength == unit.blockSize else {
            throw CheckCondition(.invalidFieldInParameterList(byte: descriptor.blockLengthOffset))
        }
    }

    private mutating func take(_ page: ModeParameterList.Page) throws(CheckCondition) {
        guard let index = Self.changeable.firstIndex(where: { $0.code == page.code }) else {
            throw CheckCondition(.invalidFieldInParameterList(byte: page.offset, bit: 5))
        }
        let (mask, current) = (Self.changeable[index].body, pages[index].body)
        guard page.body.count == mask.count else {
            throw CheckCondition(.invalidFieldInParameterList(byte: page.offset + 1))
        }
        let body = Array(page.body)
        for byte in body.indices {
            let refused = (body[byte] ^ current[byte]) & ~mask[byte]
            guard refused == 0 else {
                throw CheckCondition(
                    .invalidFieldInParameterList(
                        byte: page.offset + 2 + byte, bit: UInt8(7 - refused.leadingZeroBitCount)))
            }
        }
        switch page.code {
        case ModePage.caching: writeCache = body[0] & 0x04 != 0
        case ModePage.control:
            descriptorSense = body[0] & 0x04 != 0
            softwareWriteProtect = body[2] & 0x08 != 0
        default: break
        }
    }
}

/// MODE SENSE data.
enum ModeSenseAnswer {
    static func data(_ fields: ModeSense, _ unit: LogicalUnit) throws(CheckCondition) -> [UInt8] {
        let pages: [ModePage]
        switch fields.control {
        case .current: pages = unit.mode.pages
        case .changeable: pages = ModeValues.changeable
        case .defaults: pages = ModeValues.defaults.pages
        case .saved: throw CheckCondition(SenseTable.savedNotSupported)
        }
        let selected: [ModePage]
        if fields.page == ModeSense.allPages {
            guard fields.subpage == 0 || fields.subpage == ModeSense.allSubpages else { throw .cdb(3) }
            selected = pages
        } else {
            selected = pages.filter { $0.code == fields.page }
            if selected.isEmpty { throw .cdb(2, bit: 5) }
            guard fields.subpage == 0 else { throw .cdb(3) }
        }
        let parameters = ModeParameters(
            isWriteProtected: unit.writeProtection != nil, supportsFUA: true,
            capacity: fields.disableBlockDescriptors ? nil : unit.capacity, pages: selected)
        return fields.form == .six
            ? parameters.encoded6() : parameters.encoded10(longDescriptor: fields.longLBAAccepted)
    }
}

extension BridgeDevice {
    /// MODE SELECT: all of the list or nothing of it; the other nexuses are told.
    func modeSelect(
        _ fields: ModeSelect, _ task: SCSITask, _ unit: LogicalUnit
    ) throws(CheckCondition) -> SCSIOutcome {
        guard fields.isPageFormat else { throw .cdb(1, bit: 4) }
        // No page can be saved.
        if fields.saves { throw .cdb(1, bit: 0) }
        let length = fields.parameterListLength
        guard length > 0 else { return .good }
        guard task.dataOut.count >= length else { throw CheckCondition(.parameterListLengthError) }
        let list = try ModeParameterList(decoding: Array(task.dataOut.prefix(length)), form: fields.form)
        let (old, new) = try unit.changeMode { values throws(CheckCondition) in try values.apply(list, unit) }
        guard new != old else { return SCSIOutcome(status: .good, dataOutUsed: length) }
        for state in nexusStates where state.nexus !== task.nexus {
            state.raise(.modeParametersChanged, unit)
        }
        // What was written under the old values is to be as safe as the new ones promise (SBC-3 §6.5.5, SPC-4 §7.5.8).
        let isProtected = !old.softwareWriteProtect && new.softwareWriteProtect
        // Copies to the unit see it and end; commands that were admitted before go on to their ends.
        if isProtected { reservations.awaitWriters(at: unit.number) }
        let isStricter = old.writeCache && !new.writeCache || isProtected
        if isStricter, !unit.isReadOnly {
            try BlockCommands(unit: unit, task: task).store(.write) { () throws(StoreError) in
                try unit.store.flush()
            }
        }
        return SCSIOutcome(status: .good, dataOutUsed: length)
    }
}
