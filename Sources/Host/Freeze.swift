import Blocks
import HostControl

/// What the control operations share. They take turns; `volume.thaw`, a freeze's time-out and the host's end do
/// not wait for a turn.
struct ControlState {
    /// A closed gate.
    struct Standstill {
        var token: UInt64
        /// When the gate was closed, by the monotonic clock.
        var since: UInt64
        /// Whose it is; nil: the process's own.
        var holder: EpochHolder?
        /// Whether it lasts beyond the call: else it is that of an institution.
        var isFreeze: Bool
    }
    var isBusy = false
    /// Set while the gate is closed, and nowhere else: the two change together.
    var standstill: Standstill?
    var standstills: UInt64 = 0
    /// The host ends: the gate is not closed any more.
    var isEnding = false
    /// Source and cache are not used any more.
    var isClosed = false
    /// The last epoch, for those outside the gate.
    var epoch: Epoch?
    /// The epoch whose log is lost and in whose place another is being begun: the next turn is that one's.
    var restarting: Epoch?
    /// Counts the changes of `restarting`.
    var restartEvents: UInt64 = 0
}

extension CopyOnWriteVolume {
    public var isFrozen: Bool { control.withLock { $0.standstill?.isFreeze == true } }

    /// Flushes the source, closes the gate, waits for the writes in flight and flushes again. Writes wait at the gate
    /// until the holder thaws or disconnects, or until `timeout` seconds have passed since the call. Until then nobody
    /// else can thaw, renew or institute: what happens at one instant, or under a restore, is the holder's alone.
    /// - Parameter renew: the volume is frozen already; only the time-out begins anew.
    /// - Throws: ``ControlError/Code/frozen`` when it is frozen already, or (renewing) by somebody else;
    ///   ``ControlError/Code/timedOut`` when the time-out, or ``VolumeSettings/drainSeconds``, came first: the volume
    ///   is thawed then; ``ControlError/Code/ending``.
    public func freeze(
        timeout: Double, renew: Bool = false, holder: EpochHolder? = nil
    ) throws(ControlError) {
        guard timeout > 0, timeout <= Limits.freezeSeconds else {
            throw ControlError(
                .invalidParameters, "timeout must be more than 0 and at most \(Limits.freezeSeconds) seconds")
        }
        let called = MonotonicClock.now
        try inTurn { () throws(ControlError) in
            try requireNotEnding()
            // A renewal counts from its turn: what it waited for kept the volume frozen.
            let deadline = (renew ? MonotonicClock.now : called) + UInt64(timeout * 1e9)
            let token: UInt64
            if renew {
                try requireNoFreeze(exceptOf: holder)
                token = try renewFreeze()
                try startTimer(token, deadline)
            } else {
                guard !isFrozen else { throw ControlError(.frozen, "the volume is frozen already") }
                // What is slow first, while the applications go on.
                try flushSourceForControl()
                token = try closeGateAndFlush(isFreeze: true, holder: holder, until: deadline)
            }
            // Its connection may have gone while the source was flushed: nobody would thaw. And the timer may be late:
            // what is answered must be true.
            if holder?.isAlive == false || MonotonicClock.now >= deadline { _ = thaw { $0.token == token } }
            guard control.withLock({ $0.standstill?.token == token }) else { throw overtaken() }
        }
    }

    private func renewFreeze() throws(ControlError) -> UInt64 {
        try control.withLockAndNotify { state throws(ControlError) in
            // Thawed meanwhile? Nobody else can have frozen it: it is our turn.
            guard state.standstill != nil else {
                throw ControlError(.invalidRequest, "the volume is not frozen (any more)")
            }
            state.standstills += 1
            state.standstill?.token = state.standstills
            return state.standstills
        }
    }

    func requireNotEnding() throws(ControlError) {
        guard !control.withLock({ $0.isEnding }) else {
            throw ControlError(.ending, "the host is shutting down")
        }
    }

    /// Refuses what only the holder of a freeze may do.
    func requireNoFreeze(exceptOf holder: EpochHolder?) throws(ControlError) {
        let isForeign = control.withLock { state in
            state.standstill.map { $0.isFreeze && $0.holder !== holder } ?? false
        }
        guard !isForeign else { throw ControlError(.frozen, "the volume is frozen by another connection") }
    }

    /// Opens the gate at the deadline, unless that standstill is over or was renewed before.
    private func startTimer(_ token: UInt64, _ deadline: UInt64) throws(ControlError) {
        let timer = BlockingThread.start(stackSize: 128 << 10) { [self] in
            let now = MonotonicClock.now
            let over: Void? = control.wait(nanoseconds: deadline - min(now, deadline)) { state in
                state.standstill?.token == token ? nil : ()
            }
            if over == nil, thaw(if: { $0.token == token }) {
                settings.logger?.notice("the volume goes on: the time-out of its standstill is over")
            }
        }
        guard timer else {
            _ = thaw { $0.token == token }
            throw ControlError(.internalError, "the system has no thread for the time-out")
        }
    }

