import Blocks
import Glibc
import SimulatedFiles
import TestSupport

/// How often what fails, 0 to 1.
struct DiskFaults {
    var read = 0.0
    var write = 0.0
    var flush = 0.0
    var stall = 0.0
    var short = 0.0
    var interrupt = 0.0
    static let none = DiskFaults()
}

/// A disk, or the contents of a file: what is read at once is what was written last; what a crash leaves of what was not
/// flushed is drawn by lot, sector by sector.
///
/// Touched by whose turn it is only.
final class SimulatedDisk: @unchecked Sendable {
    static let sector = 512

    enum Role { case source, cache, copy, site }

    private struct Version {
        var flush: UInt64
        var bytes: [UInt8]
        /// The flush that was to save it failed: no later one will.
        var isForgotten = false
    }

    let role: Role
    var faults = DiskFaults.none
    /// What a reader sees.
    private(set) var bytes: [UInt8]
    private var stable: [UInt8]
    private var stableSize: Int
    private var versions: [Int: [Version]] = [:]
    private var flushes: UInt64 = 0
    private var allocated: Set<Int>
    /// A file without contents, for what the system says of a file: its size and identity.
    let descriptor: Int32
    /// Faults injected so far.
    private(set) var failures = 0
    /// Bytes that the file system still has; nil: enough.
    var room: (() -> Int)?

    init(_ role: Role, _ bytes: [UInt8]) {
        self.role = role
        self.bytes = bytes
        stable = bytes
        stableSize = bytes.count
        // A cache is sparse at first.
        allocated = role == .cache ? [] : Set(stride(from: 0, to: bytes.count, by: 4096).map { $0 / 4096 })
        var name = Array("/dev/shm/outboard-simulated.XXXXXX".utf8CString)
        descriptor = mkstemp(&name)
        precondition(descriptor >= 0 && ftruncate(descriptor, bytes.count) == 0, "no file in memory")
        unlink(name)
    }

    /// A new file.
    convenience init(_ role: Role) { self.init(role, []) }

    deinit { close(descriptor) }

    var path: String { "/proc/self/fd/\(descriptor)" }
    /// A flush has failed: who has the file open flushes no more.
    var hasFailedFlush = false
    private(set) var failedFlushes = 0
    func countFailure() { failures += 1 }

    // MARK: What is asked of it

