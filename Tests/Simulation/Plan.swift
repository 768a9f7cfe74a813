import HostControl
import TestSupport

/// What a seed makes of a run before it begins.
struct Plan {
    /// Two volumes, whose copies are a group.
    var isGroup: Bool
    var sectors: Int
    var chunkSize: Int
    var cacheBytes: Int
    var durability: Durability
    var onCacheFull: CacheFullPolicy
    var isDirect: Bool
    /// Of each volume.
    var applications: Int
    /// Things that happen while applications run.
    var events: Int
    var isAppend: Bool
    var endsAfterCacheCopy: Bool
    /// Bytes a second that copies may take.
    var rate: UInt64?
    /// How often the agent flushes what was copied, and tells the host that it has passed. Nanoseconds.
    var checkpoint: UInt64
    /// How often calls fail while a device is ill.
    var illness: Double
    var allowsPowerCuts: Bool
    /// A file system that cannot exchange two names.
    var lacksRenameFlags: Bool
    var isCacheSmall: Bool
    /// Deaths and faults; without them a run only shows that all works in whatever order.
    var hasFaults: Bool

    init(seed: UInt64) {
        var random = SeededGenerator(seed: seed &* 0x9E37_79B9_7F4A_7C15 &+ 1)
        func draw(_ bound: UInt64) -> Int { Int(random.next() % bound) }
        isGroup = draw(4) == 0
        chunkSize = 4096 << draw(3)
        sectors = 64 + draw(isGroup ? 96 : 288)
        let fits = sectors * 512 + sectors * 512 / chunkSize * 4096 + 64 << 10
        isCacheSmall = draw(3) == 0
        cacheBytes = isCacheSmall ? 8192 + 4096 + chunkSize * (1 + draw(6)) + 4096 * draw(4) : fits * 2
        cacheBytes = (cacheBytes + 4095) / 4096 * 4096
        durability = draw(2) == 0 ? .power : .process
        onCacheFull = [.abandon, .block, .restartFrom, .block, .restartFrom, .restartFrom][draw(6)]
        isDirect = draw(4) == 0
        applications = 1 + draw(isGroup ? 2 : 3)
        events = 3 + draw(16)
        isAppend = draw(2) == 0
        endsAfterCacheCopy = draw(2) == 0
        illness = [0.005, 0.05, 0.3, 1][draw(4)]
        allowsPowerCuts = draw(2) == 0
        lacksRenameFlags = draw(4) == 0
        hasFaults = draw(8) != 0
        rate = [nil, nil, 8 << 20, 2 << 20][draw(4)]
        checkpoint = [200_000, 1_000_000, 5_000_000, 10_000_000_000][draw(4)]
    }
}
