import Blocks

/// Service actions of PERSISTENT RESERVE IN (SPC-4 table 231).
public enum PersistentReserveInAction: UInt8, CaseIterable, Sendable {
    case readKeys = 0
    case readReservation = 1
    case reportCapabilities = 2
    case readFullStatus = 3
}

/// Service actions of PERSISTENT RESERVE OUT (SPC-4 table 244); REGISTER AND MOVE (07h) and REPLACE LOST
/// RESERVATION (08h) are not among them.
public enum PersistentReserveOutAction: UInt8, CaseIterable, Sendable {
    case register = 0
    case reserve = 1
    case release = 2
    case clear = 3
    case preempt = 4
    case preemptAndAbort = 5
    case registerAndIgnoreExistingKey = 6
}

/// The type of a persistent reservation (SPC-4 table 236).
public enum ReservationType: UInt8, CaseIterable, Sendable {
    case writeExclusive = 1
    case exclusiveAccess = 3
    case writeExclusiveRegistrantsOnly = 5
    case exclusiveAccessRegistrantsOnly = 6
    case writeExclusiveAllRegistrants = 7
    case exclusiveAccessAllRegistrants = 8

    /// Every registered I_T nexus holds the reservation.
    public var isAllRegistrants: Bool {
        self == .writeExclusiveAllRegistrants || self == .exclusiveAccessAllRegistrants
    }

    /// Every registered I_T nexus may do what the holder may.
    public var admitsRegistrants: Bool { self != .writeExclusive && self != .exclusiveAccess }

    /// Those who are not admitted may not even read.
    public var excludesReads: Bool {
        switch self {
        case .exclusiveAccess, .exclusiveAccessRegistrantsOnly, .exclusiveAccessAllRegistrants: true
        default: false
        }
    }
}

/// The CDB of PERSISTENT RESERVE OUT (SPC-4 §6.16).
public struct PersistentReserveOut: Hashable, Sendable {
    public var action: PersistentReserveOutAction
    /// 0: the logical unit, the only one there is.
    public var scope: UInt8 = 0
    /// TYPE as it stands there, valid or not: only some service actions look at it.
    public var type: UInt8
    /// Bytes.
    public var parameterListLength: Int

    public init(_ action: PersistentReserveOutAction, type: ReservationType? = nil) {
        self.action = action
        self.type = type?.rawValue ?? 0
        parameterListLength = ReservationParameters.length
    }

    init(decoding cdb: [UInt8]) throws(CheckCondition) {
        guard let action = PersistentReserveOutAction(rawValue: cdb[1] & 0x1F) else { throw .cdb(1, bit: 4) }
        self.init(action)
        scope = cdb[2] >> 4
        type = cdb[2] & 0xF
        parameterListLength = Int(cdb.bigEndian(at: 5, as: UInt32.self))
    }

    /// TYPE, where the service action needs it.
    /// - Throws: INVALID FIELD IN CDB for a scope or type that there is not.
    public func checkedType() throws(CheckCondition) -> ReservationType {
        guard scope == 0 else { throw .cdb(2, bit: 7) }
        guard let type = ReservationType(rawValue: type) else { throw .cdb(2, bit: 3) }
        return type
    }
}

/// The parameter list of PERSISTENT RESERVE OUT (SPC-4 table 246).
public struct ReservationParameters: Hashable, Sendable {
    /// Bytes, without SPEC_I_PT.
    public static let length = 24

    /// RESERVATION KEY.
    public var key: UInt64
    /// SERVICE ACTION RESERVATION KEY.
    public var serviceActionKey: UInt64
    /// SPEC_I_PT: register other initiator ports, too.
    public var specifiesPorts = false
    /// ALL_TG_PT: register with all target ports.
    public var allTargetPorts = false
    /// APTPL: registrations and reservation outlive a loss of power.
    public var persists = false

    public init(key: UInt64, serviceActionKey: UInt64 = 0, persists: Bool = false) {
        self.key = key
        self.serviceActionKey = serviceActionKey
        self.persists = persists
    }

