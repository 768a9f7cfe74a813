import AsyncIO
import Blocks
import Crypto
import Foundation
import OriginalImage

/// The host's source and cache: found, checked, locked, made where absent.
struct HostStorage {
    static let defaultChunkSize: UInt64 = 64 << 10
    private static let smallestDefaultCache: UInt64 = 16 << 20
    private static let sectorSize: UInt64 = 512

    let source: StorageFile
    let cache: StorageFile
    let volume: UUID
    let chunkSize: UInt64
    /// Absolute.
    let sourcePath: String
    let cachePath: String
    let isCacheNew: Bool
    /// What an administrator should know.
    let notice: String?
    /// The files below source and cache where those are loop devices: locked, too, so that nobody takes one of
    /// them by its other name.
    private let layers: [StorageFile]

    init(_ options: HostOptions) throws {
        var layers: [StorageFile] = []
        // Links of trusted makers are followed: administrators name devices by them.
        try Trust.require(options.source, to: "serve the source")
        try Trust.require(options.cache, to: "use the cache")
        source = try Self.openSource(options.source, &layers)
        sourcePath = absolutePath(options.source)
        volume = try Self.identity(
            options.volume, source: source.isBlockDevice ? Self.deviceName(options.source) : sourcePath)
        do {
            (cache, isCacheNew) = try Self.openCache(options, beside: source, &layers)
            cachePath = absolutePath(options.cache)
            let found: LogSuperblock?
            do {
                notice = try Trust.requireCache(cache)
                found = try Self.superblock(of: cache, path: options.cache)
                try Self.check(found, volume: volume, source: source, options)
            } catch {
                cache.close()
                throw error
            }
            // An epoch that is still open goes on with the chunks it was begun with.
            let kept = found?.epoch?.state == .open ? found?.geometry.chunkSize : nil
            chunkSize = options.chunkSize?.bytes ?? kept ?? Self.defaultChunkSize
            self.layers = layers
        } catch {
            for layer in layers { layer.close() }
            source.close()
            throw error
        }
    }

    func close() {
        cache.close()
        source.close()
        for layer in layers { layer.close() }
    }

    /// Closes, and removes a cache that was made for a start that failed.
    func abandon() {
        close()
        if isCacheNew { unlink(cachePath) }
    }

    private static func openSource(_ path: String, _ layers: inout [StorageFile]) throws -> StorageFile {
        let source: StorageFile
        do throws(StorageError) {
            source = try open(path, links: .followed, &layers)
        } catch {
            let advice: String =
                switch error.kind {
                case .missing: "check --source"
                case .locked: "another host serves this volume already: use that one, or stop it"
                default: ""
                }
            throw error.failure(advice: advice)
        }
        guard source.size > 0, source.size % sectorSize == 0 else {
            for layer in layers { layer.close() }
            source.close()
            throw Failure(
                .damaged,
                "cannot serve \(path): its size, \(source.size) bytes, is not a multiple of 512 greater than "
                    + "0; enlarge it to one")
        }
        return source
    }

    /// The cache, and whether it was made.
    private static func openCache(
        _ options: HostOptions, beside source: StorageFile, _ layers: inout [StorageFile]
    ) throws -> (StorageFile, isNew: Bool) {
        let path = options.cache
        let identity = try identity(ofExisting: path)
        let isSource =
            identity.map { found in
                found == source.identity
                    || LoopLayers.below(found).contains { $0.identity == source.identity }
                    || LoopLayers.below(source.identity).contains { $0.identity == found }
            } ?? false
        guard !isSource else {
            throw Failure(
                .usage, "cannot use \(path) as the cache: it is the source itself; name another --cache")
        }
        if identity == nil {
            let size = options.cacheSize?.bytes ?? max(smallestDefaultCache, source.size / 4)
            do throws(StorageError) {
                try StorageFile.create(
                    path, size: size.roundedUp(to: LogFormat.blockSize), preallocate: false)
            } catch { throw error.failure(advice: "check --cache", creating: true) }
        }
        do throws(StorageError) {
            return (try open(path, links: .toDevices, &layers), identity == nil)
        } catch {
            throw error.failure(
                advice: error.kind == .locked ? "another host uses this cache: name another --cache" : "")
        }
    }

