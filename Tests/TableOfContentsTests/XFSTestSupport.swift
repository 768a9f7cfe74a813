import Blocks
import Foundation
import Glibc
import TestSupport

@testable import TableOfContents

/// An image file, read-only; counts what is read.
final class ImageStore: BlockStore {
    let size: UInt64
    let capabilities: StoreCapabilities = []
    private let descriptor: Int32
    private let counted = Monitor<(requests: Int, bytes: UInt64)>((0, 0))

    init(_ path: String) throws {
        descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw ImageFailure("open \(path): errno \(errno)") }
        size = UInt64(lseek(descriptor, 0, SEEK_END))
    }

    deinit { close(descriptor) }

    var reads: (requests: Int, bytes: UInt64) { counted.withLock { $0 } }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        counted.withLock { $0 = ($0.requests + 1, $0.bytes + UInt64(buffer.count)) }
        var done = 0
        while done < buffer.count {
            let count = pread(
                descriptor, buffer.baseAddress! + done, buffer.count - done, off_t(offset) + off_t(done))
            guard count > 0 else { throw StoreError(.io, errno: errno) }
            done += count
        }
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func flush() throws(StoreError) { throw StoreError(.readOnly) }
}

struct ImageFailure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// Runs a shell script to its end; throws what it wrote when it fails.
@discardableResult
func shell(_ script: String, directory: String? = nil, seconds: Double = 120) throws -> String {
    let result = try runProgram(
        "bash", ["-euo", "pipefail", "-c", script], directory: directory, seconds: seconds)
    guard result.isSuccess else { throw ImageFailure("\(result.errors)\n\(result)") }
    return result.output
}

/// Keeps all records, by what they are.
final class CollectedRecords: RecordSink {
    var description: FileSystemDescription?
    var nodes: [UInt64: FileNode] = [:]
    var names: [UInt64: [FileName]] = [:]
    var streams: [UInt64: FileStream] = [:]
    var extents: [UInt64: [FileExtent]] = [:]
    var attributes: [UInt64: [[UInt8]: [UInt8]]] = [:]
    var used: [ByteRange] = []
    var problems: [ReadProblem] = []
    var isEnded = false
    var longestBatch = 0

    init() {}

    init(_ reader: any FileSystemReader, _ scope: ReadScope = [.files, .use]) throws {
        try reader.read(scope, into: self)
    }

    func put(_ record: VolumeRecord) throws(TocError) {
        switch record {
        case .fileSystem(let its): description = its
        case .node(let node):
            precondition(nodes.updateValue(node, forKey: node.address) == nil, "a node told twice")
        case .name(let name): names[name.parent, default: []].append(name)
        case .stream(let stream): streams[stream.identifier.node] = stream
        case .extents(let stream, let list):
            precondition(streams[stream.node] != nil, "extents before their stream")
            longestBatch = max(longestBatch, list.count)
            extents[stream.node, default: []] += list
        case .attribute(let attribute):
            attributes[attribute.node, default: [:]][attribute.name] = attribute.value
        case .used(let ranges): used += ranges
        case .problem(let problem): problems.append(problem)
        case .end: isEnded = true
        }
    }

    /// All paths from the root, by their bytes, with the nodes that they lead to.
    var paths: [[UInt8]: UInt64] {
        var result: [[UInt8]: UInt64] = [:]
        guard let root = description?.root else { return result }
        var waiting: [([UInt8], UInt64)] = [([], root)]
        while let (path, node) = waiting.popLast() {
            result[path] = node
            for name in names[node] ?? [] {
                waiting.append((path + [UInt8(ascii: "/")] + name.name, name.node))
            }
        }
        return result
    }

    /// A file's bytes by its extents.
    func content(_ node: UInt64, from store: any BlockStore) throws -> [UInt8] {
        guard let stream = streams[node] else { throw ImageFailure("node \(node) has no stream") }
        switch stream.storage {
        case .inline(let bytes): return bytes
        case .unavailable(let reason): throw ImageFailure("node \(node): \(reason)")
        case .extents: break
        }
        var bytes = [UInt8](repeating: 0, count: Int(stream.size))
        for extent in extents[node] ?? [] {
            let count = min(extent.count, stream.size - extent.fileOffset)
            let part = try store.bytes(at: extent.volumeOffset, count: Int(count))
            bytes.replaceSubrange(Int(extent.fileOffset)..<Int(extent.fileOffset + count), with: part)
        }
        return bytes
    }
}

/// What the kernel says of a mounted tree.
struct KernelEntry {
    var status: stat
    var target: [UInt8]?
    var attributes: [[UInt8]: [UInt8]]

