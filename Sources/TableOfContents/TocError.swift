import Blocks

/// Why a table of contents could not be made or asked.
public struct TocError: Error, Hashable, Sendable, CustomStringConvertible {
    public enum Kind: Hashable, Sendable {
        /// The volume cannot be read.
        case store(StoreError)
        /// What is on the volume, or in the database, is not as its format says.
        case damaged
        /// There is no such thing.
        case missing
        /// The file could not be written.
        case cannotCreate
        /// It was ended from outside.
        case cancelled
    }

    public var kind: Kind
    /// For people: what was being done, to what, and why it failed.
    public var description: String

    public init(_ kind: Kind, _ description: String) {
        self.kind = kind
        self.description = description
    }
}
