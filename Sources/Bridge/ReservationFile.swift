import Blocks
import SCSI

/// What of a unit's reservations outlives the process, as it lies in a file (see <doc:ReservationState>).
struct ReservationFile: Equatable, Sendable {
    /// Why bytes are not what they should be.
    struct Damage: Error, Equatable, Sendable {
        var reason: String
        init(_ reason: String) { self.reason = reason }
    }

    private static let magic: UInt64 = 0x4F55_5442_5253_5631  // "OUTBRSV1"
    private static let version: UInt32 = 1
    private static let noHolder: UInt32 = .max
    private static let headerBytes = 36
    /// A name's length has 16 bits in the file, an iSCSI name 223 bytes at most.
    private static let nameBytes = 0...1024
    /// The largest file that can be right, bytes.
    static let maximumBytes = headerBytes + BridgeLimits.registrations * (18 + nameBytes.upperBound) + 4

    /// The 60 bits of the unit's NAA designator.
    var unit: UInt64
    var registrations: [UnitReservations.Registration]
    var reservation: UnitReservations.Reservation?

    init(unit: UInt64, _ state: UnitReservations) {
        self.unit = unit
        registrations = state.registrations
        reservation = state.reservation
    }

    /// As it is after a start. The generation begins at 0 again (SPC-4 §5.13.8).
    var state: UnitReservations {
        var state = UnitReservations()
        state.registrations = registrations
        state.reservation = reservation
        state.persists = true
        return state
    }

    func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: 4096)
        writer.integer(Self.magic)
        writer.integer(Self.version)
        writer.integer(UInt32(0))
        writer.integer(unit)
        writer.integer(UInt32(reservation?.type.rawValue ?? 0))
        // Of a reservation of all registrants, the one who made it may be registered no more: nobody by itself holds it.
        let holder = reservation.flatMap { held in registrations.firstIndex { $0.port == held.holder } }
        writer.integer(holder.map(UInt32.init) ?? Self.noHolder)
        writer.integer(UInt32(registrations.count))
        for registration in registrations {
            writer.integer(registration.key)
            writer.integer(registration.port.session)
            writer.integer(UInt16(registration.port.name.utf8.count))
            writer.append(registration.port.name.utf8)
        }
        writer.set(UInt32(writer.bytes.count + 4), at: 12)
        writer.integer(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    init(decoding bytes: [UInt8]) throws(Damage) {
        guard bytes.count >= Self.headerBytes + 4 else { throw Damage("it is too short") }
        let decoded: Result<ReservationFile, Damage> = bytes.withUnsafeBytes { raw in
            do throws(Damage) { return .success(try Self.decode(raw)) } catch { return .failure(error) }
        }
        self = try decoded.get()
    }

    private static func decode(_ raw: UnsafeRawBufferPointer) throws(Damage) -> ReservationFile {
        guard raw.bigEndian(at: 0, as: UInt64.self) == magic else {
            throw Damage("it is no file of reservations")
        }
        let version: UInt32 = raw.bigEndian(at: 8)
        guard version == Self.version else {
            throw Damage("it has format version \(version), of which this program knows nothing")
        }
        guard raw.bigEndian(at: 12, as: UInt32.self) == UInt32(clamping: raw.count) else {
            throw Damage("its length is not the one that it tells")
        }
        let body = UnsafeRawBufferPointer(rebasing: raw[..<(raw.count - 4)])
        guard raw.bigEndian(at: body.count, as: UInt32.self) == CRC32C.checksum(body) else {
            throw Damage("its checksum does not fit")
        }
        var reader = BigEndianReader(body)
        do {
            try reader.skip(16)
            return try read(&reader)
        } catch let damage as Damage { throw damage } catch { throw Damage("it ends within a registration") }
    }

    private static func read(_ reader: inout BigEndianReader) throws -> ReservationFile {
        var file = ReservationFile(unit: try reader.integer(), UnitReservations())
        let type: UInt32 = try reader.integer()
        let holder: UInt32 = try reader.integer()
        let count: UInt32 = try reader.integer()
        guard count <= UInt32(BridgeLimits.registrations) else {
            throw Damage("it has too many registrations")
        }
        for _ in 0..<count {
            let key: UInt64 = try reader.integer()
            let session: UInt64 = try reader.integer()
            let length = Int(try reader.integer(UInt16.self))
            guard nameBytes.contains(length) else { throw Damage("it has a name that is too long") }
            let name = String(decoding: try reader.bytes(length), as: UTF8.self)
            file.registrations.append(
                UnitReservations.Registration(port: InitiatorPort(name: name, session: session), key: key))
        }
        guard reader.remaining == 0 else { throw Damage("it goes on behind its last registration") }
        guard type != 0 else { return file }
        guard let type = UInt8(exactly: type).flatMap(ReservationType.init(rawValue:)) else {
            throw Damage("it has a type of reservation that there is not")
        }
        guard let first = file.registrations.first?.port else {
            throw Damage("it has a reservation without a holder")
        }
        if holder == noHolder, type.isAllRegistrants {
            file.reservation = UnitReservations.Reservation(type: type, holder: first)
        } else if Int(holder) < file.registrations.count {
            file.reservation = UnitReservations.Reservation(
                type: type, holder: file.registrations[Int(holder)].port)
        } else {
            throw Damage("it has a reservation without a holder")
        }
        return file
    }
}
