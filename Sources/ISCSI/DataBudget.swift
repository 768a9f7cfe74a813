import Synchronization

/// What the commands in execution of all sessions of a target hold of data together. A soft bound: sessions on
/// different event loops may pass it by a command each, and every session gets one command through in any case,
/// so that no session waits for another.
final class DataBudget: Sendable {
    private let limit: Int
    private let bytes = Atomic<Int>(0)

    init(limit: Int = ISCSILimits.targetDataBytes) { self.limit = limit }

    /// Bytes held now.
    var held: Int { bytes.load(ordering: .relaxed) }
    func fits(_ more: Int) -> Bool { held + more <= limit }
    func change(by difference: Int) { bytes.wrappingAdd(difference, ordering: .relaxed) }
}
