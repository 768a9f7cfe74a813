import Blocks
import Foundation
import Glibc

/// Where running parts of Outboard are entered, so that `outboard status` finds them: a directory that only its owner
/// can write, with one file for each process, which holds a lock on it as long as it lives. So nobody mistakes a dead
/// process, or one that has its number now, for a living one.
///
/// `/run/outboard` for root, and for a service user who owns it; else `outboard` in `$XDG_RUNTIME_DIR`;
/// `$OUTBOARD_RUN_DIRECTORY` comes before both.
struct RunDirectory {
    /// Bytes of an entry that are read.
    static let entryBytes = 16 << 10
    /// Entries that are looked at.
    static let entries = 1024

    /// What kind of process it is.
    enum Kind: String, Codable, CaseIterable, Sendable {
        case host, bridge, copy
    }

    /// One process, as it entered itself.
    struct Entry: Codable, Sendable {
        var kind: Kind
        var process: Int32
        /// Nanoseconds since 1970.
        var startedAt: Int64
        /// The program's version.
        var version: String
        /// Of a host: its control socket, absolute.
        var control: String?
        /// Of others: the socket on which they tell their status, absolute.
        var status: String?
        /// What it serves or makes, for people.
        var subject: String
    }

    /// Why the directory is not used.
    struct Unusable: Error, CustomStringConvertible {
        var description: String
        /// It is not there.
        var isMissing = false
    }

    let path: String
    private let descriptor: Descriptor

    private final class Descriptor: Sendable {
        let number: Int32
        init(_ number: Int32) { self.number = number }
        deinit { close(number) }
    }

    /// The one of this user; nil: there is no place for one.
    static var usualPath: String? {
        func variable(_ name: String) -> String? {
            getenv(name).map { String(cString: $0) }.flatMap { $0.hasPrefix("/") ? $0 : nil }
        }
        if let given = variable("OUTBOARD_RUN_DIRECTORY") { return given }
        let system = "/run/outboard"
        var status = stat()
        if geteuid() == 0 || (lstat(system, &status) == 0 && status.st_uid == geteuid()) { return system }
        return variable("XDG_RUNTIME_DIR").map { $0 + "/outboard" }
    }

    /// Opens it and sees that nobody else can put anything into it.
    /// - Parameter makes: makes it when it is not there, for its owner alone.
    init(_ path: String, makes: Bool) throws(Unusable) {
        self.path = path
        if makes, mkdir(path, 0o700) != 0, errno != EEXIST {
            throw Unusable(description: "\(path) cannot be made: \(String(cString: strerror(errno)))")
        }
        let number = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        guard number >= 0 else {
            throw Unusable(
                description: "\(path) cannot be opened: \(String(cString: strerror(errno)))",
                isMissing: errno == ENOENT)
        }
        descriptor = Descriptor(number)
        var status = stat()
        guard fstat(number, &status) == 0, status.st_uid == geteuid() else {
            throw Unusable(description: "\(path) is another user's")
        }
        guard status.st_mode & 0o022 == 0 else {
            throw Unusable(description: "\(path) can be written by others; chmod go-w \(path)")
        }
    }

    // MARK: Entering

    /// An entry of this process. It goes when this object does, and counts for nothing when the process has ended.
    final class Registration: Sendable {
        private let directory: RunDirectory
        private let name: String
        private let lock: Int32

        fileprivate init(_ directory: RunDirectory, _ name: String, lock: Int32) {
            self.directory = directory
            self.name = name
            self.lock = lock
        }

        deinit {
            unlinkat(directory.descriptor.number, name, 0)
            close(lock)
        }
    }

    /// A name for an entry of this process and what belongs to it, not yet taken.
    static func newName(_ kind: Kind) -> String {
        let random = String(UInt32.random(in: .min ... .max), radix: 16)
        return "\(kind.rawValue)-\(getpid())-" + String(repeating: "0", count: 8 - random.count) + random
    }

    /// Enters a process, and clears away those that are dead.
    func enter(_ entry: Entry, as name: String) throws(Unusable) -> Registration {
        clear()
        let action = "\(path)/\(name)"
        func failed(_ number: Int32) -> Unusable {
            Unusable(description: "\(action) cannot be made: \(String(cString: strerror(number)))")
        }
        // It gets its name when it is locked and whole.
        let temporary = ".\(name).new"
        let file = openat(
            descriptor.number, temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
        guard file >= 0 else { throw failed(errno) }
        let bytes: Data
        do { bytes = try JSONEncoder().encode(entry) } catch { preconditionFailure("\(error)") }
        let written = bytes.withUnsafeBytes { write(file, $0.baseAddress, $0.count) }
        guard written == bytes.count, flock(file, LOCK_EX) == 0,
            renameat(descriptor.number, temporary, descriptor.number, name + ".json") == 0
        else {
            let number = errno
            unlinkat(descriptor.number, temporary, 0)
            close(file)
            throw failed(number)
        }
        return Registration(self, name + ".json", lock: file)
    }

    // MARK: Looking

    /// The processes that live.
    func living() -> [Entry] {
        names().compactMap { name in
            guard !name.hasPrefix("."), name.hasSuffix(".json") else { return nil }
            return look(at: name) { file in read(file) }
        }
    }

    /// Removes what dead processes left: entries that nobody has locked, and sockets that belong to no entry.
    private func clear() {
        let all = names()
        for name in all where name.hasSuffix(".json") && !name.hasPrefix(".") {
            _ = look(at: name) { _ in nil }
        }
        for name in all {
            let isTemporary = name.hasPrefix(".") && name.hasSuffix(".new")
            let isSocket = name.hasSuffix(".sock")
            guard isTemporary || isSocket, let process = Self.process(of: name), kill(process, 0) != 0,
                errno == ESRCH
            else { continue }
            unlinkat(descriptor.number, name, 0)
        }
    }

    /// The process number in a name that ``newName(_:)`` could have made.
    private static func process(of name: String) -> pid_t? {
        let words = name.split(separator: "-", omittingEmptySubsequences: false)
        guard words.count == 3, Kind(rawValue: String(words[0].drop { $0 == "." })) != nil else { return nil }
        return pid_t(words[1])
    }

    private func names() -> [String] {
        // Its own position, whoever reads meanwhile.
        let number = openat(descriptor.number, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard number >= 0, let stream = fdopendir(number) else { return [] }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream), names.count < Self.entries {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    /// Calls `body` with an entry's file if its process lives; removes it if it is dead. What is no entry is left alone.
    private func look(at name: String, _ body: (Int32) -> Entry?) -> Entry? {
        let file = openat(descriptor.number, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
        guard file >= 0 else { return nil }
        defer { close(file) }
        var status = stat()
        guard fstat(file, &status) == 0, status.st_mode & S_IFMT == S_IFREG, status.st_uid == geteuid() else {
            return nil
        }
        guard flock(file, LOCK_SH | LOCK_NB) != 0 else {
            // Its process is dead. Nobody takes the name again: it has a random part.
            if Self.process(of: name) != nil { unlinkat(descriptor.number, name, 0) }
            return nil
        }
        return errno == EWOULDBLOCK ? body(file) : nil
    }

    private func read(_ file: Int32) -> Entry? {
        var bytes = [UInt8](repeating: 0, count: Self.entryBytes)
        let count = pread(file, &bytes, bytes.count, 0)
        guard count > 0, count < bytes.count else { return nil }
        return try? JSONDecoder().decode(Entry.self, from: Data(bytes[..<count]))
    }
}