    /// - Throws: PARAMETER LIST LENGTH ERROR for fewer than ``length`` bytes.
    public init(decoding bytes: [UInt8]) throws(CheckCondition) {
        guard bytes.count >= Self.length else { throw CheckCondition(.parameterListLengthError) }
        self.init(key: bytes.bigEndian(at: 0), serviceActionKey: bytes.bigEndian(at: 8))
        specifiesPorts = bytes[20] & 0x08 != 0
        allTargetPorts = bytes[20] & 0x04 != 0
        persists = bytes[20] & 0x01 != 0
    }

    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: Self.length)
        writer.integer(key)
        writer.integer(serviceActionKey)
        writer.zeros(4)
        writer.integer(
            UInt8((specifiesPorts ? 0x08 : 0) | (allTargetPorts ? 0x04 : 0) | (persists ? 0x01 : 0)))
        writer.zeros(3)
        return writer.bytes
    }
}

/// Parameter data of PERSISTENT RESERVE IN (SPC-4 §6.15).
public enum ReservationData {
    /// READ KEYS.
    public static func keys(generation: UInt32, _ keys: [UInt64]) -> [UInt8] {
        var writer = BigEndianWriter(reserving: 8 + 8 * keys.count)
        writer.integer(generation)
        writer.integer(UInt32(8 * keys.count))
        for key in keys { writer.integer(key) }
        return writer.bytes
    }

    /// READ RESERVATION. The key of a reservation that all registrants hold is 0.
    public static func reservation(
        generation: UInt32, _ held: (key: UInt64, type: ReservationType)?
    ) -> [UInt8] {
        var writer = BigEndianWriter(reserving: 24)
        writer.integer(generation)
        writer.integer(UInt32(held == nil ? 0 : 16))
        guard let held else { return writer.bytes }
        writer.integer(held.key)
        writer.zeros(5)
        writer.integer(held.type.rawValue)
        writer.zeros(2)
        return writer.bytes
    }

    /// REPORT CAPABILITIES: all six types. RESERVE and RELEASE are not compatible with registrations (CRH is 0).
    /// - Parameters:
    ///   - canPersist: PTPL_C, APTPL is taken.
    ///   - persists: PTPL_A, it was asked for by the last registration.
    public static func capabilities(canPersist: Bool, persists: Bool) -> [UInt8] {
        [0, 8, canPersist ? 0x01 : 0, 0x80 | (persists ? 0x01 : 0), 0xEA, 0x01, 0, 0]
    }

    /// One registration in READ FULL STATUS.
    public struct FullStatus: Hashable, Sendable {
        public var key: UInt64
        /// Set exactly if the nexus holds the reservation.
        public var type: ReservationType?
        public var initiatorName: String
        /// 48 bits.
        public var isid: UInt64

        public init(key: UInt64, type: ReservationType?, initiatorName: String, isid: UInt64) {
            self.key = key
            self.type = type
            self.initiatorName = initiatorName
            self.isid = isid
        }
    }

    /// READ FULL STATUS (SPC-4 table 239), all through the relative target port 1.
    public static func fullStatus(generation: UInt32, _ registrations: [FullStatus]) -> [UInt8] {
        var writer = BigEndianWriter()
        writer.integer(generation)
        writer.integer(UInt32(0))
        for entry in registrations {
            writer.integer(entry.key)
            writer.zeros(4)
            writer.integer(UInt8(entry.type == nil ? 0 : 1))
            writer.integer(entry.type?.rawValue ?? 0)
            writer.zeros(4)
            writer.integer(UInt16(1))
            let transport = transportID(entry.initiatorName, entry.isid)
            writer.integer(UInt32(transport.count))
            writer.append(transport)
        }
        writer.set(UInt32(writer.bytes.count - 8), at: 4)
        return writer.bytes
    }

    /// The TransportID of an iSCSI initiator port (SPC-4 §7.6.4.6): its name, `,i,0x` and the ISID, ended by a
    /// zero at least, whole words.
    static func transportID(_ name: String, _ isid: UInt64) -> [UInt8] {
        let digits = String(isid & 0xFFFF_FFFF_FFFF, radix: 16)
        let text = "\(name),i,0x" + String(repeating: "0", count: 12 - digits.count) + digits
        var padded = Array(text.utf8)
        let length = max(20, Int(UInt64(padded.count + 1).roundedUp(to: 4)))
        padded += repeatElement(0, count: length - padded.count)
        var writer = BigEndianWriter(reserving: 4 + padded.count)
        // Format 01b, protocol 5h.
        writer.append([0x45, 0])
        writer.integer(UInt16(padded.count))
        writer.append(padded)
        return writer.bytes
    }
}
