import Blocks
import Foundation
import TestSupport

/// What a lane's volume and host are like, of its first seed.
struct KillShape: CustomStringConvertible {
    enum Storage: String {
        case files
        /// The volume a loop device; copies and cache on small file systems of loop devices, which fill.
        case smallFileSystem = "small file system"
        /// The volume through nbdkit's filters and nbdfuse: slow, and now and then an error.
        case filters
    }

    /// In turn, so that a few volumes have something of all.
    private static let kinds: [(Storage, policy: String)] = [
        (.files, "abandon"), (.files, "restart-from"), (.smallFileSystem, "abandon"), (.files, "block"),
        (.filters, "abandon"), (.smallFileSystem, "restart-from"), (.files, "abandon"),
        (.smallFileSystem, "block"), (.filters, "restart-from"),
    ]

    let seed: UInt64
    let size: UInt64
    let storage: Storage
    /// What becomes of the copy when the cache is full.
    let policy: String
    /// The cache takes whatever is overwritten, and copies have all the room that they need.
    let isRoomy: Bool
    let hostOptions: [String]
    /// Bytes that the cache finds on its disk; nil: as many as it wants.
    let cacheRoom: UInt64?

    /// - Parameter number: which of the volumes it is.
    init(seed: UInt64, number: UInt64) {
        var generator = SeededGenerator(seed: ~seed)
        self.seed = seed
        size =
            UInt64.random(in: 4...8, using: &generator) << 19 + 512
            * UInt64.random(in: 0..<7, using: &generator)
        let kind = Self.kinds[Int(number % UInt64(Self.kinds.count))]
        storage = TestMount.isPossible ? kind.0 : .files
        policy = kind.policy
        // A host that begins anew with every few writes gives the copy up.
        let chunks = ["4KiB", "16KiB", "64KiB", "256KiB"].dropLast(policy == "restart-from" ? 2 : 0)
        let chunk = chunks.randomElement(using: &generator)!
        let durability = Int.random(in: 0..<3, using: &generator) == 0 ? "power" : "process"
        let part = Double.random(in: 0.4...0.9, using: &generator)
        let isSmall: Bool
        if storage == .smallFileSystem && policy != "block" {
            // A writer waits for a disk that may come back even when nobody holds the epoch, half a minute: not that.
            // Root gets what is reserved, 0.8 MiB, too.
            (isSmall, cacheRoom) = (false, UInt64(max(0, part * Double(size) - 0.84e6)))
        } else {
            isSmall = policy != "abandon" || Int.random(in: 0..<4, using: &generator) == 0
            cacheRoom = nil
        }
        let small = UInt64(part * Double(size)).roundedDown(to: 64 << 10)
        let cache = isSmall ? "\(small / 1024)KiB" : "16MiB"
        isRoomy = storage == .files && !isSmall
        hostOptions = [
            "--chunk-size", chunk, "--durability", durability, "--cache-size", cache, "--on-cache-full",
            policy,
        ]
    }

    var kind: String { "\(storage.rawValue), \(policy)" }
    var description: String {
        "\(storage.rawValue), \(size) bytes, \(hostOptions.joined(separator: " "))"
    }

    /// A pause of each writer after each write, in microseconds: a copy that is to come to an end although the host begins
    /// anew must find one at which it can catch up.
    var pause: UInt32 { policy == "restart-from" ? 3000 : 0 }

    /// Exit statuses of copies beside those that any may have.
    var statuses: [Int32] {
        switch storage {
        case .files: []
        case .smallFileSystem: [73]
        case .filters: [74]
        }
    }

    /// Why an epoch may be void after a death of the host.
    var voidReasons: [String] {
        // What fills up does so; and one whose instant had not come nobody has heard of.
        let always = ["full", "before the epoch's instant"]
        switch storage {
        case .files: return always + (isRoomy ? ["had passed"] : [])
        case .smallFileSystem: return always + ["no space left"]
        case .filters: return always + ["the source could not be read"]
        }
    }
}
