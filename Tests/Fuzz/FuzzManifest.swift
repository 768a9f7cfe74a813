import Blocks
import Foundation
import Glibc

@testable import OriginalImage
@testable import PhysicalCopy

/// A `manifest.json`: the first byte says that its checksum is left as it is (bit 0) and what the copy's data are: as
/// many zeros as the manifest wants (bit 1: one byte fewer) with a log behind them that the manifest describes, of
/// chunks that were zeros (bit 2: no log).
///
/// What must hold: no trap, whatever numbers it has, in whatever is done with the copy; what was decoded is the same
/// after it was encoded and decoded again.
func fuzzManifest(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let how = input.byte()
    var bytes = input.all()
    if how & 1 == 0 { bytes = FuzzedJSON.sealed(bytes) }
    let manifest: Manifest
    do throws(Manifest.Malformed) {
        manifest = try Manifest(decoding: bytes)
        let again = try Manifest(decoding: manifest.encoded())
        precondition(again.isSame(as: manifest), "another after encoding")
    } catch { return }
    // Only there is a file that may be cut.
    guard case .unit = manifest.location else { return readOnly(manifest, bytes, how) }
    readOnly(manifest, bytes, how)
    let copy = FuzzedDirectory.copy(bytes)
    try? copy.integrate { _, _ throws(CopyError) in FuzzedCopyData(manifest, how) }
}

/// Everything that reads a copy.
private func readOnly(_ manifest: Manifest, _ bytes: [UInt8], _ how: UInt8) {
    let copy = FuzzedDirectory.copy(bytes)
    precondition(copy.manifest == manifest, "another manifest from the file")
    let data = FuzzedCopyData(manifest, how)
    func opener(_ location: DataLocation, _ writable: Bool) throws(CopyError) -> any BlockStore { data }
    do throws(CopyError) {
        let volume = try copy.openVolume(opener)
        precondition(volume.size == manifest.volume.size)
        for offset in [0, volume.size / 2, volume.size - 1] {
            let count = min(volume.size - offset, 8192)
            do throws(StoreError) {
                _ = try volume.bytes(at: offset, count: Int(count))
                _ = try volume.allocation(
                    of: ByteRange(offset: offset, count: volume.size - offset), limit: 16)
            } catch {}
        }
        let plan = RestorePlan(volumeOf: volume.size)
        let map = try copy.map(manifest.originals == nil ? nil : copy.logReader(in: data))
        _ = plan.dataRuns(in: map)
        let originals = plan.originals(in: map)
        try copy.requireWhole(in: data, touching: plan, originals.entries, slices: false)
    } catch {}
    _ = try? copy.verify(opener)
    do throws(CopyError) {
        let output = BackupOutput(
            descriptor: FuzzedDirectory.nowhere, name: "nowhere", recordBytes: MediaLimits.usualRecordBytes,
            check: {})
        _ = try copy.backUp(to: output, integrated: how & 8 != 0, tool: "fuzz", opener)
    } catch {}
}

extension Manifest {
    fileprivate func isSame(as other: Manifest) -> Bool {
        var other = other
        other.crc32c = crc32c
        return self == other
    }
}

/// JSON objects with a checksum of their own.
enum FuzzedJSON {
    /// With the checksum that fits, where there is one.
    static func sealed(_ bytes: [UInt8]) -> [UInt8] {
        let key = Array(#""crc32c" : ""#.utf8)
        guard let found = bytes.firstRange(of: key), found.upperBound + 8 <= bytes.count else { return bytes }
        let place = found.upperBound..<found.upperBound + 8
        var sealed = bytes
        sealed.replaceSubrange(place, with: SelfChecksum.blank.utf8)
        sealed.replaceSubrange(place, with: hexadecimal(CRC32C.checksum(sealed)).utf8)
        return sealed
    }
}

/// One directory of this process in which copies are opened, one after the other.
enum FuzzedDirectory {
    private static let path: String = {
        // In memory where there is such a place.
        let parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/var/tmp"
        var template = Array("\(parent)/outboard-fuzz.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { preconditionFailure("no directory: errno \(errno)") }
        directory = template
        atexit {
            FuzzedDirectory.directory.withUnsafeBufferPointer { path in
                guard let stream = opendir(path.baseAddress!) else { return }
                while let entry = readdir(stream) {
                    withUnsafePointer(to: &entry.pointee.d_name) {
                        _ = unlinkat(
                            dirfd(stream), UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self), 0)
                    }
                }
                closedir(stream)
                rmdir(path.baseAddress!)
            }
        }
        return template.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    }()
    // Set once, before anybody reads it.
    nonisolated(unsafe) private static var directory: [CChar] = []
    static let nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC)

