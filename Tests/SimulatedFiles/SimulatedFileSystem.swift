import Blocks
import Glibc
import PhysicalCopy
import TestSupport

/// A call, before it is carried out.
package struct FileOperation: Sendable {
    package enum Kind: String, Sendable, CaseIterable {
        case openat, pread, pwrite, ftruncate, fsync, fstat, fstatat, names, availableSpace, mkdirat
        case linkat, unlinkat, renameat, flock, lockByte
    }
    package var kind: Kind
    /// The last part of the path, or of that by which the descriptor was opened.
    package var name: String
    /// The process that calls.
    package var user: Int32
}

/// A file system in memory behind ``FileSystemCalls``, the same for the same seed. It keeps what it promises and not
/// more: without a file's fsync its bytes and size may be lost at a crash, torn and in any order; without a directory's
/// fsync its last changes may be lost, of whatever kind, the later ones first. A rename is whole or not at all. There are
/// no symbolic links, and a rename stays in its directory.
///
/// Used by one thread at a time.
package final class SimulatedFileSystem: @unchecked Sendable {
    /// A process with files open.
    package final class User: @unchecked Sendable {
        package let number: Int32
        package fileprivate(set) var isAlive = true
        fileprivate unowned let files: SimulatedFileSystem

        fileprivate init(_ number: Int32, _ files: SimulatedFileSystem) {
            self.number = number
            self.files = files
        }

        /// The process ends: its files are closed, its locks dropped, and whatever it still calls fails and does
        /// nothing.
        package func end() { files.end(self) }
    }

    struct OpenFile {
        let inode: Inode
        let name: String
        let user: User
        let isWritable: Bool
    }

    /// Called before each call: others may run here, or the calling process end.
    package var willPerform: ((FileOperation) -> Void)?
    /// How a call shall fail; nil: not.
    package var fault: ((FileOperation) -> Int32?)?
    /// As on a file system whose renames have no flags.
    package var lacksRenameFlags = false
    /// Bytes in all, in whole pages; nil: enough.
    package var space: Int?
    /// What new files are made of, by their path.
    package var makeContents: (String) -> any SimulatedContents = { _ in SimulatedBytes() }

    private var random: SeededGenerator
    private let root: Inode
    private var inodesMade: UInt64 = 1
    /// No descriptors of the system's.
    private var nextDescriptor: Int32 = 1 << 20
    private(set) var open: [Int32: OpenFile] = [:]

    package init(seed: UInt64 = 0) {
        random = SeededGenerator(seed: seed)
        root = Inode(1, .directory(SimulatedDirectory()), permissions: 0o755)
    }

    private init(_ other: SimulatedFileSystem) {
        var copies: [ObjectIdentifier: Inode] = [:]
        root = other.root.copy(&copies)
        random = other.random
        inodesMade = other.inodesMade
        nextDescriptor = other.nextDescriptor
        lacksRenameFlags = other.lacksRenameFlags
        space = other.space
    }

    /// The same again, with a future of its own, as it is when all processes have ended.
    /// - Precondition: all files are ``SimulatedBytes``.
    package func copy() -> SimulatedFileSystem { SimulatedFileSystem(self) }

    /// A new process.
    package func makeUser(_ number: Int32) -> User { User(number, self) }

    /// The power fails: all processes end.
    package func crash(using random: inout SeededGenerator) {
        for file in open.values { file.user.isAlive = false }
        for descriptor in open.keys.sorted() { close(descriptor) }
        var seen: Set<UInt64> = []
        var rest = [root]
        while let inode = rest.popLast() {
            guard seen.insert(inode.number).inserted else { continue }
            switch inode.body {
            case .file(let contents): contents.crash(using: &random)
            case .directory(let directory):
                directory.crash(using: &random)
                rest += directory.entries.map(\.inode)
            }
        }
    }

    /// What a file holds; nil: there is no such file.
    package func contents(at path: String) -> (any SimulatedContents)? {
        guard case .success(let inode) = resolve(nil, path) else { return nil }
        return inode.contents
    }

    /// The names in a directory, in order; nil: there is no such directory.
    package func names(at path: String) -> [String]? {
        guard case .success(let inode) = resolve(nil, path) else { return nil }
        return inode.directory?.entries.map(\.name).sorted()
    }

    /// The names under which a process has files open, as it opened them.
    package func openFiles(of user: User) -> [String] {
        open.values.filter { $0.user === user }.map(\.name).sorted()
    }

    /// All that was done up to now survives.
    package func synchronize() {
        forEachInode { inode in
            inode.contents?.synchronize()
            inode.directory?.synchronize()
        }
    }

    // MARK: For the calls

    func perform<Value>(
        _ kind: FileOperation.Kind, _ name: String, _ user: User,
        _ body: () -> FileSystemCalls.Outcome<Value>
    ) -> FileSystemCalls.Outcome<Value> {
        let operation = FileOperation(kind: kind, name: name, user: user.number)
        willPerform?(operation)
        guard user.isAlive else { return .failure(Errno(EIO)) }
        if let code = fault?(operation) { return .failure(Errno(code)) }
        return body()
    }

    private func end(_ user: User) {
        user.isAlive = false
        for descriptor in open.keys.sorted() where open[descriptor]!.user === user { close(descriptor) }
    }

    func close(_ descriptor: Int32) {
        guard let file = open.removeValue(forKey: descriptor) else { return }
        file.inode.locks[descriptor] = nil
        file.inode.byteLocks = file.inode.byteLocks.filter { $0.value != descriptor }
    }

    func makeDescriptor(_ file: OpenFile) -> Int32 {
        nextDescriptor += 1
        open[nextDescriptor] = file
        return nextDescriptor
    }

    func makeInode(_ body: Inode.Body, permissions: UInt32) -> Inode {
        inodesMade += 1
        return Inode(inodesMade, body, permissions: permissions)
    }

    /// Whether so many bytes more find room.
    func hasRoom(for count: Int) -> Bool { count <= availableBytes }

    package var availableBytes: Int {
        guard let space else { return 1 << 50 }
        var used = 0
        forEachInode { used += $0.contents?.allocatedBytes ?? 4096 }
        return max(0, space - used)
    }

    private func forEachInode(_ body: (Inode) -> Void) {
        var seen: Set<UInt64> = []
        var rest = [root] + open.keys.sorted().map { open[$0]!.inode }
        while let inode = rest.popLast() {
            guard seen.insert(inode.number).inserted else { continue }
            body(inode)
            rest += inode.directory?.entries.map(\.inode) ?? []
        }
    }

    /// A file's synchronizing fails.
    func failToSynchronize(_ contents: any SimulatedContents) {
        contents.failToSynchronize(using: &random)
    }

    // MARK: Paths

    /// - Parameter directory: what a relative path starts at.
    func resolve(_ directory: Inode?, _ path: String) -> FileSystemCalls.Outcome<Inode> {
        guard path.hasPrefix("/") || directory != nil else { return .failure(Errno(EBADF)) }
        var inode = path.hasPrefix("/") ? root : directory!
        for name in path.split(separator: "/") where name != "." {
            guard let entries = inode.directory else { return .failure(Errno(ENOTDIR)) }
            guard let next = entries[String(name)] else { return .failure(Errno(ENOENT)) }
            inode = next
        }
        return .success(inode)
    }

    /// The directory that a path's last name is in, and that name.
    func resolveParent(
        _ directory: Inode?, _ path: String
    ) -> FileSystemCalls.Outcome<(directory: SimulatedDirectory, name: String)> {
        guard let name = path.split(separator: "/").last else { return .failure(Errno(EEXIST)) }
        let parent = path.dropLast(path.hasSuffix("/") ? name.count + 1 : name.count)
        return resolve(directory, parent.isEmpty ? "." : String(parent)).flatMap { inode in
            guard let entries = inode.directory else { return .failure(Errno(ENOTDIR)) }
            return entries.isRemoved ? .failure(Errno(ENOENT)) : .success((entries, String(name)))
        }
    }
}

extension Inode {
    /// - Parameter copies: what was copied already, by the original.
    fileprivate func copy(_ copies: inout [ObjectIdentifier: Inode]) -> Inode {
        if let copy = copies[ObjectIdentifier(self)] { return copy }
        let body: Body
        switch self.body {
        case .file(let contents):
            guard let bytes = contents as? SimulatedBytes else {
                preconditionFailure("only bytes in memory are copied")
            }
            body = .file(bytes.copy())
        case .directory(let directory):
            func copied(_ entries: [(name: String, inode: Inode)]) -> [(name: String, inode: Inode)] {
                entries.map { ($0.name, $0.inode.copy(&copies)) }
            }
            body = .directory(
                SimulatedDirectory(
                    entries: copied(directory.entries), stable: copied(directory.stable),
                    changes: directory.changes.map { change in
                        guard case .add(let name, let inode) = change else { return change }
                        return .add(name, inode.copy(&copies))
                    }))
        }
        let copy = Inode(number, body, permissions: permissions)
        copies[ObjectIdentifier(self)] = copy
        return copy
    }
}
