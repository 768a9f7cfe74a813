import Blocks
import Foundation
import Glibc
import TestSupport
import Testing

@testable import OriginalImage
@testable import PhysicalCopy

/// A directory for one test, removed with it.
final class TemporaryDirectory {
    let path: String

    init() {
        var template = Array("/tmp/outboard-test-XXXXXX".utf8CString)
        path = String(cString: mkdtemp(&template)!)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

/// A file whose unflushed writes a power cut may undo.
final class CrashableFile: BlockStore {
    struct State {
        var undo: [(offset: UInt64, old: [UInt8])] = []
        var writes = 0
        var failAtWrite: Int?
    }
    let descriptor: Int32
    let size: UInt64
    let capabilities: StoreCapabilities
    let state = Monitor(State())

    init(_ path: String, writable: Bool) throws(CopyError) {
        descriptor = try Files().open(path, writable ? O_RDWR : O_RDONLY, "open \(path)")
        size = UInt64(lseek(descriptor, 0, SEEK_END))
        capabilities = writable ? .writable : []
    }

    deinit { close(descriptor) }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        guard pread(descriptor, buffer.baseAddress, buffer.count, Int(offset)) == buffer.count else {
            throw StoreError(.io)
        }
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        let old = try bytes(at: offset, count: buffer.count)
        try state.withLock { (state) throws(StoreError) in
            state.writes += 1
            if state.writes == state.failAtWrite { throw StoreError(.io, errno: EIO) }
            state.undo.append((offset, old))
        }
        guard pwrite(descriptor, buffer.baseAddress, buffer.count, Int(offset)) == buffer.count else {
            throw StoreError(.io)
        }
    }

    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try write([UInt8](repeating: 0, count: Int(range.count)), at: range.offset)
    }

    func flush() throws(StoreError) { state.withLock { $0.undo = [] } }

    /// Undoes some of the unflushed writes, torn in 512-byte sectors.
    func cutPower(_ random: inout some RandomNumberGenerator) {
        let undo = state.withLock { $0.undo }
        for (offset, old) in undo.reversed() {
            for start in stride(from: 0, to: old.count, by: 512) where Bool.random(using: &random) {
                let sector = Array(old[start..<min(start + 512, old.count)])
                pwrite(descriptor, sector, sector.count, Int(offset) + start)
            }
        }
    }
}

extension FileSystemCalls {
    /// As on a file system whose renames have no flags.
    mutating func lackFlags() {
        renameat = { [renameat] directory, from, to, flags in
            flags == 0 ? renameat(directory, from, to, flags) : .failure(Errno(EINVAL))
        }
    }

    /// Asked before each plain rename of a path; what it answers is how that fails.
    mutating func whenRenaming(_ failure: @escaping @Sendable (String, String) -> Errno?) {
        renameat = { [renameat] directory, from, to, flags in
            if flags == 0, directory == FileSystemCalls.noDirectory, let error = failure(from, to) {
                return .failure(error)
            }
            return renameat(directory, from, to, flags)
        }
    }
}

/// The bytes of a made-up append copy whose volume as of the instant is known.
struct SampleImage {
    static let chunkSize: UInt64 = 4096
    let instant: [UInt8]
    /// The data portion, as the raw pass left it.
    let data: [UInt8]
    let log: SampleLog
    /// Where the log lies.
    let logBase: UInt64

    /// - Parameter preserved: every how many chunks there is an original, on average.
    init(seed: UInt64, size: Int, preserved: Int) {
        var random = SeededGenerator(seed: seed)
        let instant = (0..<size).map { _ in UInt8.random(in: 0...255, using: &random) }
        var state = instant
        let geometry = ChunkGeometry(volumeSize: UInt64(size), chunkSize: Self.chunkSize)!
        var originals: [(UInt64, [UInt8])] = []
        for chunk in (0..<geometry.chunkCount).shuffled(using: &random)
        where Int.random(in: 0..<preserved, using: &random) == 0 {
            let range = geometry.range(of: chunk)
            let place = Int(range.offset)..<Int(range.end)
            if Bool.random(using: &random) {
                state.replaceSubrange(place, with: repeatElement(0, count: place.count))
            }
            originals.append((chunk, Array(state[place])))
        }
        self.instant = state
        var torn = state
        for (chunk, _) in originals {
            let range = geometry.range(of: chunk)
            for index in Int(range.offset)..<Int(range.end) {
                torn[index] = UInt8.random(in: 0...255, using: &random)
            }
        }
        data = torn
        log = SampleLog(geometry: geometry, originals: originals)
        logBase = UInt64(size).roundedUp(to: CopyLimits.portionAlignment)
    }

    var bytes: [UInt8] {
        data + [UInt8](repeating: 0, count: Int(logBase) - data.count) + log.bytes
    }

