import Foundation
import TestSupport

/// What a lane's volume, cache and copies lie on.
final class KillStorage {
    let source: String
    let cache: String
    let copies: String
    private let scratch: ScratchDirectory
    private let cacheScratch: ScratchDirectory
    private let size: UInt64
    private let backing: String
    /// The copies'.
    private let disk: TestMount?
    private let cacheDisk: TestMount?
    private let device: LoopDevice?
    private var filtered: FilteredFile?
    /// It exists while errors are injected.
    private let trigger: String

    init(_ shape: KillShape, in lane: ScratchDirectory) throws {
        scratch = try ScratchDirectory()
        cacheScratch = try ScratchDirectory()
        size = shape.size
        backing = lane("volume.img")
        trigger = scratch("trigger")
        try makePatternFile(backing, count: Int(size), seed: shape.seed)
        disk = shape.storage == .smallFileSystem ? try TestMount(loop: 32 << 20, in: scratch) : nil
        cacheDisk = try shape.cacheRoom.map { [cacheScratch] room in
            let disk = try TestMount(loop: 16 << 20, in: cacheScratch)
            // For good: what a cache has once got it keeps.
            try disk.leave(room)
            return disk
        }
        device = shape.storage == .smallFileSystem ? try LoopDevice(over: backing) : nil
        filtered =
            shape.storage == .filters
            ? try FilteredFile(
                "source", on: backing,
                [
                    "--filter=error", "--filter=delay", "error-pread-rate=0.1%", "error-pwrite-rate=0.1%",
                    "error-pread-file=\(trigger)", "error-pwrite-file=\(trigger)", "rdelay=1ms", "wdelay=1ms",
                ], in: scratch) : nil
        source = device?.path ?? filtered?.path ?? backing
        cache = cacheDisk?("cache") ?? disk?("cache") ?? lane("volume.cache")
        copies = disk?("copies") ?? lane("copies")
        try FileManager.default.createDirectory(atPath: copies, withIntermediateDirectories: false)
    }

    deinit {
        // Before the directory is removed in which it is mounted.
        filtered = nil
    }

    /// Has the copies' file system be full or become so, the filters inject errors.
    /// - Parameter room: from 0 to 1.
    func burden(_ room: Double) throws {
        try disk?.leave(UInt64((0.7 + 0.7 * room) * Double(size)))
        if filtered != nil { try Data().write(to: URL(fileURLWithPath: trigger)) }
    }

    func relieve() {
        if let disk { unlink(disk("filler")) }
        if filtered != nil { unlink(trigger) }
    }

    /// The volume's bytes, as whoever opens it next will find them.
    func contents() throws -> [UInt8] {
        guard let device else { return try SystemTests.contents(backing) }
        guard let handle = FileHandle(forReadingAtPath: device.path), let bytes = try handle.readToEnd()
        else {
            throw TestFailure("cannot read \(device.path)")
        }
        return [UInt8](bytes)
    }
}
