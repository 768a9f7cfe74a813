import Blocks

extension Command {
    /// The CDB. Traps where a field does not fit the form that was chosen, which is the caller's bug.
    public func encoded() -> [UInt8] {
        switch self {
        case .read(let transfer): Self.encode(transfer, [.read6, .read10, .read12, .read16])
        case .write(let transfer): Self.encode(transfer, [.write6, .write10, .write12, .write16])
        case .synchronizeCache(let fields): Self.encode(fields)
        case .writeSame16(let fields): Self.encode(fields)
        case .block(let command): command.encoded()
        case .modeSense(let fields): Self.encode(fields)
        case .modeSelect(let fields): fields.encoded()
        case .reservation(let command): command.encoded()
        case .capabilityReport(let report): report.encoded()
        case .token(let command): command.encoded()
        case .buffer(let command): command.encoded()
        case .copy(let command): command.encoded()
        default: encodedPlain()
        }
    }

    private func encodedPlain() -> [UInt8] {
        switch self {
        case .testUnitReady: return Self.cdb(.testUnitReady)
        case .requestSense(let descriptorFormat, let length):
            return Self.cdb(.requestSense) {
                $0.set(UInt8(descriptorFormat ? 1 : 0), at: 1)
                $0.set(UInt8(length), at: 4)
            }
        case .inquiry(let page, let length):
            return Self.cdb(.inquiry) {
                $0.set(UInt8(page == nil ? 0 : 1), at: 1)
                $0.set(page ?? 0, at: 2)
                $0.set(UInt16(length), at: 3)
            }
        case .reportLUNs(let select, let length):
            return Self.cdb(.reportLUNs) {
                $0.set(select, at: 2)
                $0.set(UInt32(length), at: 6)
            }
        case .readCapacity10: return Self.cdb(.readCapacity10)
        case .readCapacity16(let length):
            return Self.cdb(.serviceActionIn16) {
                $0.set(ServiceAction.readCapacity16, at: 1)
                $0.set(UInt32(length), at: 10)
            }
        case .extendedCopy(let length):
            return Self.cdb(.extendedCopy) {
                $0.set(ServiceAction.extendedCopyLID1, at: 1)
                $0.set(UInt32(length), at: 10)
            }
        case .receiveCopyResults(let action, let identifier, let length):
            return Self.cdb(.receiveCopyResults) {
                $0.set(action.rawValue, at: 1)
                $0.set(identifier, at: 2)
                $0.set(UInt32(length), at: 10)
            }
        case .read, .write, .synchronizeCache, .writeSame16, .block, .modeSense, .modeSelect,
            .reservation, .capabilityReport, .token, .buffer, .copy:
            preconditionFailure("encoded by itself")
        }
    }

    static func cdb(
        _ code: OperationCode, _ fill: (inout BigEndianWriter) -> Void = { _ in }
    ) -> [UInt8] {
        guard let length = code.cdbLength else { preconditionFailure("an operation code without a form") }
        var writer = BigEndianWriter(reserving: length)
        writer.zeros(length)
        writer.set(code.rawValue, at: 0)
        fill(&writer)
        return writer.bytes
    }

    private static func encode(_ transfer: BlockTransfer, _ codes: [OperationCode]) -> [UInt8] {
        let flags =
            transfer.protect << 5 | (transfer.dpo ? 0x10 : 0) | (transfer.fua ? 0x08 : 0)
        let lba = transfer.lba.value
        let count = transfer.count.value
        switch transfer.form {
        case .six:
            precondition(lba < 1 << 21 && (1...SCSILimits.sixByteBlocks).contains(count) && flags == 0)
            return cdb(codes[0]) {
                $0.set(UInt32(lba) | UInt32(codes[0].rawValue) << 24, at: 0)
                $0.set(UInt8(truncatingIfNeeded: count), at: 4)
            }
        case .ten:
            return cdb(codes[1]) {
                $0.set(flags, at: 1)
                $0.set(UInt32(lba), at: 2)
                $0.set(UInt16(count), at: 7)
            }
        case .twelve:
            return cdb(codes[2]) {
                $0.set(flags, at: 1)
                $0.set(UInt32(lba), at: 2)
                $0.set(UInt32(count), at: 6)
            }
        case .sixteen:
            return cdb(codes[3]) {
                $0.set(flags, at: 1)
                $0.set(lba, at: 2)
                $0.set(UInt32(count), at: 10)
            }
        }
    }

    private static func encode(_ fields: SynchronizeCache) -> [UInt8] {
        switch fields.form {
        case .ten:
            return cdb(.synchronizeCache10) {
                $0.set(UInt8(fields.immediate ? 2 : 0), at: 1)
                $0.set(UInt32(fields.lba.value), at: 2)
                $0.set(UInt16(fields.count.value), at: 7)
            }
        case .sixteen:
            return cdb(.synchronizeCache16) {
                $0.set(UInt8(fields.immediate ? 2 : 0), at: 1)
                $0.set(fields.lba.value, at: 2)
                $0.set(UInt32(fields.count.value), at: 10)
            }
        case .six, .twelve: preconditionFailure("SYNCHRONIZE CACHE has no such form")
        }
    }

    private static func encode(_ fields: WriteSame) -> [UInt8] {
        let flags =
            fields.protect << 5 | (fields.anchor ? 0x10 : 0) | (fields.unmap ? 0x08 : 0)
            | (fields.noDataOut ? 0x01 : 0)
        return cdb(.writeSame16) {
            $0.set(flags, at: 1)
            $0.set(fields.lba.value, at: 2)
            $0.set(UInt32(fields.count.value), at: 10)
        }
    }

    private static func encode(_ fields: ModeSense) -> [UInt8] {
        let flags = UInt8(
            (fields.disableBlockDescriptors ? 0x08 : 0) | (fields.longLBAAccepted ? 0x10 : 0))
        precondition(fields.page < 0x40)
        let page = fields.control.rawValue << 6 | fields.page
        switch fields.form {
        case .six:
            precondition(!fields.longLBAAccepted)
            return cdb(.modeSense6) {
                $0.set(flags, at: 1)
                $0.set(page, at: 2)
                $0.set(fields.subpage, at: 3)
                $0.set(UInt8(fields.allocationLength), at: 4)
            }
        case .ten:
            return cdb(.modeSense10) {
                $0.set(flags, at: 1)
                $0.set(page, at: 2)
                $0.set(fields.subpage, at: 3)
                $0.set(UInt16(fields.allocationLength), at: 7)
            }
        case .twelve, .sixteen: preconditionFailure("MODE SENSE has no such form")
        }
    }
}
