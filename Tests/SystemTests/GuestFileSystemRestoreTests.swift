import Blocks
import Foundation
import TestSupport
import Testing

/// The same for the file systems that this machine's kernel has no driver for, and for volumes with partitions:
/// Debian's kernel fills them and uses them by virtio disks that are hosts' exports, and shows what is in the copies.
@Suite(.serialized, .enabled(if: LoopMount.isPossible, "\(LoopMount.reason)"))
struct GuestFileSystemRestoreTests {
    private static let volumes = [
        GuestVolume(.fat32), GuestVolume(.exfat), GuestVolume(.hfsPlus), GuestVolume(.isoJoliet),
        GuestVolume("GPT", table: "gpt", [.exfat, .xfsV4]),
        GuestVolume("MBR with logical partitions", table: "dos", [.fat16, .iso, .hfsPlus, .fat32, .fat12]),
    ]
    private static let modes = ["append", "overlay"]

    @Test func everyFileIsWhatDebiansKernelShows() throws {
        let guest = try GuestVolumes(Self.volumes, snapshots: Self.modes.count)
        let scratch = guest.scratch
        for (index, host) in guest.hosts.enumerated() {
            let writer = try Self.volumes[index].idleSpace.map {
                try Writer(PrefixOracle(seed: 3, region: $0), to: host.socket)
            }
            writer?.start()
            for mode in Self.modes {
                let before = try host.status().counters.writes
                let copy = scratch("\(mode)-\(index)")
                let made = try Outboard.run(["copy", "--host", host.control, "--to", copy, "--mode", mode])
                guard made.status == 0 else { throw TestFailure("\(made)") }
                // A guest of an emulated processor may write more slowly than a small volume is copied.
                try waitUntil("\(Self.volumes[index].name) is written to") {
                    try host.status().counters.writes > before
                }
            }
            try writer?.stop()
        }
        try guest.stopUse()
        for index in Self.volumes.indices {
            let whole = scratch("whole")
            try LoopMount.succeed(
                Outboard.binary, ["restore", "volume", scratch("append-\(index)"), "--to", whole])
            try guest.put(whole, snapshot: 0, volume: index)
            unlink(whole)
            try guest.put(scratch("overlay-\(index)/data.img"), snapshot: 1, volume: index)
        }
        let references = try guest.references()

        let site = try RestoreSite(in: scratch)
        for (index, volume) in Self.volumes.enumerated() {
            let media = scratch("media")
            try LoopMount.succeed(Outboard.binary, ["backup", scratch("append-\(index)"), "--to", media])
            for (snapshot, source) in [
                (0, [scratch("append-\(index)")]), (1, [scratch("overlay-\(index)")]),
                (0, ["--from-backup", media]),
            ] {
                for part in volume.parts {
                    let expected = try #require(references[[snapshot, index, part.number]])
                    #expect(expected.count > 300)
                    let found = try site.restore(source, path: volume.path(of: part), part.kind)
                    let differences = found.differences(from: expected, in: part.kind.fields)
                    #expect(
                        differences.isEmpty,
                        "\(volume.name), \(part.kind.name), \(source): \(brief(differences))")
                }
            }
            unlink(media)
        }
    }
}

extension GuestVolume {
    /// What belongs to no file system and may be written by anybody.
    fileprivate var idleSpace: ByteRange? {
        guard let part = parts.last, part.number == 0, !part.kind.isWritable else { return nil }
        return ByteRange(offset: part.kind.size, count: size - part.kind.size)
    }

    /// As commands take it.
    fileprivate func path(of part: Part) -> String {
        let number = parts.firstIndex { $0.number == part.number }.map { $0 + 1 }
        return table == nil ? "/" : "/\(number ?? 0)"
    }
}
