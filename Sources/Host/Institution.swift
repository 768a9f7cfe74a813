import Blocks
import FoundationEssentials
import Glibc
import HostControl
import OriginalImage
import Synchronization

extension CopyOnWriteVolume {
    /// Runs one control operation when it is its turn.
    func inTurn<Result>(_ body: () throws(ControlError) -> Result) throws(ControlError) -> Result {
        takeTurn()
        defer { giveTurn() }
        guard !control.withLock({ $0.isClosed }) else {
            throw ControlError(.ending, "the host is shutting down")
        }
        return try body()
    }

    /// - Parameter restarting: whose turn it is, if it is the host's own.
    func takeTurn(for restarting: Epoch? = nil) {
        control.wait { state -> Void? in
            guard !state.isBusy, state.restarting == nil || state.restarting === restarting else {
                return nil
            }
            state.isBusy = true
            return ()
        }
    }

    func giveTurn() { control.withLockAndNotify { $0.isBusy = false } }

    // MARK: Epochs

    /// Institutes copy-on-write: the epoch's instant is a moment within this call. The slow part comes first;
    /// the gate is closed only for the writes in flight and a flush, or not at all within the holder's freeze.
    /// - Throws: ``ControlError/Code/frozen`` within somebody else's freeze, among others.
    public func begin(holder: EpochHolder? = nil) throws(ControlError) -> EpochStatus {
        try inTurn { () throws(ControlError) in
            try requireNotEnding()
            try requireNoFreeze(exceptOf: holder)
            try requireNoFailedFlush()
            switch log.epoch?.state {
            case .open: throw ControlError(.epochOpen, "an epoch is open already: \(log.epoch!.uuid)")
            case .ended, .void:
                throw ControlError(
                    .cacheRetained, "the cache still holds epoch \(log.epoch!.uuid); release it first")
            case .released, nil: break
            }
            let next = Epoch(
                number: (log.epoch?.number ?? 0) + 1, uuid: UUID.fresh(), holder: holder,
                chunkCount: geometry.chunkCount)
            try controlling {
                () throws(LogError) in
                try log.begin(number: next.number, uuid: next.uuid, institutedAt: LogEpoch.notInstituted)
            }
            do throws(ControlError) {
                try flushSourceForControl()
                try install(next)
            } catch {
                // The cache may have been full as soon as the gate was open.
                let voided = log.epoch.flatMap { $0.state == .void ? $0.voidReason : nil }
                // Nobody has heard of this epoch; its cache is free again.
                abandon(next, "institution failed: \(error.message)")
                try controlling { () throws(LogError) in try log.release() }
                throw voided.map { ControlError(.epochVoid, "the epoch is void: \($0)") } ?? error
            }
            return try statusOfEpoch()
        }
    }

    /// Opens the epoch, which the log has, to the write path, with the gate closed and drained, and has the log know
    /// the instant.
    func install(_ next: Epoch) throws(ControlError) {
        let instant = try publishInGate(next)
        do throws(LogError) { try log.stamp(institutedAt: instant) } catch {
            // It was open, and its log is lost already: the host is about to begin anew.
            if control.withLock({ $0.restarting === next }) { return }
            throw ControlError(.io, "the cache: \(error)")
        }
    }

    private func publishInGate(_ next: Epoch) throws(ControlError) -> Int64 {
        // Within a freeze: the holder's own, or anybody's if the host itself begins anew. It cannot be another's
        // institution, since it is our turn.
        if let instant = control.withLock({ publish(next, &$0) }) { return instant }
        let deadline = MonotonicClock.now + UInt64(settings.drainSeconds * 1e9)
        let token = try closeGateAndFlush(isFreeze: false, holder: next.holder, until: deadline)
        let instant = control.withLockAndNotify { state -> Int64? in
            guard state.standstill?.token == token else { return nil }
            defer { openGate(&state) }
            return publish(next, &state)
        }
        guard let instant else { throw overtaken() }
        return instant
    }

