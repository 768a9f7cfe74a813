import Blocks
import Foundation
import Glibc
import TestSupport
import Testing

@testable import TableOfContents

/// What the reader found against what the kernel shows.
extension CollectedRecords {
    /// Node by node, byte by byte.
    /// - Parameter unfinished: whether changes may be told as under way, of inodes that then may be otherwise.
    func expectEqual(_ store: any BlockStore, _ mountPoint: String, unfinished: Bool = false) throws {
        let others = Set(unfinished ? problems.compactMap { $0.node } : [])
        #expect(problems.filter { $0.node.map { !others.contains($0) } ?? true } == [])
        #expect(isEnded && longestBatch <= TocLimits.extentsPerRecord)
        let kernel = try KernelEntry.tree(mountPoint)
        // stat(2) does not tell when a file was made.
        let births = try shell(
            "find . -print0 | TZ=UTC xargs -0 stat --printf '%i %W %w\\n'", directory: mountPoint
        ).split(separator: "\n")
        for line in births {
            // Inode, seconds, and a date with nanoseconds behind its point.
            let words = line.split(separator: " ")
            let number = try #require(words.first.flatMap { UInt64($0) })
            let nanoseconds = try #require(line.split(separator: ".").last.flatMap { UInt32($0.prefix(9)) })
            let created = nodes[number]?.created
            #expect(
                words.count == 5 && created.map { "\($0.seconds)" } == words.dropFirst().first.map { "\($0)" }
            )
            #expect(created?.nanoseconds == nanoseconds)
        }
        #expect(births.count == kernel.count)
        let paths = paths
        #expect(paths.count == kernel.count)
        #expect(Set(nodes.keys) == Set(kernel.values.map { UInt64($0.status.st_ino) }))
        for (path, entry) in kernel {
            let name = String(decoding: path, as: UTF8.self)
            guard let number = paths[path], let node = nodes[number] else {
                Issue.record("\(name) is missing")
                continue
            }
            let status = entry.status
            if others.contains(number) { continue }
            #expect(number == UInt64(status.st_ino), "\(name)")
            #expect(node.permissions.map { UInt32($0) } == status.st_mode & 0o7777, "\(name)")
            #expect(node.owner == status.st_uid && node.group == status.st_gid, "\(name)")
            #expect(node.links == UInt32(status.st_nlink), "\(name)")
            #expect(node.size == UInt64(status.st_size) || node.kind != .regular, "\(name)")
            #expect(node.modified == FileTime(status.st_mtim), "\(name)")
            #expect(node.accessed == FileTime(status.st_atim), "\(name)")
            #expect(node.changed == FileTime(status.st_ctim), "\(name)")
            #expect(node.target == entry.target, "\(name)")
            #expect(attributes[number] ?? [:] == entry.attributes, "\(name)")
            let isDevice = [S_IFCHR, S_IFBLK].contains(status.st_mode & S_IFMT)
            #expect(node.device == (isDevice ? entry.device : nil), "\(name)")
            guard status.st_mode & S_IFMT == S_IFREG else { continue }
            #expect(node.kind == .regular)
            if status.st_size > 1 << 30 {
                // Mostly holes: what is no hole was read by the kernel, too.
                #expect(extents[number]?.count == 2, "\(name)")
                continue
            }
            let full = Array(mountPoint.utf8) + path
            let isEqual =
                try content(number, from: store)
                == KernelEntry.content(full, count: Int(status.st_size))
            #expect(isEqual, "\(name)")
        }
    }

    /// Random bytes in all that is said to be free.
    /// - Returns: how much that is.
    @discardableResult
    func overwriteFree(_ image: String) throws -> UInt64 {
        let size = try ImageStore(image).size
        var cursor: UInt64 = 0
        var free: UInt64 = 0
        let noise = seededBytes(1 << 20, seed: 7)
        let descriptor = open(image, O_RDWR | O_CLOEXEC)
        defer { close(descriptor) }
        for range in used + [ByteRange(offset: size, count: 0)] {
            #expect(range.offset >= cursor)
            free += range.offset - cursor
            while cursor < range.offset {
                let count = min(Int(range.offset - cursor), noise.count)
                #expect(pwrite(descriptor, noise, count, off_t(cursor)) == count)
                cursor += UInt64(count)
            }
            cursor = range.end
        }
        return free
    }

    /// With random bytes in all that is said to be free, xfs_repair has nothing to complain of and files are equal.
    func expectUseIsSound(_ image: String) throws {
        let size = try ImageStore(image).size
        #expect(try overwriteFree(image) > size / 3)
        try shell("xfs_repair -n \(image) 2>&1")
        let store = try ImageStore(image)
        let reader = try #require(try XFSReader(store, ByteRange(offset: 0, count: size), index: 0))
        let again = try CollectedRecords(reader)
        #expect(again.problems == [] && again.nodes == nodes && again.extents == extents)
        #expect(again.used == used)
    }
}