    /// All paths below a mount point, by their bytes.
    static func tree(_ mountPoint: String) throws -> [[UInt8]: KernelEntry] {
        var result: [[UInt8]: KernelEntry] = [:]
        var waiting: [[UInt8]] = [[]]
        while let path = waiting.popLast() {
            let full = Array(mountPoint.utf8) + path
            let entry = try KernelEntry(full)
            result[path] = entry
            guard entry.status.st_mode & S_IFMT == S_IFDIR else { continue }
            guard let directory = opendir(terminated(full)) else { throw ImageFailure("opendir: \(errno)") }
            defer { closedir(directory) }
            while let next = readdir(directory) {
                let name = withUnsafeBytes(of: &next.pointee.d_name) { bytes in
                    Array(bytes.prefix { $0 != 0 })
                }
                if name == [0x2E] || name == [0x2E, 0x2E] { continue }
                waiting.append(path + [UInt8(ascii: "/")] + name)
            }
        }
        return result
    }

    init(_ path: [UInt8]) throws {
        let name = Self.terminated(path)
        var status = stat()
        guard lstat(name, &status) == 0 else { throw ImageFailure("lstat: errno \(errno)") }
        self.status = status
        if status.st_mode & S_IFMT == S_IFLNK {
            var buffer = [UInt8](repeating: 0, count: 4096)
            let count = buffer.withUnsafeMutableBytes {
                readlink(name, $0.baseAddress!.assumingMemoryBound(to: CChar.self), 4096)
            }
            target = Array(buffer.prefix(count))
        }
        attributes = [:]
        var list = [CChar](repeating: 0, count: 1 << 16)
        let count = Self.list(name, &list, list.count)
        guard count >= 0 else { throw ImageFailure("llistxattr: errno \(errno)") }
        for attribute in list.prefix(count).split(separator: 0) {
            var value = [UInt8](repeating: 0, count: 1 << 16)
            let count = Self.get(name, Array(attribute) + [0], &value, value.count)
            guard count >= 0 else { throw ImageFailure("lgetxattr: errno \(errno)") }
            let name = attribute.map { UInt8(bitPattern: $0) }
            // The kernel tells access control lists twice: also in the form in which they lie on disk.
            if name.starts(with: Array("trusted.SGI_ACL".utf8)) { continue }
            attributes[name] = Array(value.prefix(count))
        }
    }

    // Swift's module of the C library leaves <sys/xattr.h> out.
    private typealias List =
        @convention(c) (UnsafePointer<CChar>, UnsafeMutablePointer<CChar>, Int) -> Int
    private typealias Get =
        @convention(c) (UnsafePointer<CChar>, UnsafePointer<CChar>, UnsafeMutableRawPointer, Int) -> Int
    private typealias Set =
        @convention(c) (UnsafePointer<CChar>, UnsafePointer<CChar>, UnsafeRawPointer, Int, Int32) -> Int32
    private static let set = unsafeBitCast(dlsym(nil, "setxattr"), to: Set.self)
    private static let list = unsafeBitCast(dlsym(nil, "llistxattr"), to: List.self)
    private static let get = unsafeBitCast(dlsym(nil, "lgetxattr"), to: Get.self)

    /// As the kernel packs them into a dev_t of 64 bits.
    var device: DeviceNumber {
        let number = UInt64(status.st_rdev)
        return DeviceNumber(
            major: UInt32(number >> 8 & 0xFFF | number >> 32 & 0xFFFF_F000),
            minor: UInt32(number & 0xFF | number >> 12 & 0xFFFF_FF00))
    }

    private static func terminated(_ path: [UInt8]) -> [CChar] { path.map { CChar(bitPattern: $0) } + [0] }

    /// An empty file with an extended attribute.
    static func makeFile(_ path: String, attribute: String, value: [UInt8]) throws {
        let descriptor = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw ImageFailure("open \(path): errno \(errno)") }
        close(descriptor)
        guard set(path, attribute, value, value.count, 0) == 0 else {
            throw ImageFailure("setxattr \(path): errno \(errno)")
        }
    }

    static func content(_ path: [UInt8], count: Int) throws -> [UInt8] {
        let descriptor = open(terminated(path), O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw ImageFailure("open: errno \(errno)") }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            let more = bytes.withUnsafeMutableBytes {
                pread(descriptor, $0.baseAddress! + done, count - done, off_t(done))
            }
            guard more > 0 else { throw ImageFailure("read: errno \(errno)") }
            done += more
        }
        return bytes
    }
}

/// An image that the kernel has mounted.
final class MountedImage {
    static let isPossible = Tier.isHost && Machine.canMount
    static let reason =
        "host tier only: mounts by loop devices as root (OUTBOARD_TIER=host, /dev/loop-control)"

    let mountPoint: String
    private var isMounted = true

    init(_ image: String, at mountPoint: String, options: String = "loop") throws {
        self.mountPoint = mountPoint
        try FileManager.default.createDirectory(atPath: mountPoint, withIntermediateDirectories: true)
        try shell("mount -o \(options) \(image) \(mountPoint)")
    }

    func unmount() throws {
        guard isMounted else { return }
        try shell("umount \(mountPoint)")
        isMounted = false
    }

    deinit {
        // Only where a test failed before; lazily, because something may hold it.
        if isMounted { _ = try? runProgram("umount", ["-l", mountPoint]) }
    }
}
