import Blocks
import Foundation
import TestSupport

@testable import TableOfContents

struct ExtTestFailure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// An image of an ext file system, made by mkfs.ext4, in a directory of its own.
final class ExtImage: Sendable {
    static let canMount = Tier.isHost && Machine.canMount
    static let reason = "host tier only: mounts by loop devices as root (OUTBOARD_TIER=host)"

    let scratch: ScratchDirectory
    let path: String

    /// - Parameter options: of mkfs.ext4, before the image's name.
    init(mebibytes: Int, _ options: [String] = [], in scratch: ScratchDirectory? = nil) throws {
        self.scratch = try scratch ?? ScratchDirectory()
        path = self.scratch("ext.img")
        try Self.succeed("truncate", ["-s", "\(mebibytes)M", path])
        try Self.succeed("mkfs.ext4", ["-q", "-F"] + options + [path])
    }

    @discardableResult
    static func succeed(_ program: String, _ arguments: [String], codes: Set<Int32> = [0]) throws
        -> ProgramResult
    {
        let result = try runProgram(program, arguments)
        guard case .exit(let code) = result.ending, codes.contains(code) else {
            throw ExtTestFailure("\(result)")
        }
        return result
    }

    /// Has debugfs do what each line says.
    @discardableResult
    func debug(_ lines: [String]) throws -> ProgramResult {
        let file = scratch("commands")
        try Data(lines.joined(separator: "\n").utf8 + [10]).write(to: URL(fileURLWithPath: file))
        return try Self.succeed("debugfs", ["-w", "-f", file, path])
    }

    static func bytes(_ path: String) throws -> [UInt8] {
        [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    }

    func store() throws -> MemoryStore { MemoryStore(try Self.bytes(path), capabilities: []) }

    /// The image as e2fsck leaves it when it has replayed the journal and done nothing else.
    func replayedByE2fsck() throws -> [UInt8] {
        let copy = scratch("replayed.img")
        try Self.succeed("cp", ["--sparse=always", path, copy])
        try Self.succeed("e2fsck", ["-y", "-E", "journal_only", copy], codes: [0, 1])
        return try Self.bytes(copy)
    }

    /// Writes a file of the scratch directory.
    func write(_ name: String, _ bytes: [UInt8]) throws -> String {
        let file = scratch(name)
        try Data(bytes).write(to: URL(fileURLWithPath: file))
        return file
    }
}

/// The image, mounted by the kernel until the object goes.
final class ExtMount: Sendable {
    let path: String

    init(_ image: ExtImage, _ options: String = "loop", on name: String = "mnt") throws {
        path = image.scratch(name)
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        try ExtImage.succeed("mount", ["-o", options, image.path, path])
    }

    deinit {
        // Where it is not mounted any more there is nothing to do.
        _ = try? runProgram("umount", [path])
    }

    func unmount() throws { try ExtImage.succeed("umount", [path]) }

    func callAsFunction(_ name: String) -> String { path + "/" + name }
}

/// Keeps what is put.
final class RecordList: RecordSink {
    var records: [VolumeRecord] = []
    func put(_ record: VolumeRecord) throws(TocError) { records.append(record) }

    var problems: [String] {
        records.compactMap { if case .problem(let problem) = $0 { problem.reason } else { nil } }
    }
    var used: [ByteRange] {
        records.flatMap { if case .used(let ranges) = $0 { ranges } else { [ByteRange]() } }
    }
    func attributes(of node: UInt64) -> [String: [UInt8]] {
        var result: [String: [UInt8]] = [:]
        for case .attribute(let attribute) in records where attribute.node == node {
            result[String(decoding: attribute.name, as: UTF8.self)] = attribute.value
        }
        return result
    }
    var names: [FileName] {
        records.compactMap { if case .name(let name) = $0 { name } else { nil } }
    }
    func extents(of node: UInt64) -> [FileExtent] {
        records.flatMap { record in
            if case .extents(let stream, let extents) = record, stream.node == node { return extents }
            return [FileExtent]()
        }
    }
}

extension ExtFileSystem {
    /// Of a whole image.
    static func of(_ store: any BlockStore) throws -> ExtFileSystem {
        guard let system = try ExtFileSystem(store, ByteRange(offset: 0, count: store.size)) else {
            throw ExtTestFailure("no ext file system")
        }
        return system
    }
}

/// Blocks that differ, but for what a recovery itself notes in the superblock and in the journal's.
func differingBlocks(_ overlay: any BlockStore, _ bytes: [UInt8], _ blockSize: Int, journal: UInt64) throws
    -> [Int]
{
    var result: [Int] = []
    let ours = try overlay.bytes(at: 0, count: bytes.count)
    func differ(_ range: Range<Int>) -> Bool {
        ours.withUnsafeBytes { a in
            bytes.withUnsafeBytes { b in
                !range.isEmpty
                    && memcmp(
                        a.baseAddress! + range.lowerBound, b.baseAddress! + range.lowerBound, range.count)
                        != 0
            }
        }
    }
    for block in 0..<bytes.count / blockSize where UInt64(block) != journal {
        let range = block * blockSize..<(block + 1) * blockSize
        // The superblock's 1,024 bytes are a block, or lie in the first one.
        let isSame =
            range.contains(1024)
            ? !differ(range.lowerBound..<1024) && !differ(min(2048, range.upperBound)..<range.upperBound)
            : !differ(range)
        if !isSame { result.append(block) }
    }
    return result
}
