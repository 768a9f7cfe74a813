import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// What a reader told of one file system, with the rules of the records checked as they come.
final class ListedVolume: RecordSink {
    let store: any BlockStore
    private(set) var description: FileSystemDescription?
    private(set) var nodes: [UInt64: FileNode] = [:]
    private(set) var names: [FileName] = []
    private(set) var streams: [StreamIdentifier: FileStream] = [:]
    private(set) var extents: [StreamIdentifier: [FileExtent]] = [:]
    private(set) var attributes: [ExtendedAttribute] = []
    private(set) var used: [ByteRange] = []
    private(set) var problems: [ReadProblem] = []
    private var hasEnded = false

    init(_ store: any BlockStore) { self.store = store }

    static func read(
        _ store: any BlockStore, _ index: Int = 0, _ scope: ReadScope = [.files, .use]
    ) throws -> ListedVolume {
        let place = try VolumeReader.places(store)[index]
        let listed = ListedVolume(store)
        try VolumeReader.read(store, place.range, scope, into: listed)
        #expect(listed.hasEnded)
        #expect(listed.description?.range == place.range)
        return listed
    }

    func put(_ record: VolumeRecord) throws(TocError) {
        #expect(!hasEnded)
        if case .fileSystem(let description) = record {
            #expect(self.description == nil)
            self.description = description
            return
        }
        let range = description?.range ?? ByteRange(offset: 0, count: 0)
        switch record {
        case .fileSystem: break
        case .node(let node):
            #expect(nodes[node.address] == nil, "node \(node.address) told twice")
            nodes[node.address] = node
        case .name(let name): names.append(name)
        case .stream(let stream):
            #expect(streams[stream.identifier] == nil)
            streams[stream.identifier] = stream
        case .extents(let identifier, let more):
            #expect(streams[identifier] != nil)
            for extent in more {
                #expect(extent.count > 0 && extent.volumeOffset >= range.offset)
                #expect(extent.volumeOffset + extent.count <= range.end)
            }
            extents[identifier, default: []] += more
        case .attribute(let attribute): attributes.append(attribute)
        case .used(let ranges): used += ranges
        case .problem(let problem): problems.append(problem)
        case .end: hasEnded = true
        }
    }

    /// Paths to nodes, by the names.
    var paths: [String: UInt64] {
        var children: [UInt64: [FileName]] = [:]
        for name in names { children[name.parent, default: []].append(name) }
        var found: [String: UInt64] = [:]
        var waiting = [("", description?.root ?? 0)]
        while let (path, address) = waiting.popLast() {
            for name in children[address] ?? [] {
                let next = path + "/" + String(decoding: name.name, as: UTF8.self)
                #expect(found[next] == nil, "\(next) told twice")
                found[next] = name.node
                if nodes[name.node]?.kind == .directory { waiting.append((next, name.node)) }
            }
        }
        return found
    }

    func node(_ path: String) -> FileNode? { paths[path].flatMap { nodes[$0] } }

    /// A stream's bytes as the records say they are; nil: unavailable.
    func content(_ identifier: StreamIdentifier) throws -> [UInt8]? {
        let stream = try #require(streams[identifier])
        switch stream.storage {
        case .unavailable: return nil
        case .inline(let bytes):
            #expect(UInt64(bytes.count) == stream.size)
            return bytes
        case .extents:
            var bytes = [UInt8](repeating: 0, count: Int(stream.size))
            for extent in extents[identifier] ?? [] where extent.fileOffset < stream.size {
                let count = Int(min(extent.count, stream.size - extent.fileOffset))
                let start = Int(extent.fileOffset)
                bytes.replaceSubrange(
                    start..<start + count, with: try store.bytes(at: extent.volumeOffset, count: count))
            }
            return bytes
        }
    }