    /// Its manifest, and what goes with that into the draft.
    /// - Parameter version: of the manifest; 1 has the data's checksums in it.
    func manifest(in draft: CopyDraft, version: Int = 2) throws -> Manifest {
        func portion(_ offset: UInt64, _ bytes: [UInt8]) throws -> Portion {
            let range = ByteRange(offset: 0, count: UInt64(bytes.count))
            let checksums = try SliceChecksums.compute(of: range, in: MemoryStore(bytes)) {
                _ throws(CopyError) in
            }
            return Portion(offset: offset, length: range.count, checksums: checksums)
        }
        var data = try portion(0, self.data)
        if version == 2 {
            var table = ChecksumTable(length: data.length)
            try table.readUnknown(in: MemoryStore(self.data)) { _ throws(CopyError) in }
            data.checksums = .file(try draft.write(table.complete!, length: data.length))
        }
        return Manifest(
            tool: "test", uuid: UUID().uuidString, completedAt: 2,
            volume: VolumeDescription(
                uuid: log.volume.uuidString, size: UInt64(instant.count), chunkSize: Self.chunkSize,
                source: "/s"),
            mode: .append,
            epoch: EpochDescription(
                number: 7, uuid: log.epoch.uuidString, institutedAt: 1, ending: .endedBeforeCacheCopy,
                logBytes: log.end.position, batches: log.end.sequence, entries: log.end.entries),
            group: nil, frozen: [], location: .usual, data: data,
            originals: try portion(logBase, log.bytes))
    }
}

/// Such an image as a copy in a directory.
struct SampleCopy {
    static let chunkSize = SampleImage.chunkSize
    let directory: String
    let instant: [UInt8]
    let manifest: Manifest

    static func open(_ location: DataLocation, _ writable: Bool) throws(CopyError) -> any BlockStore {
        guard case .path(let path) = location else { preconditionFailure() }
        return try CrashableFile(path, writable: writable)
    }

    /// Its files but for the manifest, put into a draft.
    func copyMembers(to draft: CopyDraft) throws {
        for name in ["data.img", "checksums"] where FileManager.default.fileExists(atPath: path(name)) {
            try FileManager.default.copyItem(atPath: path(name), toPath: draft.path(of: name))
        }
    }

    func path(_ member: String) -> String { directory + "/" + member }

    /// - Parameters:
    ///   - preserved: every how many chunks there is an original, on average.
    ///   - version: of the manifest; 1 has the data's checksums in it.
    init(
        in parent: String, seed: UInt64, size: Int = 300_000, preserved: Int = 3, version: Int = 2
    ) throws {
        let image = SampleImage(seed: seed, size: size, preserved: preserved)
        instant = image.instant
        directory = parent + "/copy"
        let draft = try CopyDraft(destination: directory, force: false)
        try Data(image.bytes).write(to: URL(fileURLWithPath: draft.path(of: "data.img")))
        manifest = try image.manifest(in: draft, version: version)
        try draft.commit(manifest)
    }
}

/// The bytes of an ended log.
struct SampleLog {
    let volume = UUID()
    let epoch = UUID()
    let bytes: [UInt8]
    let end: LogPosition

    init(geometry: ChunkGeometry, originals: [(UInt64, [UInt8])]) {
        var batches: [UInt8] = []
        var place = LogPosition.start
        var rest = originals[...]
        while !rest.isEmpty {
            let some = Array(rest.prefix(7))
            rest = rest.dropFirst(7)
            let entries = some.map { item in
                item.1.withUnsafeBytes { LogOriginal(chunk: item.0, bytes: $0) }
            }
            var header = [UInt8](repeating: 0, count: 4096)
            let (id, sequence) = (epoch, place.sequence)
            header.withUnsafeMutableBytes {
                LogBatch.encode(epoch: id, sequence: sequence, originals: entries, into: $0)
            }
            batches += header
            for (entry, item) in zip(entries, some) where !entry.isZero {
                let padding = geometry.paddedLength(of: item.0) - item.1.count
                batches += item.1 + [UInt8](repeating: 0, count: padding)
            }
            place.sequence += 1
            place.entries += UInt64(some.count)
            place.position = LogFormat.firstBatch + UInt64(batches.count)
        }
        end = place
        let (volume, epoch, end) = (volume, epoch, place)
        func superblock(_ generation: UInt64) -> [UInt8] {
            LogSuperblock(
                generation: generation, volume: volume, geometry: geometry, capacity: 1 << 30,
                durability: .process,
                epoch: LogEpoch(
                    number: 7, uuid: epoch, state: .ended, institutedAt: 1, boot: UUID(), marker: end)
            ).encoded()
        }
        bytes = superblock(8) + superblock(7) + batches
    }
}
