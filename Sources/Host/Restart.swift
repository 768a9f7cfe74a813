import Blocks
import FoundationEssentials
import HostControl
import OriginalImage

// ``CacheFullPolicy/restartFrom``: a log that takes no more originals costs the copy its instant, not its work.
//
// One writer decides it (``Epoch/takeVoiding()``), in this order:
//
// 1. It is announced in the control state. From here on status tells the epoch as open, and every control operation
//    waits until the next epoch is there, or fails with that news.
// 2. The log's epoch becomes void on the cache, before anything is overwritten without its original: a crash finds a void
//    epoch, never one with originals missing.
// 3. The phase becomes `marking`. The logical snapshot is gone, and writers wait for nothing but the gate: not for the
//    cache, nor for chunks that others have claimed. Each leaves the gate with all its chunks marked in `preserved`,
//    whether their originals had got into the log or not.
// 4. A thread takes the next turn and begins the next epoch in the old one's place: log, flush, gate, drain, flush. Once
//    the gate is drained nobody sets bits of the old epoch any more, so that its `preserved` is what was changed between
//    the two instants; it is taken over as it is, since copying it would hold up the writers at the gate.
extension CopyOnWriteVolume {
    /// The log takes no more originals of this epoch: what the policy says happens to it. Returns when writes can go
    /// on without preserving.
    func loseLog(of epoch: Epoch, _ reason: String) {
        guard settings.onCacheFull == .restartFrom, epoch.isHeld,
            epoch.lineage.predecessors.count < HostLimits.restarts
        else { return abandon(epoch, reason) }
        guard epoch.phase == .open, epoch.takeVoiding() else { return epoch.waitUntilNotOpen() }
        guard announceRestart(of: epoch) else { return makeVoid(epoch, reason) }
        hook?(.announced)
        log.void(reason, epoch: epoch.uuid)
        guard let found = log.epoch, found.uuid == epoch.uuid, found.state == .void else {
            // It was ended at that moment: what is in the log is what its copy needs.
            epoch.move(to: .void)
            isEpochOpen.store(false, ordering: .releasing)
            return concludeRestart(of: epoch)
        }
        epoch.move(to: .marking)
        hook?(.marking)
        let hasStarted = BlockingThread.start { [self] in
            takeTurn(for: epoch)
            beginAnew(inPlaceOf: epoch, reason)
            concludeRestart(of: epoch)
            giveTurn()
        }
        if !hasStarted {
            failRestart(of: epoch, "the system has no thread for it")
            concludeRestart(of: epoch)
        }
    }

    /// - Returns: false when the host ends.
    private func announceRestart(of epoch: Epoch) -> Bool {
        control.withLock { state in
            guard !state.isEnding, !state.isClosed else { return false }
            state.restarting = epoch
            state.restartEvents += 1
            return true
        }
    }

    private func concludeRestart(of epoch: Epoch) {
        control.withLockAndNotify { state in
            // The log of the one that was begun may be lost already.
            guard state.restarting === epoch else { return }
            state.restarting = nil
            state.restartEvents += 1
        }
    }

    /// In turn.
    private func beginAnew(inPlaceOf old: Epoch, _ reason: String) {
        hook?(.beginsAnew)
        let next = old.successor(defects)
        do throws(ControlError) {
            try requireNotEnding()
            try requireNoFailedFlush()
            try controlling { () throws(LogError) in
                try log.begin(
                    number: next.number, uuid: next.uuid, institutedAt: LogEpoch.notInstituted,
                    inPlaceOf: old.uuid)
            }
        } catch { return failRestart(of: old, error.message) }
        do throws(ControlError) {
            try flushSourceForControl()
            hook?(.begunAnew)
            try install(next)
        } catch {
            hook?(.failsAnew)
            // The cache says that it is this one that failed; so does the status.
            abandon(next, "\(reason); the host could not begin anew: \(error.message)")
            let isLostAlready = control.withLock { state in
                state.epoch = next
                return state.restarting === next
            }
            // Writers had filled it as soon as it was open: it is begun anew in its turn, and they mark what they change.
            if isLostAlready { return old.move(to: .void) }
            return failRestart(of: old, error.message)
        }
        // Nobody is left who would look at it in the gate.
        old.move(to: .void)
        settings.logger?.warning(
            "\(reason): epoch \(old.number) is begun anew as epoch \(next.number); its copy will be of a later instant"
        )
    }

    /// As after ``abandon(_:_:)``.
    private func failRestart(of old: Epoch, _ reason: String) {
        old.failRestart(reason)
        old.move(to: .void)
        isEpochOpen.store(false, ordering: .releasing)
        settings.logger?.warning("epoch \(old.number) could not be begun anew: \(reason)")
    }

    /// A control operation on that epoch. When its log is lost before or meanwhile and the host begins anew, that is
    /// told, once it is done: the agent that holds it goes on with the epoch in its place.
    func inTurn<Result>(
        of uuid: UUID, _ body: () throws(ControlError) -> Result
    ) throws(ControlError) -> Result {
        do throws(ControlError) { return try inTurn(body) } catch {
            control.wait { $0.restarting?.uuid == uuid ? nil : () }
            guard let epoch = currentEpoch, epoch.lineage.predecessors.contains(uuid) else { throw error }
            throw ControlError(
                .noSuchEpoch,
                "the cache could not take more of epoch \(uuid), and the host has begun anew: the epoch is "
                    + "\(epoch.uuid) now")
        }
    }
}