    /// Holds the tree against one that the system shows: names, kinds, sizes, contents.
    func expectEqual(to directory: String, leavingOut: Set<String> = []) throws {
        var expected: Set<String> = []
        let paths = self.paths
        for member in try FileManager.default.subpathsOfDirectory(atPath: directory) {
            let path = "/" + member
            if leavingOut.contains(path) { continue }
            expected.insert(path)
            let attributes = try FileManager.default.attributesOfItem(atPath: directory + path)
            let address = try #require(paths[path], "\(path) is not listed")
            let node = try #require(nodes[address], "\(path) has no node")
            switch attributes[.type] as? FileAttributeType {
            case .typeDirectory: #expect(node.kind == .directory, "\(path)")
            case .typeSymbolicLink:
                #expect(node.kind == .symbolicLink, "\(path)")
                let target = try FileManager.default.destinationOfSymbolicLink(atPath: directory + path)
                #expect(node.target.map { String(decoding: $0, as: UTF8.self) } == target)
            case .typeRegular:
                #expect(node.kind == .regular, "\(path)")
                let bytes = try [UInt8](Data(contentsOf: URL(fileURLWithPath: directory + path)))
                #expect(node.size == UInt64(bytes.count), "\(path)")
                let content = try content(StreamIdentifier(node: address))
                #expect(content == bytes, "\(path) differs")
            default: break
            }
        }
        let more = Set(paths.keys.filter { !leavingOut.contains($0) }).subtracting(expected)
        #expect(more.isEmpty, "listed, but not there: \(more)")
    }

    /// Holds what is in use against what files have: nothing of a file may be taken for free.
    func expectUsed(_ sourceLocation: SourceLocation = #_sourceLocation) {
        #expect(description?.knowsUse == true, "\(description?.remark ?? "")", sourceLocation: sourceLocation)
        for (previous, next) in zip(used, used.dropFirst()) {
            #expect(previous.end <= next.offset, sourceLocation: sourceLocation)
        }
        for extent in extents.values.joined() {
            let isUsed = used.contains {
                $0.offset <= extent.volumeOffset && $0.end >= extent.volumeOffset + extent.count
            }
            #expect(isUsed, "\(extent) is taken for free", sourceLocation: sourceLocation)
        }
    }
}

/// Files to put on a file system: sizes from nothing to some megabytes, names beyond ASCII, directories in one another.
func makeTree(_ path: String) throws {
    let manager = FileManager.default
    for directory in ["a/b/c", "Ünïcode dir", "many"] {
        try manager.createDirectory(atPath: path + "/" + directory, withIntermediateDirectories: true)
    }
    func write(_ name: String, _ count: Int) throws {
        let bytes = seededBytes(count, seed: UInt64(count) &* 31 &+ UInt64(name.utf8.count))
        try Data(bytes).write(to: URL(fileURLWithPath: path + "/" + name))
    }
    for index in 0..<200 { try write("many/file number \(index).dat", index * 37) }
    try write("big.bin", 3_000_000)
    try write("empty", 0)
    try write("small.txt", 600)
    try write("a/b/c/日本語ファイル.txt", 5000)
    try write("Ünïcode dir/SHORT.TXT", 100)
    try write("a/b/ß and \(String(repeating: "long ", count: 30))end", 70_000)
}

/// An image of its own for one test.
func image(_ scratch: ScratchDirectory, _ name: String, bytes: UInt64) throws -> String {
    let path = scratch(name)
    #expect(FileManager.default.createFile(atPath: path, contents: nil))
    try FileHandle(forWritingTo: URL(fileURLWithPath: path)).truncate(atOffset: bytes)
    return path
}

func open(_ path: String) throws -> any BlockStore {
    try MemoryStore([UInt8](Data(contentsOf: URL(fileURLWithPath: path))), capabilities: [])
}

@discardableResult
func run(_ program: String, _ arguments: [String], environment: [String: String] = [:]) throws -> String {
    let result = try runProgram(program, arguments, environment: environment)
    try #require(result.isSuccess, "\(result)")
    return result.output
}
