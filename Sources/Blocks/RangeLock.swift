/// Keeps a read-modify-write of some bytes apart from all else that is done to them. Plain operations do not
/// keep each other apart (``BlockStore`` promises no order), so they share. Ranges are in bytes.
///
/// Who waits holds nothing, and who holds waits for nothing but the device: no deadlock. An engine, which
/// holds several ranges, only tries, and waits solely when it holds none.
public final class RangeLock: Sendable {
    private struct Held {
        var start: UInt64
        var end: UInt64
        var isExclusive: Bool
    }

    private let held = Monitor<[Held]>([])

    public init() {}

    /// Waits until no other holder excludes `range`.
    /// - Parameter exclusive: nobody else may hold any of the bytes; without, other sharers may.
    public func lock(_ range: ByteRange, exclusive: Bool) {
        let wanted = Held(start: range.offset, end: range.end, isExclusive: exclusive)
        held.wait { held in Self.insert(wanted, &held) ? () : nil }
    }

    /// The same, but instead of waiting it does nothing.
    /// - Returns: whether the range is now held.
    public func tryLock(_ range: ByteRange, exclusive: Bool) -> Bool {
        let wanted = Held(start: range.offset, end: range.end, isExclusive: exclusive)
        return held.withLock { held in Self.insert(wanted, &held) }
    }

    /// Gives back what was locked with just these arguments; traps if nothing was.
    public func unlock(_ range: ByteRange, exclusive: Bool) {
        held.withLockAndNotify { held in
            let index = held.firstIndex {
                $0.start == range.offset && $0.end == range.end && $0.isExclusive == exclusive
            }
            precondition(index != nil, "unlocked a range that was not locked")
            held.swapAt(index!, held.count - 1)
            held.removeLast()
        }
    }

    private static func insert(_ wanted: Held, _ held: inout [Held]) -> Bool {
        for other in held where wanted.start < other.end && other.start < wanted.end {
            if wanted.isExclusive || other.isExclusive { return false }
        }
        held.append(wanted)
        return true
    }
}
