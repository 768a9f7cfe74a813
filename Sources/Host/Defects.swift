import FoundationEssentials
import Glibc

/// Ways to be wrong, to prove that the tests would notice. Nothing outside this package can turn one on, and the
/// environment is asked in debug builds only, and in those that scripts/test makes (`-DDEFECTS`).
package struct Defects: OptionSet, Sendable {
    package let rawValue: UInt8
    package init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Writes to the source before the original is preserved.
    package static let preservesAfterWriting = Defects(rawValue: 1 << 0)
    /// Takes some chunks for preserved that are not.
    package static let forgetsOneBit = Defects(rawValue: 1 << 1)
    /// Opens an epoch while writes are in flight.
    package static let skipsDrain = Defects(rawValue: 1 << 2)

    /// Takes a chunk for passed of which only a part is.
    package static let passesParts = Defects(rawValue: 1 << 3)
    /// Lets a snapshot read a passed chunk that was overwritten from the source.
    package static let readsPassedFromSource = Defects(rawValue: 1 << 4)
    /// Forgets chunks that were written while the host began anew.
    package static let forgetsMarked = Defects(rawValue: 1 << 5)
    /// Forgets changes that nobody had asked for before the host began anew once more.
    package static let forgetsEarlierChanges = Defects(rawValue: 1 << 6)

    /// Of the variable `OUTBOARD_DEFECT`.
    static var ofEnvironment: Defects {
        #if DEBUG || DEFECTS
            guard let value = getenv("OUTBOARD_DEFECT") else { return [] }
            switch String(cString: value) {
            case "preservesAfterWriting": return .preservesAfterWriting
            case "forgetsOneBit": return .forgetsOneBit
            case "skipsDrain": return .skipsDrain
            case "passesParts": return .passesParts
            case "readsPassedFromSource": return .readsPassedFromSource
            case "forgetsMarked": return .forgetsMarked
            case "forgetsEarlierChanges": return .forgetsEarlierChanges
            default: return []
            }
        #else
            return []
        #endif
    }
}

/// Places in the write path and in snapshot reads at which a test can hold a thread.
package enum Checkpoint: Hashable, Sendable {
    /// Inside the gate, before the epoch is looked at.
    case passedGate
    case claimed, readOriginals, committed
    /// Everything preserved, nothing written.
    case preserved
    case wroteSource
    /// A snapshot read has read the source and not yet looked again.
    case readSource
    /// The log is lost: told, and not yet void on the cache; then void, and writers mark only.
    case announced, marking
    /// The host has its turn to begin anew; then the log is the next epoch's, and the gate not yet closed; or it could
    /// not have that epoch instituted, and has not yet made it void.
    case beginsAnew, begunAnew, failsAnew
    /// The epoch is open to the write path; the gate is still closed and drained. Nothing may be waited for here.
    case instituted(UUID)
}

package typealias CheckpointHook = @Sendable (Checkpoint) -> Void
