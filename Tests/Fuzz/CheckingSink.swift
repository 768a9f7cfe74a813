import Blocks

@testable import TableOfContents

/// Holds every record against the contract.
final class CheckingSink: RecordSink {
    private let range: ByteRange
    private let kinds: Set<FileSystemKind>
    private let mostProblems: Int
    private var cursor: UInt64 = 0
    private var fileEnds: [StreamIdentifier: UInt64] = [:]
    private var problems = 0
    private(set) var isEnded = false
    private(set) var nodes = 0

    /// - Parameter mostProblems: that are told.
    init(_ range: ByteRange, _ kinds: Set<FileSystemKind>, mostProblems: Int) {
        self.range = range
        self.kinds = kinds
        self.mostProblems = mostProblems
    }

    func put(_ record: VolumeRecord) throws(TocError) {
        precondition(!isEnded)
        switch record {
        case .fileSystem(let description):
            precondition(description.range == range && kinds.contains(description.kind))
            precondition(description.root < TocLimits.address && description.blockSize <= Int64.max)
        case .node(let node):
            nodes += 1
            precondition(node.address < TocLimits.address)
            precondition(node.target.map { (1...TocLimits.targetBytes).contains($0.count) } ?? true)
            for time in [node.modified, node.accessed, node.changed, node.created] {
                precondition(time.map { $0.nanoseconds < 1_000_000_000 } ?? true)
            }
        case .name(let name):
            precondition((1...TocLimits.nameBytes).contains(name.name.count) && !name.name.contains(0))
            precondition(name.node < TocLimits.address)
        case .stream(let stream):
            if case .inline(let bytes) = stream.storage { precondition(bytes.count <= TocLimits.inlineBytes) }
            precondition(fileEnds.updateValue(0, forKey: stream.identifier) == nil, "a stream told twice")
        case .extents(let stream, let extents):
            guard var end = fileEnds[stream] else { preconditionFailure("extents before their stream") }
            precondition((1...TocLimits.extentsPerRecord).contains(extents.count))
            for extent in extents {
                precondition(extent.count > 0 && extent.fileOffset >= end)
                precondition(ByteRange(checking: extent.volumeOffset, extent.count, within: range.end) != nil)
                end = extent.fileOffset + extent.count
            }
            fileEnds[stream] = end
        case .attribute(let attribute):
            precondition(attribute.value.count <= TocLimits.attributeBytes && !attribute.name.contains(0))
        case .used(let ranges):
            for range in ranges {
                precondition(range.offset >= cursor && range.count > 0 && range.end <= self.range.end)
                cursor = range.end
            }
        case .problem:
            problems += 1
            precondition(problems <= mostProblems, "more problems than are told")
        case .end: isEnded = true
        }
    }
}
