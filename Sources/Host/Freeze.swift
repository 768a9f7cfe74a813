import Blocks
import HostControl

/// What the control operations share. They take turns; `volume.thaw` and a freeze's time-out do not wait for
/// a turn.
struct ControlState {
    struct Freeze {
        var token: UInt64
        /// When the gate was closed, by the monotonic clock.
        var since: UInt64
        /// Whose freeze it is; nil: the process's own.
        var holder: EpochHolder?
    }
    var isBusy = false
    /// Set while the gate is closed by a freeze.
    var freeze: Freeze?
    var freezes: UInt64 = 0
    /// The last epoch, for those outside the gate.
    var epoch: Epoch?
}

extension CopyOnWriteVolume {
    public var isFrozen: Bool { control.withLock { $0.freeze != nil } }

    /// Closes the gate, waits for the writes in flight and flushes the source. Writes wait at the gate until the
    /// holder thaws or disconnects, or until `timeout` seconds have passed since the call. Until then nobody else
    /// can thaw, renew or institute: what happens at one instant, or under a restore, is the holder's alone.
    /// - Parameter renew: the volume is frozen already; only the time-out begins anew.
    /// - Throws: ``ControlError/Code/frozen`` when it is frozen already, or (renewing) by somebody else.
    public func freeze(
        timeout: Double, renew: Bool = false, holder: EpochHolder? = nil
    ) throws(ControlError) {
        guard timeout > 0, timeout <= Limits.freezeSeconds else {
            throw ControlError(
                .invalidParameters, "timeout must be more than 0 and at most \(Limits.freezeSeconds) seconds")
        }
        let patience = UInt64(timeout * 1e9)
        try inTurn { () throws(ControlError) in
            let called = MonotonicClock.now
            if renew {
                try requireNoFreeze(exceptOf: holder)
                let token = control.withLockAndNotify { state -> UInt64? in
                    // Thawed meanwhile? Nobody else can have frozen it: it is our turn.
                    guard state.freeze != nil else { return nil }
                    state.freezes += 1
                    state.freeze?.token = state.freezes
                    return state.freezes
                }
                guard let token else {
                    throw ControlError(.invalidRequest, "the volume is not frozen (any more)")
                }
                try startFreezeTimer(token, since: called, patience)
                return
            }
            guard !isFrozen else { throw ControlError(.frozen, "the volume is frozen already") }
            try closeGateAndFlush(patience: patience)
            let token = control.withLock { state in
                state.freezes += 1
                state.freeze = ControlState.Freeze(token: state.freezes, since: called, holder: holder)
                return state.freezes
            }
            try startFreezeTimer(token, since: called, patience)
            // Its connection may have gone while the source was flushed: nobody would thaw.
            if let holder, !holder.isAlive { _ = thaw { $0.holder === holder } }
        }
    }

    /// Refuses what only the holder of a freeze may do.
    func requireNoFreeze(exceptOf holder: EpochHolder?) throws(ControlError) {
        let isForeign = control.withLock { state in state.freeze.map { $0.holder !== holder } ?? false }
        guard !isForeign else { throw ControlError(.frozen, "the volume is frozen by another connection") }
    }

    /// Thaws when the time is over, unless that freeze was thawed or renewed before.
    private func startFreezeTimer(
        _ token: UInt64, since: UInt64, _ patience: UInt64
    ) throws(ControlError) {
        let timer = BlockingThread.start(stackSize: 128 << 10) { [self] in
            let spent = MonotonicClock.now &- since
            let over: Void? = control.wait(nanoseconds: patience - min(spent, patience)) { state in
                state.freeze?.token == token ? nil : ()
            }
            if over == nil { _ = thaw { $0.token == token } }
        }
        guard timer else {
            _ = thaw()
            throw ControlError(.internalError, "the system has no thread for the freeze's time-out")
        }
    }

    /// Opens the gate of any freeze: for the host itself.
    /// - Returns: whether the volume was still frozen.
    public func thaw() -> Bool { thaw { _ in true } }

    /// Opens the gate of the holder's freeze.
    /// - Returns: whether the volume was still frozen.
    /// - Throws: ``ControlError/Code/frozen`` when somebody else froze it.
    public func thaw(by holder: EpochHolder) throws(ControlError) -> Bool {
        if thaw(if: { $0.holder === holder }) { return true }
        try requireNoFreeze(exceptOf: holder)
        return false
    }

    /// The holder is gone: its freeze is thawed, and no write waits for it to end its epoch. Does not block.
    public func disconnect(_ holder: EpochHolder) {
        holder.release()
        _ = thaw { $0.holder === holder }
        let epoch = control.withLock { $0.epoch }
        if let epoch, epoch.holder === holder { epoch.changes.withLockAndNotify { _ in } }
    }

    private func thaw(if isMeant: (ControlState.Freeze) -> Bool) -> Bool {
        control.withLockAndNotify { state in
            guard let freeze = state.freeze, isMeant(freeze) else { return false }
            state.freeze = nil
            gate.open()
            meters.gateTime.count(since: freeze.since)
            return true
        }
    }

    /// Leaves the gate open when it throws.
    func closeGateAndFlush(patience: UInt64) throws(ControlError) {
        gate.close()
        guard defects.contains(.skipsDrain) || gate.drain(nanoseconds: patience) else {
            gate.open()
            throw ControlError(.io, "writes in flight did not finish in time; try again")
        }
        do throws(ControlError) { try flushSourceForControl() } catch {
            gate.open()
            throw error
        }
    }
}
