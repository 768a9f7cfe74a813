import Blocks
import Glibc
import TestSupport

@testable import TableOfContents

/// All that the kernel or our reader tells of one path.
struct TreeEntry: Equatable {
    var kind: FileNode.Kind = .other
    var permissions: UInt16 = 0
    var owner: UInt32 = 0
    var group: UInt32 = 0
    var links: UInt32 = 0
    /// Of anything but directories, whose size is no content.
    var size: UInt64 = 0
    var modified = FileTime(seconds: 0)
    var accessed = FileTime(seconds: 0)
    var changed = FileTime(seconds: 0)
    var target: [UInt8]?
    var device: DeviceNumber?
    var attributes: [[UInt8]: [UInt8]] = [:]
    var content: [UInt8]?
}

typealias Tree = [[UInt8]: TreeEntry]

enum KernelTree {
    /// A directory as the kernel shows it, `lost+found` left out.
    static func read(_ root: String) throws -> Tree {
        var tree: Tree = [:]
        try read(Array(root.utf8), [], &tree)
        return tree
    }

    private static func cString<R>(_ path: [UInt8], _ body: (UnsafePointer<CChar>) -> R) -> R {
        (path + [0]).withUnsafeBufferPointer { buffer in
            buffer.withMemoryRebound(to: CChar.self) { body($0.baseAddress!) }
        }
    }

    private static func read(_ path: [UInt8], _ relative: [UInt8], _ tree: inout Tree) throws {
        let entry = try self.entry(path)
        tree[relative] = entry
        guard entry.kind == .directory else { return }
        guard let stream = cString(path, { opendir($0) }) else {
            throw ExtTestFailure("opendir: errno \(errno)")
        }
        var names: [[UInt8]] = []
        while let next = readdir(stream) {
            let name = withUnsafeBytes(of: next.pointee.d_name) { Array($0.prefix { $0 != 0 }) }
            if name != [46], name != [46, 46], !(relative.isEmpty && name == Array("lost+found".utf8)) {
                names.append(name)
            }
        }
        closedir(stream)
        for name in names {
            try read(path + [47] + name, relative.isEmpty ? name : relative + [47] + name, &tree)
        }
    }

    private static func entry(_ path: [UInt8]) throws -> TreeEntry {
        var status = stat()
        guard cString(path, { lstat($0, &status) }) == 0 else {
            throw ExtTestFailure("lstat \(String(decoding: path, as: UTF8.self)): errno \(errno)")
        }
        var entry = TreeEntry()
        entry.permissions = UInt16(status.st_mode & 0o7777)
        entry.owner = status.st_uid
        entry.group = status.st_gid
        entry.links = UInt32(status.st_nlink)
        entry.modified = time(status.st_mtim)
        entry.accessed = time(status.st_atim)
        entry.changed = time(status.st_ctim)
        switch status.st_mode & S_IFMT {
        case S_IFREG: entry.kind = .regular
        case S_IFDIR: entry.kind = .directory
        case S_IFLNK: entry.kind = .symbolicLink
        case S_IFBLK: entry.kind = .blockDevice
        case S_IFCHR: entry.kind = .characterDevice
        case S_IFIFO: entry.kind = .fifo
        case S_IFSOCK: entry.kind = .socket
        default: break
        }
        if entry.kind != .directory { entry.size = UInt64(status.st_size) }
        if entry.kind == .blockDevice || entry.kind == .characterDevice {
            let number = UInt64(status.st_rdev)
            entry.device = DeviceNumber(
                major: UInt32(number >> 8 & 0xFFF), minor: UInt32(number & 0xFF | number >> 12 & 0xF_FF00))
        }
        if entry.kind == .symbolicLink {
            var buffer = [CChar](repeating: 0, count: 5000)
            let count = cString(path) { readlink($0, &buffer, buffer.count) }
            entry.target = buffer[..<max(0, count)].map { UInt8(bitPattern: $0) }
        }
        entry.attributes = attributes(path)
        if entry.kind == .regular { entry.content = try content(path, Int(entry.size)) }
        return entry
    }

    private static func time(_ value: timespec) -> FileTime {
        FileTime(seconds: Int64(value.tv_sec), nanoseconds: UInt32(value.tv_nsec))
    }

    // Swift's Glibc module leaves <sys/xattr.h> out.
    private typealias List = @convention(c) (UnsafePointer<CChar>, UnsafeMutablePointer<CChar>, Int) -> Int
    private typealias Get =
        @convention(c) (UnsafePointer<CChar>, UnsafePointer<CChar>, UnsafeMutableRawPointer, Int) -> Int
    private static let llistxattr = unsafeBitCast(dlsym(nil, "llistxattr")!, to: List.self)
    private static let lgetxattr = unsafeBitCast(dlsym(nil, "lgetxattr")!, to: Get.self)