    /// Opens the gate of any freeze: for the host itself.
    /// - Returns: whether the volume was still frozen.
    public func thaw() -> Bool { thaw { $0.isFreeze } }

    /// Opens the gate of the holder's freeze.
    /// - Returns: whether the volume was still frozen.
    /// - Throws: ``ControlError/Code/frozen`` when somebody else froze it.
    public func thaw(by holder: EpochHolder) throws(ControlError) -> Bool {
        if thaw(if: { $0.isFreeze && $0.holder === holder }) { return true }
        try requireNoFreeze(exceptOf: holder)
        return false
    }

    /// The holder is gone: its freeze is thawed, and no write waits for it to end its epoch. Does not block.
    public func disconnect(_ holder: EpochHolder) {
        holder.release()
        if thaw(if: { $0.isFreeze && $0.holder === holder }) {
            settings.logger?.notice("the volume is thawed: who froze it is gone")
        }
        let epoch = control.withLock { $0.epoch }
        if let epoch, epoch.holder === holder { epoch.changes.withLockAndNotify { _ in } }
    }

    /// The host ends: no freeze and no institution begins any more, one that is under way fails, and writes that wait
    /// at the gate go on. Does not block. May be called again.
    /// - Throws: ``ControlError/Code/epochOpen`` when an epoch is open, unless `force`d; then nothing is changed.
    public func endStandstills(force: Bool) throws(ControlError) {
        let ended = try control.withLockAndNotify { state throws(ControlError) -> ControlState.Standstill? in
            guard force || state.epoch?.phase.isUnderWay != true else {
                throw ControlError(.epochOpen, "an epoch is open; end it first, or force")
            }
            state.isEnding = true
            return openGate(&state)
        }
        if let ended {
            settings.logger?.notice(
                ended.isFreeze
                    ? "the volume was frozen; it is thawed, since the host ends"
                    : "the institution of an epoch is given up, since the host ends")
        }
    }

    private func thaw(if isMeant: (ControlState.Standstill) -> Bool) -> Bool {
        control.withLockAndNotify { state in
            guard let standstill = state.standstill, isMeant(standstill) else { return false }
            return openGate(&state) != nil
        }
    }

    /// - Returns: what ended by it.
    @discardableResult
    func openGate(_ state: inout ControlState) -> ControlState.Standstill? {
        guard let standstill = state.standstill else { return nil }
        state.standstill = nil
        gate.open()
        meters.gateTime.count(since: standstill.since)
        return standstill
    }

    /// Why a standstill was over before its call had done its work.
    func overtaken() -> ControlError {
        do throws(ControlError) { try requireNotEnding() } catch { return error }
        return ControlError(
            .timedOut, "the time-out passed before the volume stood still; it is thawed: try again")
    }

    /// Leaves the gate open when it throws.
    /// - Parameter deadline: at which the gate opens by itself, whatever is under way.
    /// - Returns: the standstill's token.
    func closeGateAndFlush(
        isFreeze: Bool, holder: EpochHolder?, until deadline: UInt64
    ) throws(ControlError) -> UInt64 {
        let token = try control.withLock { state throws(ControlError) in
            guard !state.isEnding else { throw ControlError(.ending, "the host is shutting down") }
            let now = MonotonicClock.now
            if now >= deadline {
                throw ControlError(
                    .timedOut, "the time-out passed while the source was flushed; the volume is not frozen")
            }
            state.standstills += 1
            state.standstill = ControlState.Standstill(
                token: state.standstills, since: now, holder: holder, isFreeze: isFreeze)
            gate.close()
            return state.standstills
        }
        // From the gate's closing on, so that nothing that takes long below can hold the writes longer.
        try startTimer(token, deadline)
        do throws(ControlError) {
            try drain(until: deadline)
            try flushSourceForControl()
        } catch {
            _ = thaw { $0.token == token }
            throw error
        }
        return token
    }

    private func drain(until deadline: UInt64) throws(ControlError) {
        if defects.contains(.skipsDrain) { return }
        let start = MonotonicClock.now
        let patience = min(UInt64(settings.drainSeconds * 1e9), deadline - min(start, deadline))
        switch gate.drain(nanoseconds: patience) {
        case .drained: return
        case .reopened, .timedOut:
            // Opened by the timer it is the same.
            try requireNotEnding()
            throw ControlError(.timedOut, "writes in flight did not finish in time; try again")
        }
    }
}