    func read(at offset: Int, into buffer: UnsafeMutableRawBufferPointer) -> Int {
        let count = max(0, min(buffer.count, bytes.count - offset))
        guard count > 0 else { return 0 }
        bytes.withUnsafeBytes {
            UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
                .copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[offset..<offset + count]))
        }
        return count
    }

    func write(_ data: UnsafeRawBufferPointer, at offset: Int) {
        guard !data.isEmpty else { return }
        if offset + data.count > bytes.count { resize(offset + data.count) }
        allocated.formUnion(offset / 4096...(offset + data.count - 1) / 4096)
        bytes.withUnsafeMutableBytes {
            UnsafeMutableRawBufferPointer(rebasing: $0[offset..<offset + data.count]).copyMemory(from: data)
        }
        for sector in offset / Self.sector...(offset + data.count - 1) / Self.sector { remember(sector) }
    }

    /// Somebody has zeroed all of it.
    func clear() {
        bytes = [UInt8](repeating: 0, count: bytes.count)
        (stable, stableSize, versions) = (bytes, bytes.count, [:])
    }

    /// - Returns: whether there was room for what is not allocated yet.
    func allocate(_ offset: Int, _ count: Int) -> Bool {
        guard count > 0 else { return true }
        let needed = bytesToAllocate(at: offset, count: count)
        if needed > 0, let room, room() < needed { return false }
        allocated.formUnion(offset / 4096...(offset + count - 1) / 4096)
        return true
    }

    func bytesToAllocate(at offset: Int, count: Int) -> Int {
        guard count > 0 else { return 0 }
        return (offset / 4096...(offset + count - 1) / 4096).count { !allocated.contains($0) } * 4096
    }

    func zero(_ offset: Int, _ count: Int) {
        [UInt8](repeating: 0, count: count).withUnsafeBytes { write($0, at: offset) }
    }

    func resize(_ size: Int) {
        if size < bytes.count {
            bytes.removeLast(bytes.count - size)
        } else {
            bytes.append(contentsOf: repeatElement(0, count: size - bytes.count))
        }
        precondition(ftruncate(descriptor, size) == 0)
    }

    private func remember(_ sector: Int) {
        let start = sector * Self.sector
        let content = Array(bytes[start..<min(start + Self.sector, bytes.count)])
        versions[sector, default: []].append(Version(flush: flushes, bytes: content))
    }

    /// What was written before this began is safe when ``endFlush(_:)`` is called with it.
    func beginFlush() -> UInt64 {
        flushes += 1
        return flushes - 1
    }

    func endFlush(_ flush: UInt64) {
        fitStable()
        stableSize = bytes.count
        for (sector, list) in versions {
            guard let last = list.lastIndex(where: { $0.flush <= flush && !$0.isForgotten }) else { continue }
            // What was written behind a version that was forgotten replaces it.
            keep(list[last].bytes, sector)
            let rest = Array(list[(last + 1)...])
            versions[sector] = rest.isEmpty ? nil : rest
        }
    }

    /// The system has tried, and drops what it could not write: a reader sees it until the next crash.
    func failFlush(_ flush: UInt64, using random: inout SeededGenerator) {
        hasFailedFlush = true
        failedFlushes += 1
        for sector in versions.keys.sorted() where random.next() & 1 == 0 {
            for index in versions[sector]!.indices where versions[sector]![index].flush <= flush {
                versions[sector]![index].isForgotten = true
            }
        }
    }

    /// These bytes alone are on stable storage (FUA).
    func keepDurably(_ offset: Int, _ count: Int) {
        guard count > 0 else { return }
        fitStable()
        for sector in offset / Self.sector...(offset + count - 1) / Self.sector {
            guard let last = versions[sector]?.last else { continue }
            keep(last.bytes, sector)
            versions[sector] = nil
        }
    }

    /// The medium has other bytes at that place from now on.
    func decay(at offset: Int, to changed: [UInt8]) {
        changed.withUnsafeBytes { write($0, at: offset) }
        keepDurably(offset, changed.count)
        failures += 1
    }

    private func fitStable() {
        if stable.count < bytes.count {
            stable.append(contentsOf: repeatElement(0, count: bytes.count - stable.count))
        } else if stable.count > bytes.count {
            stable.removeLast(stable.count - bytes.count)
        }
    }

    private func keep(_ content: [UInt8], _ sector: Int) {
        let start = sector * Self.sector
        let end = min(start + content.count, stable.count)
        if start < end { stable.replaceSubrange(start..<end, with: content[..<(end - start)]) }
    }

    struct Loss {
        var lost = false
        var torn = false
        var reordered = false
    }

    /// The power fails.
    func crash(using random: inout SeededGenerator) -> Loss {
        var loss = Loss()
        let size = random.next() & 1 == 0 ? bytes.count : stableSize
        fitStable()
        // Some disks lose all of their cache, some little of it.
        let keepers: [UInt64] = [0, 1, 2, 4, 7, 8]
        let chance = keepers[Int(random.next() % UInt64(keepers.count))]
        var neighbours: (sector: Int, isKept: Bool)?
        for sector in versions.keys.sorted() {
            let list = versions[sector]!
            let isKept = random.next() & 7 < chance
            if isKept {
                let index = random.next() & 3 == 0 ? Int(random.next() % UInt64(list.count)) : list.count - 1
                keep(list[index].bytes, sector)
                if index < list.count - 1 { loss.reordered = true }
            } else {
                loss.lost = true
            }
            if let before = neighbours, before.sector == sector - 1, before.isKept != isKept {
                loss.torn = true
            }
            neighbours = (sector, isKept)
        }
        versions = [:]
        bytes = stable
        if size != bytes.count { resize(size) }
        stable = bytes
        stableSize = size
        precondition(ftruncate(descriptor, bytes.count) == 0)
        return loss
    }
}

extension SimulatedDisk: SimulatedContents {
    var size: Int { bytes.count }
    var allocatedBytes: Int { allocated.count * 4096 }
    func synchronize() { endFlush(beginFlush()) }
    func failToSynchronize(using random: inout SeededGenerator) { failFlush(beginFlush(), using: &random) }
    func crash(using random: inout SeededGenerator) { _ = crash(using: &random) as Loss }
}

/// A disk as the judge reads it: at once, and without fault.
final class JudgedStore: ReadOnlyStore {
    private let disk: SimulatedDisk
    init(_ disk: SimulatedDisk) { self.disk = disk }

    var size: UInt64 { UInt64(disk.bytes.count) }
    var capabilities: StoreCapabilities { [] }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        _ = disk.read(at: Int(offset), into: buffer)
    }
}
