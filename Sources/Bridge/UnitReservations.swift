import SCSI

/// An initiator port, which a registration belongs to: it outlives the session.
struct InitiatorPort: Hashable, Sendable {
    /// The iSCSI name.
    var name: String
    /// The ISID.
    var session: UInt64

    init(name: String, session: UInt64) {
        self.name = name
        self.session = session
    }

    init(_ nexus: Nexus) { self.init(name: nexus.initiatorName, session: nexus.sessionIdentifier) }
}

/// The registrations and the reservation of one logical unit (SPC-4 §5.13), and what the service actions of
/// PERSISTENT RESERVE OUT make of them. A value without I/O: what others must be told is given back.
struct UnitReservations: Sendable {
    /// What a service action brought about.
    enum Effect: Equatable, Sendable {
        /// RESERVATION CONFLICT; nothing was changed.
        case conflict
        case done(Consequences)
    }

    struct Consequences: Equatable, Sendable {
        /// Unit attentions to establish.
        var attentions: [InitiatorPort: AdditionalSenseCode] = [:]
        /// Whose registrations were taken by PREEMPT.
        var preempted: Set<InitiatorPort> = []
    }

    struct Registration: Equatable, Sendable {
        var port: InitiatorPort
        var key: UInt64
    }

    struct Reservation: Equatable, Sendable {
        var type: ReservationType
        /// Who made it. With the types for all registrants that says nothing.
        var holder: InitiatorPort
    }

    /// Whether they outlive the process: the APTPL bit of the last registration (SPC-4 §5.13.5).
    var persists = false
    /// PRGENERATION.
    var generation: UInt32 = 0
    /// In the order in which they came.
    var registrations: [Registration] = []
    /// Its holder is registered.
    var reservation: Reservation?

    func key(of port: InitiatorPort) -> UInt64? { registrations.first { $0.port == port }?.key }

    func holds(_ port: InitiatorPort) -> Bool {
        guard let reservation else { return false }
        return reservation.type.isAllRegistrants ? key(of: port) != nil : reservation.holder == port
    }

    /// Whether `port` may not do what is like a read, or a write.
    func excludes(_ port: InitiatorPort, writing: Bool) -> Bool {
        guard let reservation, writing || reservation.type.excludesReads, !holds(port) else { return false }
        return !(reservation.type.admitsRegistrants && key(of: port) != nil)
    }

    /// READ RESERVATION.
    var held: (key: UInt64, type: ReservationType)? {
        reservation.map { ($0.type.isAllRegistrants ? 0 : key(of: $0.holder) ?? 0, $0.type) }
    }

    // MARK: Service actions

    mutating func apply(
        _ command: PersistentReserveOut, _ parameters: ReservationParameters, from port: InitiatorPort
    ) throws(CheckCondition) -> Effect {
        let action = command.action
        if action == .register || action == .registerAndIgnoreExistingKey {
            return try register(parameters, ignoringKey: action != .register, port)
        }
        guard key(of: port) == parameters.key else { return .conflict }
        switch action {
        case .register, .registerAndIgnoreExistingKey: preconditionFailure("dealt with above")
        case .reserve: return reserve(try command.checkedType(), port)
        case .release: return try release(try command.checkedType(), port)
        case .clear: return clear(port)
        case .preempt, .preemptAndAbort:
            return try preempt(parameters.serviceActionKey, try command.checkedType(), port)
        }
    }

    private mutating func register(
        _ parameters: ReservationParameters, ignoringKey: Bool, _ port: InitiatorPort
    ) throws(CheckCondition) -> Effect {
        let index = registrations.firstIndex { $0.port == port }
        if !ignoringKey, parameters.key != (index.map { registrations[$0].key } ?? 0) { return .conflict }
        let key = parameters.serviceActionKey
        switch index {
        case nil where key == 0: return .done(Consequences())
        case let index? where key == 0:
            let wasHeld = reservation.map {
                $0.type.isAllRegistrants ? registrations.count == 1 : $0.holder == port
            }
            registrations.remove(at: index)
            generation &+= 1
            return .done(wasHeld == true ? endReservation() : Consequences())
        case let index?: registrations[index].key = key
        case nil:
            guard registrations.count < BridgeLimits.registrations else {
                throw CheckCondition(SenseData(.illegalRequest, .insufficientRegistrationResources))
            }
            registrations.append(Registration(port: port, key: key))
        }
        generation &+= 1
        return .done(Consequences())
    }

    private mutating func reserve(_ type: ReservationType, _ port: InitiatorPort) -> Effect {
        if let reservation {
            guard holds(port), reservation.type == type else { return .conflict }
            return .done(Consequences())
        }
        reservation = Reservation(type: type, holder: port)
        return .done(Consequences())
    }

    private mutating func release(
        _ type: ReservationType, _ port: InitiatorPort
    ) throws(CheckCondition) -> Effect {
        guard let reservation, holds(port) else { return .done(Consequences()) }
        guard reservation.type == type else {
            throw CheckCondition(SenseData(.illegalRequest, .invalidReleaseOfPersistentReservation))
        }
        var consequences = endReservation()
        consequences.attentions[port] = nil
        return .done(consequences)
    }

    /// The reservation is over; those who were admitted by being registered are told.
    private mutating func endReservation() -> Consequences {
        var consequences = Consequences()
        if reservation?.type.admitsRegistrants == true {
            for other in registrations { consequences.attentions[other.port] = .reservationsReleased }
        }
        reservation = nil
        return consequences
    }

    private mutating func clear(_ port: InitiatorPort) -> Effect {
        var consequences = Consequences()
        for other in registrations where other.port != port {
            consequences.attentions[other.port] = .reservationsPreempted
        }
        registrations = []
        reservation = nil
        generation &+= 1
        return .done(consequences)
    }

    private mutating func preempt(
        _ key: UInt64, _ type: ReservationType, _ port: InitiatorPort
    ) throws(CheckCondition) -> Effect {
        let old = reservation
        // A reservation of all registrants is preempted by the key 0, any other by its holder's.
        let takesReservation = old.map {
            $0.type.isAllRegistrants ? key == 0 : self.key(of: $0.holder) == key
        }
        if key == 0, takesReservation != true {
            throw CheckCondition(.invalidFieldInParameterList(byte: 8))
        }
        let takes = { (entry: Registration) in key == 0 || entry.key == key }
        guard takesReservation == true else {
            guard registrations.contains(where: takes) else { return .conflict }
            return .done(remove(takes, by: port))
        }
        var consequences = remove({ takes($0) && $0.port != port }, by: port)
        reservation = Reservation(type: type, holder: port)
        if let old, old.type != type {
            for other in registrations where other.port != port {
                consequences.attentions[other.port] = .reservationsReleased
            }
        }
        return .done(consequences)
    }

    private mutating func remove(_ takes: (Registration) -> Bool, by port: InitiatorPort) -> Consequences {
        var consequences = Consequences()
        for entry in registrations where takes(entry) {
            consequences.preempted.insert(entry.port)
            if entry.port != port { consequences.attentions[entry.port] = .registrationsPreempted }
        }
        registrations.removeAll(where: takes)
        generation &+= 1
        // Only one that all registrants held can have lost its last holder so.
        if registrations.isEmpty { reservation = nil }
        return consequences
    }
}
