import Blocks
import PhysicalCopy
import TableOfContents

/// Whether anything lies in those bytes of a volume that are damaged in its copy, and what: by the copy's table of contents,
/// and by what the file systems say is in use.
public struct DamageUse: Sendable {
    /// What was found damaged; with the answers that there are.
    public private(set) var findings: [Finding]

    public init(_ findings: [Finding]) { self.findings = findings }

    /// Those about which nothing is known yet, with what of the volume is damaged.
    private var open: [(index: Int, volume: ByteRange)] {
        findings.indices.compactMap { index in
            guard findings[index].inUse == nil, let volume = findings[index].volume else { return nil }
            return (index, volume)
        }
    }

    /// What of the volume is damaged, and nobody has said whether it is in use.
    public var places: RangeList { RangeList(merging: open.map(\.volume)) }

    /// Asks for the files that have some of it.
    public mutating func ask(_ toc: TocDatabase) throws {
        let open = open
        var users: [Int: Set<NodeKey>] = [:]
        try toc.forEachUser(of: places) { key, extent in
            for place in open where place.volume.overlaps(extent) {
                guard users[place.index]?.count ?? 0 < AgentLimits.countedUsers else { continue }
                users[place.index, default: []].insert(key)
            }
        }
        for (index, keys) in users {
            let sorted = keys.sorted { ($0.fileSystem, $0.address) < ($1.fileSystem, $1.address) }
            findings[index].usedBy = try sorted.prefix(AgentLimits.listedUsers).map {
                try Self.name(of: $0, toc)
            }
            findings[index].moreUsers = max(0, sorted.count - AgentLimits.listedUsers)
            findings[index].inUse = .yes
        }
    }

    private static func name(of key: NodeKey, _ toc: TocDatabase) throws(TocError) -> String {
        if let path = try toc.path(of: key) { return TocPath.escaped(path) }
        return "node \(key.address) of file system \(key.fileSystem + 1)"
    }

    /// Asks the file systems about what no file has.
    /// - Parameter map: what they say, read from a volume without the damaged bytes (``UndamagedView``).
    public mutating func ask(_ map: UsedMap) {
        let answers = map.answers
        for (index, volume) in open {
            switch answers.isInUse(volume) {
            case true:
                findings[index].inUse = .yes
                findings[index].useReason = "a file system itself, or by a file that is not listed"
            case false: findings[index].inUse = .no
            case nil:
                findings[index].inUse = .unknown
                findings[index].useReason = "no file system there says for certain what is free"
            }
        }
    }

    /// Nobody can be asked.
    public mutating func giveUp(because reason: String) {
        for (index, _) in open {
            findings[index].inUse = .unknown
            findings[index].useReason = reason
        }
    }
}

/// A volume without the bytes of it that are damaged: reading those fails, so that nobody takes them for what a file system
/// says.
public final class UndamagedView: ReadOnlyStore {
    private let base: any BlockStore
    private let damaged: RangeList

    public var size: UInt64 { base.size }
    public let capabilities: StoreCapabilities

    public init(_ base: any BlockStore, without damaged: RangeList) {
        self.base = base
        self.damaged = damaged
        capabilities = base.capabilities.intersection(.knowsAllocation)
    }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        guard !damaged.overlaps(ByteRange(offset: offset, count: UInt64(buffer.count))) else {
            throw StoreError(.corrupt)
        }
        try base.read(at: offset, into: buffer)
    }

    public func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        try base.allocation(of: range, limit: limit)
    }

    public var isPrompt: Bool { base.isPrompt }
}
