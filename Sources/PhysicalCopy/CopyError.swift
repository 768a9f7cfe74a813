/// Why something with a physical copy failed, in words for people: what was being done, to what, why it
/// failed, and what to do next.
public struct CopyError: Error, Hashable, Sendable, CustomStringConvertible {
    /// What kind of failure; the command line has an exit status for each (design §7).
    public enum Kind: Hashable, Sendable {
        /// The copy does not verify: its manifest or a portion is damaged (65).
        case damaged
        /// The copy, or a part of it, is not there (66).
        case missing
        /// The destination cannot be made (73).
        case cannotCreate
        /// Reading or writing failed (74).
        case io
        /// Asked to stop (75).
        case cancelled
        /// The system does not permit it (77).
        case notPermitted
    }

    public var kind: Kind
    /// What was being done, to what: "read the manifest /copies/a/manifest.json".
    public var action: String
    /// Why it failed.
    public var reason: String
    /// What to do next; may be empty.
    public var advice: String

    public init(_ kind: Kind, _ action: String, _ reason: String, advice: String = "") {
        self.kind = kind
        self.action = action
        self.reason = reason
        self.advice = advice
    }

    public var description: String {
        "cannot \(action): \(reason)" + (advice.isEmpty ? "" : "; \(advice)")
    }
}