    private static func attributes(_ path: [UInt8]) -> [[UInt8]: [UInt8]] {
        var list = [CChar](repeating: 0, count: 65_536)
        let count = cString(path) { llistxattr($0, &list, list.count) }
        guard count > 0 else { return [:] }
        var result: [[UInt8]: [UInt8]] = [:]
        for name in list[..<count].map({ UInt8(bitPattern: $0) }).split(separator: 0) {
            var value = [UInt8](repeating: 0, count: 65_536)
            let size = cString(path) { path in
                cString(Array(name)) { lgetxattr(path, $0, &value, value.count) }
            }
            if size >= 0 { result[Array(name)] = Array(value[..<size]) }
        }
        return result
    }

    private static func content(_ path: [UInt8], _ size: Int) throws -> [UInt8] {
        let descriptor = cString(path) { open($0, O_RDONLY | O_CLOEXEC) }
        guard descriptor >= 0 else { throw ExtTestFailure("open: errno \(errno)") }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: size)
        var position = 0
        while position < size {
            let count = bytes.withUnsafeMutableBytes {
                Glibc.read(descriptor, $0.baseAddress! + position, size - position)
            }
            guard count > 0 else { throw ExtTestFailure("read: errno \(errno)") }
            position += count
        }
        return bytes
    }
}

extension ExtFileSystem {
    /// The same by our reader: names from the root down, content from `store` (the volume as it is) by the extents.
    func tree(_ store: any BlockStore) throws -> (tree: Tree, problems: [String]) {
        let supplement = self.supplement
        let sink = RecordList()
        var tree: Tree = [:]
        var nodes: [UInt64: TreeEntry] = [:]
        var children: [UInt64: [FileName]] = [:]
        func visit(_ address: UInt64, _ path: [UInt8]) throws {
            if nodes[address] == nil {
                nodes[address] = try entry(address, supplement, store, sink, &children)
            }
            tree[path] = nodes[address]
            guard nodes[address]?.kind == .directory else { return }
            for name in children[address] ?? [] where !(path.isEmpty && name.name == Array("lost+found".utf8))
            {
                try visit(name.node, path.isEmpty ? name.name : path + [47] + name.name)
            }
        }
        try visit(2, [])
        return (tree, sink.problems)
    }

    private func entry(
        _ address: UInt64, _ supplement: any NodeSupplement, _ store: any BlockStore, _ problems: RecordList,
        _ children: inout [UInt64: [FileName]]
    ) throws -> TreeEntry {
        let sink = RecordList()
        var node = FileNode(address: address, kind: .other)
        let storage = try supplement.complete(&node, into: sink)
        var entry = TreeEntry()
        entry.kind = node.kind
        entry.permissions = node.permissions ?? 0
        entry.owner = node.owner ?? 0
        entry.group = node.group ?? 0
        entry.links = node.links
        if node.kind != .directory { entry.size = node.size }
        entry.modified = node.modified ?? entry.modified
        entry.accessed = node.accessed ?? entry.accessed
        entry.changed = node.changed ?? entry.changed
        entry.target = node.target
        entry.device = node.device
        if node.kind == .regular {
            switch storage {
            case .inline(let bytes): entry.content = bytes
            case .extents:
                var content = [UInt8](repeating: 0, count: Int(node.size))
                try supplement.extents(of: node, into: sink)
                for extent in sink.extents(of: address) {
                    let start = Int(extent.fileOffset)
                    let count = min(Int(extent.count), content.count - start)
                    content.replaceSubrange(
                        start..<start + count, with: try store.bytes(at: extent.volumeOffset, count: count))
                }
                entry.content = content
            default: break
            }
        }
        for case .attribute(let attribute) in sink.records {
            entry.attributes[attribute.name] = attribute.value
        }
        children[address] = sink.names
        for case .problem(let problem) in sink.records { problems.records.append(.problem(problem)) }
        return entry
    }
}

/// What differs between two trees, for people; empty: nothing.
func differences(_ ours: Tree, _ reference: Tree) -> [String] {
    var result: [String] = []
    for path in Set(ours.keys).union(reference.keys) where ours[path] != reference[path] {
        let name = String(decoding: path, as: UTF8.self)
        guard var mine = ours[path], var theirs = reference[path] else {
            result.append("\(name): only \(ours[path] == nil ? "the reference" : "we") know it")
            continue
        }
        if mine.content != theirs.content {
            result.append("\(name): other content (\(mine.size) and \(theirs.size) bytes)")
        }
        mine.content = nil
        theirs.content = nil
        if mine != theirs { result.append("\(name): \(mine) and not \(theirs)") }
    }
    return result.sorted()
}