    /// Opens and locks it, and locks what lies below it.
    private static func open(
        _ path: String, links: StorageLinks, _ layers: inout [StorageFile]
    ) throws(StorageError) -> StorageFile {
        let file = try StorageFile.open(
            path, access: .readWrite, mode: .pageCache, lock: .exclusive, links: links)
        do throws(StorageError) {
            for layer in LoopLayers.below(file.identity) {
                layers.append(
                    try StorageFile.open(
                        layer.path, access: .readOnly, mode: .pageCache, lock: .exclusive))
            }
        } catch {
            file.close()
            throw error
        }
        return file
    }

    private static func identity(ofExisting path: String) throws -> StorageIdentity? {
        do throws(StorageError) { return try StorageIdentity.of(path: path) } catch {
            guard error.kind == .missing else { throw error.failure() }
            return nil
        }
    }

    /// The newer of the log's superblocks that verify; nil where there is none (a blank or foreign cache, of
    /// which the log itself says more).
    private static func superblock(of cache: StorageFile, path: String) throws -> LogSuperblock? {
        var newest: LogSuperblock?
        for position in [0, LogFormat.blockSize] where cache.size >= position + LogFormat.blockSize {
            let bytes = try cache.bytes(at: position, count: Int(LogFormat.blockSize))
            // One of the two may be damaged: that is why there are two.
            let found = try? bytes.withUnsafeBytes { try LogSuperblock(decoding: $0, at: position) }
            if let found, found.generation > newest?.generation ?? 0 || newest == nil { newest = found }
        }
        return newest
    }

    private static func check(
        _ found: LogSuperblock?, volume: UUID, source: StorageFile, _ options: HostOptions
    ) throws {
        guard let found else { return }
        guard found.volume == volume else {
            throw LogError.otherVolume(found: found.volume, expected: volume).failure(cache: options.cache)
        }
        let said = found.geometry.volumeSize
        guard said == source.size || (said < source.size && found.epoch?.state != .open) else {
            throw Failure(
                .damaged,
                "cannot serve \(options.source): it has \(source.size) bytes, but the cache \(options.cache) "
                    + "says that the volume has \(said); if it was resized on purpose, remove the cache")
        }
    }

    /// A device's name as it was given: links such as those in /dev/disk/by-id and /dev/mapper last, and what they
    /// lead to (sdb, dm-3) may be another device after a restart of the machine.
    private static func deviceName(_ path: String) -> String {
        let end = path.lastIndex(of: "/")
        let directory = absolutePath(end.map { String(path[...$0]) } ?? ".")
        let name = path[(end.map { path.index(after: $0) } ?? path.startIndex)...]
        return name.isEmpty || name == "." || name == ".." ? absolutePath(path) : "\(directory)/\(name)"
    }

    /// Stable for one path on one machine, so that the cache of one volume is not taken for another's.
    private static func identity(_ given: String?, source path: String) throws -> UUID {
        if let given {
            guard let uuid = UUID(uuidString: given) else {
                throw Failure(.usage, "--volume takes a UUID, not '\(given)'")
            }
            return uuid
        }
        // A machine without an id (a container) is like any other such machine.
        let machine = (try? String(contentsOfFile: "/etc/machine-id", encoding: .utf8)) ?? ""
        var digest = Array(SHA256.hash(data: Data("outboard volume\0\(machine)\0\(path)".utf8)).prefix(16))
        digest[6] = digest[6] & 0x0F | 0x80  // RFC 9562 §5.8: version 8
        digest[8] = digest[8] & 0x3F | 0x80
        return digest.withUnsafeBytes { UUID(uuid: $0.loadUnaligned(as: uuid_t.self)) }
    }
}