    static func file(_ name: String) -> String { path + "/" + name }

    /// A file that holds just these bytes.
    @discardableResult
    static func put(_ bytes: [UInt8], _ name: String) -> String {
        let file = file(name)
        let descriptor = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        precondition(
            descriptor >= 0 && write(descriptor, bytes, bytes.count) == bytes.count, "no room in \(path)")
        close(descriptor)
        return file
    }

    /// The copy whose manifest these bytes are, which can be decoded.
    static func copy(_ manifest: [UInt8]) -> PhysicalCopy {
        put(manifest, Manifest.fileName)
        do throws(CopyError) { return try PhysicalCopy(path, for: .changing) } catch {
            preconditionFailure("a manifest that decodes, and no copy: \(error)")
        }
    }
}

/// The data of a copy: zeros that take no room, and a log where the manifest says.
private final class FuzzedCopyData: BlockStore {
    let size: UInt64
    let capabilities: StoreCapabilities = [.writable, .knowsAllocation]
    private let base: UInt64
    private let log: [UInt8]

    init(_ manifest: Manifest, _ how: UInt8) {
        let end = manifest.originals?.range.end ?? manifest.data.range.end
        size = how & 2 == 0 ? end : end - 1
        base = manifest.originals?.offset ?? 0
        log = how & 4 == 0 ? Self.log(manifest) : []
    }

    private static func log(_ manifest: Manifest) -> [UInt8] {
        let geometry = ChunkGeometry(volumeSize: manifest.volume.size, chunkSize: manifest.volume.chunkSize)
        guard manifest.originals != nil, let geometry, let volume = UUID(uuidString: manifest.volume.uuid),
            let epoch = UUID(uuidString: manifest.epoch.uuid)
        else { return [] }
        let marker = LogPosition(
            position: manifest.epoch.logBytes, sequence: manifest.epoch.batches,
            entries: manifest.epoch.entries)
        let superblock = LogSuperblock(
            generation: 2, volume: volume, geometry: geometry, capacity: LogLimits.volumeBytes - 4095,
            durability: .process,
            epoch: LogEpoch(
                number: 1, uuid: epoch, state: .ended, institutedAt: 0, boot: epoch, marker: marker))
        var bytes = superblock.encoded()
        var older = superblock
        older.generation = 1
        bytes += older.encoded()
        let zeros = [UInt8](repeating: 0, count: 4096)
        var entries: UInt64 = 0
        for sequence in 0..<min(marker.sequence, 4) {
            let count = min(marker.entries - min(entries, marker.entries), 3, geometry.chunkCount - entries)
            guard count > 0 else { break }
            zeros.withUnsafeBytes { zeros in
                // As many as the chunk has: all that is looked at is that they are zeros.
                let originals = (entries..<entries + count).map {
                    LogOriginal(
                        chunk: $0, bytes: UnsafeRawBufferPointer(rebasing: zeros[..<min(4096, zeros.count)]))
                }
                var header = [UInt8](repeating: 0, count: 4096)
                header.withUnsafeMutableBytes {
                    LogBatch.encode(epoch: epoch, sequence: sequence, originals: originals, into: $0)
                }
                bytes += header
            }
            entries += count
        }
        return bytes
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        let range = ByteRange(offset: offset, count: UInt64(buffer.count))
        requireWithin(range)
        buffer.initializeMemory(as: UInt8.self, repeating: 0)
        guard let part = range.intersection(ByteRange(offset: base, count: UInt64(log.count))) else { return }
        log.withUnsafeBytes { log in
            let source = Int(part.offset - base)
            UnsafeMutableRawBufferPointer(rebasing: buffer[Int(part.offset - offset)...])
                .copyMemory(from: UnsafeRawBufferPointer(rebasing: log[source..<source + Int(part.count)]))
        }
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) { requireWithin(range) }
    func flush() {}

    func allocation(of range: ByteRange, limit: Int) -> [AllocationExtent] {
        requireWithin(range)
        let log = ByteRange(offset: base, count: UInt64(log.count))
        if let part = range.intersection(log), !part.isEmpty {
            guard part.offset == range.offset else {
                return [AllocationExtent(count: part.offset - range.offset, isHole: true, readsAsZeros: true)]
            }
            return [AllocationExtent(count: part.count, isHole: false, readsAsZeros: false)]
        }
        return [AllocationExtent(count: range.count, isHole: true, readsAsZeros: true)]
    }
}
