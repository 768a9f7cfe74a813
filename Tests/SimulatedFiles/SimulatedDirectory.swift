import TestSupport

/// A file or directory, under whatever names.
final class Inode {
    enum Body {
        case file(any SimulatedContents)
        case directory(SimulatedDirectory)
    }

    let number: UInt64
    let body: Body
    let permissions: UInt32
    /// By open file: whether it excludes all others (flock(2)).
    var locks: [Int32: Bool] = [:]
    /// By offset: the open file that has it locked.
    var byteLocks: [UInt64: Int32] = [:]

    init(_ number: UInt64, _ body: Body, permissions: UInt32) {
        self.number = number
        self.body = body
        self.permissions = permissions
    }

    var directory: SimulatedDirectory? {
        if case .directory(let directory) = body { directory } else { nil }
    }
    var contents: (any SimulatedContents)? {
        if case .file(let contents) = body { contents } else { nil }
    }
}

/// The names in a directory, and what was done to them since it was synchronized: a crash leaves what was done up to some
/// moment, and nothing of what came later.
final class SimulatedDirectory {
    enum Change {
        case add(String, Inode)
        case remove(String)
        /// What has the new name loses it.
        case rename(String, String)
        case exchange(String, String)
    }

    /// In the order of their making.
    private(set) var entries: [(name: String, inode: Inode)] = []
    private(set) var stable: [(name: String, inode: Inode)] = []
    private(set) var changes: [Change] = []
    /// No name leads to it, and none can come into it.
    var isRemoved = false

    init() {}

    init(
        entries: [(name: String, inode: Inode)], stable: [(name: String, inode: Inode)], changes: [Change]
    ) {
        (self.entries, self.stable, self.changes) = (entries, stable, changes)
    }

    subscript(name: String) -> Inode? { entries.first { $0.name == name }?.inode }

    func apply(_ change: Change) {
        Self.apply(change, to: &entries)
        changes.append(change)
    }

    private static func apply(_ change: Change, to entries: inout [(name: String, inode: Inode)]) {
        func index(_ name: String) -> Int {
            guard let index = entries.firstIndex(where: { $0.name == name }) else {
                preconditionFailure("no \(name) there")
            }
            return index
        }
        switch change {
        case .add(let name, let inode): entries.append((name, inode))
        case .remove(let name): entries.remove(at: index(name))
        case .rename(let old, let new):
            let inode = entries.remove(at: index(old)).inode
            entries.removeAll { $0.name == new }
            entries.append((new, inode))
        case .exchange(let first, let second):
            let (first, second) = (index(first), index(second))
            let inode = entries[first].inode
            entries[first].inode = entries[second].inode
            entries[second].inode = inode
        }
    }

    func synchronize() {
        stable = entries
        changes = []
    }

    func crash(using random: inout SeededGenerator) {
        let survivors = Int.random(in: 0...changes.count, using: &random)
        entries = stable
        for change in changes[..<survivors] { Self.apply(change, to: &entries) }
        synchronize()
        isRemoved = false
    }
}
