import HostControl

/// Ends and releases an epoch that nobody holds: one that was kept, or that an agent which died has left.
public enum EpochRelease {
    /// - Parameters:
    ///   - control: of the host, its control socket.
    ///   - epoch: the UUID of the one that is meant; nil: whichever there is.
    /// - Returns: what was released; nil: there was none.
    /// - Throws: 66 when there is another one than was meant; 75 while a copy holds it.
    public static func run(
        control: String, epoch wanted: String?, _ world: Collaborators
    ) throws(AgentError) -> EpochStatus? {
        let line = try world.connectHost(control)
        defer { line.close() }
        func refusal(
            _ status: AgentError.ExitStatus, _ reason: String, _ advice: String
        ) -> AgentError {
            AgentError(
                status, doing: "releasing the epoch of the host at", to: control, because: reason,
                advice: advice)
        }
        guard let epoch = try line.status().epoch, epoch.state != .released else {
            guard let wanted else { return nil }
            throw refusal(
                .inputMissing, "it has none, and so not \(wanted)", "there is nothing left to release")
        }
        if let wanted, wanted.lowercased() != epoch.uuid.lowercased() {
            throw refusal(
                .inputMissing, "its epoch is \(epoch.uuid)", "name that one, or leave --epoch out")
        }
        guard !epoch.isHeld else {
            throw refusal(.tryAgain, "a copy is running", "wait for its end, or stop it")
        }
        let parameters = EpochParameters(epoch: epoch.uuid)
        // An open one ends by it, a void one as well.
        _ = try line.call(CacheReleaseMethod.self, parameters, timeout: AgentLimits.hostFlushSeconds)
        return epoch
    }
}