    /// - Returns: the instant; nil when the gate is not closed.
    private func publish(_ next: Epoch, _ state: inout ControlState) -> Int64? {
        guard let standstill = state.standstill else { return nil }
        let instant = settings.realTime()
        next.instant.store(instant, ordering: .relaxed)
        state.epoch = next
        epoch = next
        isEpochOpen.store(true, ordering: .releasing)
        hook?(.instituted(next.uuid))
        next.gateNanoseconds.store(MonotonicClock.now &- standstill.since, ordering: .relaxed)
        return instant
    }

    /// Makes the log durable up to here.
    public func mark(epoch uuid: UUID) throws(ControlError) -> LogMarker {
        try inTurn(of: uuid) { () throws(ControlError) in
            try requireOpen(uuid)
            return try settling { () throws(LogError) in try log.mark() }
        }
    }

    /// Ends the relation and retains the cache. An epoch that has ended already gives its final marker again.
    public func end(epoch uuid: UUID) throws(ControlError) -> LogMarker {
        try inTurn(of: uuid) { () throws(ControlError) in try endInTurn(uuid) }
    }

    private func endInTurn(_ uuid: UUID) throws(ControlError) -> LogMarker {
        if let ended = log.epoch, ended.uuid == uuid, ended.state == .ended { return LogMarker(ended.marker) }
        try requireOpen(uuid)
        // The log first: a crash after it finds the epoch ended, never one with originals missing.
        let marker = try settling { () throws(LogError) in try log.end() }
        currentEpoch?.move(to: .ended)
        isEpochOpen.store(false, ordering: .releasing)
        return marker
    }

    /// The retained cache of that epoch is needed no more; an open epoch is ended first.
    public func release(epoch uuid: UUID) throws(ControlError) {
        try inTurn(of: uuid) { () throws(ControlError) in
            guard let found = log.epoch, found.uuid == uuid, found.state != .released else {
                throw ControlError(.noSuchEpoch, "the cache holds no epoch \(uuid)")
            }
            if found.state == .open {
                do throws(ControlError) { _ = try endInTurn(uuid) } catch {
                    guard log.epoch?.state == .void else { throw error }
                }
            }
            try controlling { () throws(LogError) in try log.release() }
        }
    }

    func requireOpen(_ uuid: UUID) throws(ControlError) {
        guard let found = log.epoch, found.uuid == uuid, found.state != .released else {
            throw ControlError(.noSuchEpoch, "there is no epoch \(uuid)")
        }
        switch found.state {
        case .open: return
        case .void: throw ControlError(.epochVoid, "the epoch is void: \(found.voidReason)")
        case .ended, .released: throw ControlError(.noSuchEpoch, "the epoch \(uuid) has ended")
        }
    }

    /// A log that cannot be made durable is not complete: its epoch becomes void.
    private func settling(_ body: () throws(LogError) -> LogPosition) throws(ControlError) -> LogMarker {
        do throws(LogError) { return LogMarker(try body()) } catch {
            if let epoch = currentEpoch { loseLog(of: epoch, "the cache failed: \(error)") }
            throw ControlError(.epochVoid, "the epoch is void: \(log.epoch?.voidReason ?? "\(error)")")
        }
    }

    func controlling(_ body: () throws(LogError) -> Void) throws(ControlError) {
        do throws(LogError) { try body() } catch { throw ControlError(.io, "the cache: \(error)") }
    }

    var currentEpoch: Epoch? { control.withLock { $0.epoch } }

    /// Flushes everything and records what could not be recorded before; for the host's end, when nobody writes
    /// any more. An open epoch stays open and resumes. After ``endStandstills(force:)`` all control operations are
    /// refused from here on.
    public func close() throws(StoreError) {
        takeTurn()
        defer { giveTurn() }
        control.withLock { $0.isClosed = $0.isEnding }
        log.close()
        try log.store.flush()
        try flushSource()
    }
}
