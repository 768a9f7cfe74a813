import Blocks
import FoundationEssentials

extension UUID {
    /// A new one of version 4 (RFC 9562, 5.4), by ``RandomSource``.
    package static func fresh() -> UUID {
        var source = RandomSource()
        return .random(using: &source)
    }
}
