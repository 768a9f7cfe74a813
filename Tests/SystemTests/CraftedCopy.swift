import Blocks
import Foundation
import PhysicalCopy
import TableOfContents
import TestSupport

/// A copy of a volume without file system, whose table of contents lists what a test says: no file system could be
/// made to hold such things.
final class CraftedCopy {
    let scratch: ScratchDirectory
    let copy: String
    /// The volume as of the instant.
    let volume: [UInt8]
    private var records: [VolumeRecord] = []
    private var nextNode: UInt64 = 100
    /// The standing bridge on whose unit its data lie.
    let bridge: BridgeProcess?
    static let root: UInt64 = 2

    /// - Parameters:
    ///   - mode: with `append` most of the volume's first part has original images.
    ///   - isOnUnit: its data lie on a standing bridge's unit.
    ///   - originals: about so many original images; nil: 24 of 64 KiB.
    init(mode: String, size: Int = 8 << 20, isOnUnit: Bool = false, originals: Int? = nil) throws {
        scratch = try ScratchDirectory()
        let source = scratch("volume.img")
        try makePatternFile(source, count: size)
        // Some of it is zeros, so that there are originals without content.
        let handle = try FileHandle(forUpdating: URL(fileURLWithPath: source))
        try handle.seek(toOffset: 1 << 20)
        try handle.write(contentsOf: Data(count: 256 << 10))
        try handle.close()
        volume = Array(try contents(source))
        let host = try HostProcess(
            scratch, options: originals == nil ? [] : ["--chunk-size", "4KiB", "--cache-size", "96MiB"])
        copy = scratch("copy")
        var options: [String] = []
        if isOnUnit {
            try makeSparseFile(scratch("unit"), size: UInt64(size) + 64 << 20)
            let made = try BridgeProcess(
                units: ["0=\(host.source),ro", "1=\(host.cache),ro", "2=\(scratch("unit"))"])
            options = ["--bridge", made.uri, "--source-unit", "0", "--cache-unit", "1", "--copy-unit", "2"]
            bridge = made
        } else {
            bridge = nil
        }
        let noise = scratch("noise")
        let count = originals ?? 24
        let made = try Outboard.run(
            [
                "copy", "--host", host.control, "--to", copy, "--mode", mode, "--no-toc",
                // Overwritten after the instant: there are originals.
                "--post-thaw",
                "dd if=/dev/urandom of='\(noise)' bs=\(originals == nil ? "64k" : "4k") count=\(count) status=none && "
                    + "nbdcopy --connections=4 --requests=32 '\(noise)' '\(host.uri)'",
            ] + options)
        guard made.isSuccess else { throw TestFailure("\(made)") }
        host.stop()
        records.append(
            .fileSystem(
                FileSystemDescription(
                    index: 0, kind: .ext4, range: ByteRange(offset: 0, count: UInt64(size)), blockSize: 512,
                    root: Self.root, isListed: true)))
        records.append(.node(FileNode(address: Self.root, kind: .directory)))
    }

    static func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }

    /// - Returns: the node's address.
    @discardableResult
    func add(
        _ kind: FileNode.Kind, _ name: [UInt8], in parent: UInt64 = CraftedCopy.root,
        _ change: (inout FileNode) -> Void = { _ in }
    ) -> UInt64 {
        var node = FileNode(address: nextNode, kind: kind)
        nextNode += 1
        change(&node)
        records.append(.node(node))
        link(node.address, name, in: parent)
        return node.address
    }

    func link(_ node: UInt64, _ name: [UInt8], in parent: UInt64 = CraftedCopy.root) {
        records.append(.name(FileName(parent: parent, name: name, node: node)))
    }

    func put(_ record: VolumeRecord) { records.append(record) }

    /// A file whose content stands in the table of contents.
    func inline(_ name: String, _ content: [UInt8]) {
        let node = add(.regular, Self.bytes(name)) { $0.size = UInt64(content.count) }
        put(.stream(FileStream(.init(node: node), size: UInt64(content.count), storage: .inline(content))))
    }

    /// A file of extents.
    /// - Returns: its address, and what is in it.
    @discardableResult
    func file(
        _ name: String, in parent: UInt64 = CraftedCopy.root, size: UInt64, _ extents: [FileExtent],
        _ change: (inout FileNode) -> Void = { _ in }
    ) -> (node: UInt64, content: [UInt8]) {
        let node = add(.regular, Self.bytes(name), in: parent) { node in
            node.size = size
            change(&node)
        }
        return (node, stream(of: node, size: size, extents))
    }

    func stream(
        of node: UInt64, number: UInt32 = 0, name: String = "", size: UInt64, _ extents: [FileExtent]
    ) -> [UInt8] {
        let identifier = StreamIdentifier(node: node, number: number)
        records.append(
            .stream(FileStream(identifier, name: Self.bytes(name), size: size, storage: .extents)))
        if !extents.isEmpty { records.append(.extents(identifier, extents)) }
        var content = [UInt8](repeating: 0, count: Int(size))
        for extent in extents {
            let count = Int(min(extent.count, size - min(size, extent.fileOffset)))
            let place = Int(extent.fileOffset)
            let from = Int(extent.volumeOffset)
            content.replaceSubrange(place..<place + count, with: volume[from..<from + count])
        }
        return content
    }

    /// Extents in whole blocks, with holes between, that hold a file of a random size; all over the volume, in
    /// no order.
    func randomExtents(_ random: inout SeededGenerator) -> (size: UInt64, extents: [FileExtent]) {
        var extents: [FileExtent] = []
        var position: UInt64 = 0
        for _ in 0..<Int.random(in: 0...6, using: &random) {
            if Bool.random(using: &random) { position += 512 * UInt64.random(in: 1...200, using: &random) }
            let most = Bool.random(using: &random) ? 8 : 600
            let count = 512 * UInt64.random(in: 1...UInt64(most), using: &random)
            let places = (UInt64(volume.count) - count) / 512
            let place = 512 * UInt64.random(in: 0...places, using: &random)
            extents.append(FileExtent(fileOffset: position, volumeOffset: place, count: count))
            position += count
        }
        let isCut = Bool.random(using: &random)
        let tail = UInt64.random(in: 0...70_000, using: &random)
        guard let last = extents.last else { return (tail, []) }
        return (isCut ? last.fileOffset + 1 + tail % last.count : position + tail, extents)
    }

    /// Makes the table of contents. Called once.
    func finish() throws {
        let copy = try PhysicalCopy(copy)
        let draft = try copy.tocDraft()
        let manifest = copy.manifest
        let info = TocInfo(
            tool: "test", volume: manifest.volume.uuid.lowercased(), volumeSize: manifest.volume.size,
            epoch: manifest.epoch.uuid.lowercased(), instant: manifest.epoch.institutedAt)
        try TocBuilder.build(at: draft.path, inPlace: true, info: info) {
            [records] builder throws(TocError) in
            for record in records { try builder.put(record) }
            try builder.put(.end)
        }
        try copy.attachToc(draft)
    }

    func restore(_ paths: [String] = ["/"], to name: String, _ options: [String] = []) throws -> ProgramResult
    {
        try Outboard.run(["restore", "file", copy] + paths + ["--to", scratch(name)] + options)
    }

    /// What is in a directory, also what is hidden.
    func names(_ name: String) throws -> Set<String> {
        Set(try FileManager.default.contentsOfDirectory(atPath: scratch(name)))
    }
}
