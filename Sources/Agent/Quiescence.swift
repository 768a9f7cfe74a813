import HostControl

/// The moment of the copy: what is stopped for it, in which order, and that all of it goes on again, whatever
/// happens. Steps 602 of FIG. 6, for one volume or several.
struct Quiescence {
    let request: CopyRequest
    let world: Collaborators
    let cancellation: CancellationToken
    let observer: any SequenceObserver

    /// Institutes an epoch on each volume, all as of one instant.
    func institute(_ members: [CopyMember]) throws(AgentError) {
        var failure: AgentError?
        var frozen: [String] = []
        var stopped: [CopyMember] = []
        try cancellation.check()
        // If this process is killed, all goes on nevertheless.
        let needsGuard = !request.freeze.isEmpty || request.postThaw != nil
        let guardian = needsGuard ? try world.startThawGuard(request.freeze, request.postThaw) : nil
        cancellation.beginStandstill()
        defer { cancellation.endStandstill() }
        do throws(AgentError) {
            if let command = request.preFreeze { try world.runCommand(command, cancellation) }
            for mountPoint in request.freeze {
                try cancellation.check()
                guardian?.freezesNext()
                try world.freezeFileSystem(mountPoint)
                frozen.append(mountPoint)
            }
            // One volume needs no freeze: its institution is an instant by itself.
            if members.count > 1 {
                for member in members {
                    try cancellation.check()
                    _ = try member.line.call(
                        VolumeFreezeMethod.self, .init(timeout: AgentLimits.groupFreezeSeconds),
                        timeout: AgentLimits.hostFlushSeconds)
                    stopped.append(member)
                }
            }
            for member in members {
                try cancellation.check()
                let epoch = try member.line.call(
                    SnapshotBeginMethod.self, Empty(), timeout: AgentLimits.hostFlushSeconds)
                member.take(epoch)
            }
            // All stood still from before the first to after the last: that is the instant of each.
            if let instant = members.compactMap({ $0.instituted?.institutedAt }).max() {
                for member in members { member.instituted?.institutedAt = instant }
            }
        } catch { failure = error }
        failure = goOn(stopped, frozen, after: failure)
        guardian?.dismiss()
        if let failure { throw failure }
    }

    /// Undoes everything that was stopped, the last first; a failure keeps nothing else from going on.
    /// - Returns: the first failure of all.
    private func goOn(
        _ stopped: [CopyMember], _ frozen: [String], after first: AgentError?
    ) -> AgentError? {
        var failure = first
        for member in stopped.reversed() {
            do throws(AgentError) {
                let thaw = try member.line.call(VolumeThawMethod.self, Empty())
                guard thaw.wasFrozen else {
                    throw AgentError(
                        .tryAgain, doing: "instituting one instant for several volumes at",
                        to: member.line.path, because: "the freeze timed out before all had begun",
                        advice: "run it again")
                }
            } catch { failure = failure ?? error }
        }
        for mountPoint in frozen.reversed() {
            do throws(AgentError) { try world.thawFileSystem(mountPoint) } catch {
                observer.notice("\(error)")
                failure = failure ?? error
            }
        }
        if let command = request.postThaw {
            do throws(AgentError) { try world.runCommand(command, nil) } catch {
                observer.notice("\(error)")
                failure = failure ?? error
            }
        }
        return failure
    }
}
