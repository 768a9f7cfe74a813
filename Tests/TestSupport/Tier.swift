import Glibc

/// How much `scripts/test` asked for (style 13).
public enum Tier: Int, Comparable, Sendable {
    case quick, full, host

    public static func < (a: Tier, b: Tier) -> Bool { a.rawValue < b.rawValue }

    public static var isFull: Bool { current >= .full }
    public static var isHost: Bool { current == .host }

    /// Of the variable `OUTBOARD_TIER`; quick when it is not set.
    public static let current: Tier = {
        switch getenv("OUTBOARD_TIER").map({ String(cString: $0) }) {
        case "full": .full
        case "host": .host
        default: .quick
        }
    }()
}

/// What this machine can do, asked once.
public enum Machine {
    public static let isRoot = geteuid() == 0

    /// Whether FUSE file systems and loop devices can be had.
    public static let canMount =
        isRoot && access("/dev/fuse", R_OK | W_OK) == 0
        && access("/dev/loop-control", R_OK | W_OK) == 0
}
