import CWitnessCalls
import Glibc

/// Fills a mounted file system with what is hard to read.
struct TreeBuilder {
    let abilities: Abilities
    let root: Directory

    func build() throws {
        try deleted()
        try sizes(root.make("sizes"))
        try fragments(root.make("fragments"))
        if abilities.sparse > 0 { try holes(root.make("holes")) }
        if abilities.unwritten { try unwritten(root.make("unwritten")) }
        try names(root.make("names"))
        try many(root.make("many"))
        try deep(root.make("deep"))
        try links(root.make("links"))
        if abilities.devices { try special(root.make("special")) }
        if abilities.attributeBytes > 0 { try attributes(root.make("attributes")) }
        if abilities.accessLists { try accessLists(root.make("access-lists")) }
        if abilities.owners { try owners(root.make("owners")) }
        if abilities.streams { try streams(root.make("streams")) }
        // Last: whatever is made in a directory changes its time.
        try times(root.make("times"))
        try root.flush()
    }

    // MARK: Data

    /// Their places are used again by what follows.
    private func deleted() throws {
        let directory = try root.make("deleted")
        for index in 0..<40 { try write("gone\(index)", count: 40_000, in: directory) }
        try root.flush()
        for index in 0..<40 where index % 4 != 3 { try directory.remove("gone\(index)") }
        try root.flush()
    }

    /// Around blocks, inodes' and records' own space, and index blocks.
    private func sizes(_ directory: Directory) throws {
        let few = [
            0, 1, 2, 59, 60, 61, 95, 96, 97, 155, 156, 157, 255, 335, 336, 400, 500, 600, 700, 800, 1000,
        ]
        let blocks = [511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 8191, 32_767, 32_768, 32_769]
        let many = [65_535, 65_536, 65_537, 12 * 1024 + 1, 49_153, 274_433, 1_048_577, 4_243_457]
        for count in few + blocks + many { try write("size\(count)", count: count, in: directory) }
    }

    private func fragments(_ directory: Directory) throws {
        // Two files in turn, durably, so that no allocator can put them together; in large pieces where one takes more
        // than it is asked for.
        var generator = Generator("interleaved")
        for (size, rounds) in [(4096, 48), (65_536, 12)] {
            let files = try ["left", "right"].map { try directory.create(Array("\($0)\(size)".utf8)) }
            for _ in 0..<rounds {
                for file in files {
                    try append(generator.bytes(size), to: file)
                    fdatasync(file)
                }
            }
            for file in files { close(file) }
        }
        // Blocks in no order.
        let file = try directory.create(Array("shuffled".utf8))
        defer { close(file) }
        for (turn, block) in (0..<128).shuffled(using: &generator).enumerated() {
            try put(generator.bytes(4096), at: block * 4096, of: file)
            if turn % 8 == 7 { fdatasync(file) }
        }
    }

    private func holes(_ directory: Directory) throws {
        var generator = Generator("holes")
        let mebibyte = 1 << 20
        let shapes: [(String, size: Int, at: [Int])] = [
            ("only", 10 * mebibyte, []), ("first", 3 * mebibyte + 5, [2 * mebibyte]),
            ("middle", 3 * mebibyte, [0, 2 * mebibyte + 4096]), ("last", 5 * mebibyte + 77, [0]),
            ("odd", 1_000_001, [5000, 700_123]),
            ("huge", abilities.sparse, [0, abilities.sparse / 4 * 3 + 12_345]),
            ("comb", 6 * mebibyte, stride(from: 0, to: 6 * mebibyte, by: 8192).map { $0 }),
        ]
        for (name, size, places) in shapes {
            let file = try directory.create(Array(name.utf8))
            defer { close(file) }
            for place in places { try put(generator.bytes(4096), at: place, of: file) }
            guard ftruncate(file, off_t(size)) == 0 else { throw Failure("truncate", Array(name.utf8)) }
        }
    }

    private func unwritten(_ directory: Directory) throws {
        var generator = Generator("unwritten")
        // FALLOC_FL_KEEP_SIZE is 1, FALLOC_FL_PUNCH_HOLE 2, FALLOC_FL_ZERO_RANGE 16.
        let shapes: [(String, mode: Int32, written: [Int])] = [
            ("never", 0, []), ("middle", 0, [400_000]), ("first", 0, [0]), ("beyond", 1, [0, 8192]),
        ]
        for (name, mode, places) in shapes {
            let file = try directory.create(Array(name.utf8))
            defer { close(file) }
            guard witness_fallocate(file, mode, 0, 1 << 20) == 0 else {
                throw Failure("fallocate", Array(name.utf8))
            }
            for place in places { try put(generator.bytes(5000), at: place, of: file) }
        }
        let file = try directory.create(Array("punched".utf8))
        defer { close(file) }
        try put(generator.bytes(600_000), at: 0, of: file)
        guard witness_fallocate(file, 3, 8192, 65_536) == 0 else { throw Failure("punch", []) }
        // ext2 and ext3 without extents cannot zero a range.
        _ = witness_fallocate(file, 16, 131_072, 40_960)
    }

    // MARK: Names

    private func names(_ directory: Directory) throws {
        let windows = [
            "plain", "with space", ".leading dot", "UPPER", "MiXed.CaSe", "ünïcödé", "日本語", "emoji 🗄️📼", "-rf",
            "--help", "semi;colon", "dollar$HOME", "back`tick`", "quote'single", "percent%00", "a.b.c.d",
            "~tilde",
            "#hash", "{brace}", "(bracket)", "$(touch x)", "comma,", "equal=", "[1-9]", "8DOT3.TXT",
            "LONGER~1.TXT",
            "exclam!",
        ]
        let characters = [
            "new\nline", "tab\t", "\u{1}\u{1F}control", "back\\slash", "quote\"double", "colon:", "aster*isk",
            "que?",
            "less<more>", "pi|pe", "trailing dot.", "trailing space ", "...", "nul", "\u{7F}delete",
            "\u{1B}[31mred",
            "CON", "\u{202E}right to left", "a\u{301}combining", "\u{C1}composed",
        ]
        var all = windows.map { Array($0.utf8) }
        if abilities.names != .windows { all += characters.map { Array($0.utf8) } }
        if abilities.names == .bytes {
            all += [[0xFF, 0xFE], [0xC3, 0x28], [0x80, 0x81, 0xFE], Array("latin-".utf8) + [0xE9]]
            all += ["case", "CASE", "Case"].map { Array($0.utf8) }
            all.append(contentsOf: (2...31).map { [UInt8($0)] })
        }
        // The longest, of letters of one byte and of more.
        all.append([UInt8](repeating: 0x6C, count: abilities.longestName))
        let wide = abilities.names == .bytes ? abilities.longestName / 3 : abilities.longestName
        all.append(Array(String(repeating: "語", count: min(wide, 255 / 3)).utf8))
        for name in all {
            let file = try directory.create(name, flags: O_EXCL)
            try append(Array("the file ".utf8) + name, to: file)
            close(file)
        }
        let inside = try directory.make(Array("directory with\u{20}spaces".utf8))
        try write("inside", count: 10, in: inside)
    }

    private func many(_ directory: Directory) throws {
        for index in 0..<abilities.entries {
            let name = index % 10 == 0 ? "entry \(index) of a directory with very many of them" : "e\(index)"
            try write(name, count: index % 500 == 0 ? 100 : 0, in: directory)
        }
        // Holes in the directory, some filled by longer names.
        for index in stride(from: 1, to: abilities.entries, by: 7) where index % 10 != 0 {
            try directory.remove("e\(index)")
            if index % 3 == 0 { try write("again \(index)", count: 1, in: directory) }
        }
    }

    private func deep(_ directory: Directory) throws {
        var place = directory
        for level in 0..<abilities.depth { place = try place.make("d\(level % 10)") }
        try write("bottom", count: 5000, in: place)
        guard abilities.names == .bytes, abilities.depth >= 200 else { return }
        // Longer than PATH_MAX.
        place = try directory.make("long")
        for level in 0..<20 {
            let letter = UInt8(97 + level)
            place = try place.make([UInt8](repeating: letter, count: min(240, abilities.longestName)))
        }
        try write("out of reach", count: 777, in: place)
    }

    // MARK: Nodes

    private func links(_ directory: Directory) throws {
        try write("file", count: 3000, in: directory)
        if abilities.hardLinks {
            let other = try directory.make("other")
            for (place, name) in [(directory, "second"), (other, "third"), (root, "fourth")] {
                guard linkat(directory.descriptor, "file", place.descriptor, name, 0) == 0 else {
                    throw Failure("link", Array(name.utf8))
                }
            }
            try write("many", count: 3, in: directory)
            for index in 0..<50 {
                guard linkat(directory.descriptor, "many", other.descriptor, "many\(index)", 0) == 0 else {
                    throw Failure("link", [])
                }
            }
        }
        guard abilities.symbolicLinks else { return }
        var targets: [(String, [UInt8])] = [
            ("short", Array("file".utf8)), ("dangling", Array("no such thing".utf8)),
            ("up", Array("..".utf8)),
            ("absolute", Array("/etc/passwd".utf8)), ("escape", Array("../../../../../tmp".utf8)),
            ("itself", Array("itself".utf8)), ("to a directory", Array("../names".utf8)),
        ]
        for count in [58, 59, 60, 61, 150, 160, 300, 1000] {
            // In components, which may be limited, too.
            let target = (1...count).map { $0 % 40 == 0 && $0 < count ? UInt8(0x2F) : 0x74 }
            targets.append(("long\(count)", target))
        }
        if abilities.names == .bytes { targets.append(("bytes", [0xFF, 0x0A, 0x5C, 0x80])) }
        for (name, target) in targets {
            guard named(target, { symlinkat($0, directory.descriptor, name) }) == 0 else {
                throw Failure("symlink", Array(name.utf8))
            }
        }
    }

    private func special(_ directory: Directory) throws {
        let devices: [(String, mode_t, UInt32, UInt32)] = [
            ("fifo", S_IFIFO | 0o620, 0, 0), ("socket", S_IFSOCK | 0o755, 0, 0),
            ("null", S_IFCHR | 0o666, 1, 3), ("disk", S_IFBLK | 0o660, 8, 17),
            ("major", S_IFCHR | 0o600, 300, 5), ("minor", S_IFBLK | 0o600, 259, 70_000),
        ]
        for (name, mode, major, minor) in devices {
            guard mknodat(directory.descriptor, name, mode, witness_makedev(major, minor)) == 0 else {
                throw Failure("mknod", Array(name.utf8))
            }
        }
    }

    private func attributes(_ directory: Directory) throws {
        var generator = Generator("attributes")
        let small = try write("small", count: 100, in: directory)
        try set("user.small", Array("value".utf8), on: small, in: directory)
        try set("user.empty", [], on: small, in: directory)
        try set("user.binary", [0, 10, 255, 0], on: small, in: directory)
        try set("trusted.overlay.test", Array("trusted".utf8), on: small, in: directory)
        // vfs_cap_data, revision 2: CAP_NET_RAW, permitted and effective.
        let capability: [UInt8] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        try set("security.capability", capability, on: small, in: directory)
        let large = try write("large", count: 10, in: directory)
        for count in [200, 1500, 3500, 20_000, 65_536] where count <= abilities.attributeBytes {
            let file = try write("large\(count)", count: 10, in: directory)
            try set("user.large", generator.bytes(count), on: file, in: directory)
        }
        for index in 0..<(abilities.attributeBytes < 3500 ? 8 : 40) {
            try set("user.number\(index)", generator.bytes(index), on: large, in: directory)
        }
        let inner = try directory.make("directory")
        try set("user.directory", Array("of a directory".utf8), on: Array("directory".utf8), in: directory)
        // The same value on several files: ext4 shares the block.
        for index in 0..<3 {
            let file = try write("shared\(index)", count: 1, in: inner)
            try set("user.shared", [UInt8](repeating: 0x73, count: 600), on: file, in: inner)
        }
    }

    private func accessLists(_ directory: Directory) throws {
        // struct posix_acl_xattr: version 2; then tag, permissions, id.
        func list(_ entries: [(UInt16, UInt16, UInt32)]) -> [UInt8] {
            entries.reduce([2, 0, 0, 0]) { bytes, entry in
                let fields = [UInt32(entry.0) | UInt32(entry.1) << 16, entry.2]
                return bytes
                    + fields.flatMap { field in [0, 8, 16, 24].map { UInt8(truncatingIfNeeded: field >> $0) }
                    }
            }
        }
        let access = list([
            (1, 6, .max), (2, 7, 1000), (2, 4, 70_000), (4, 4, .max), (8, 5, 2000), (16, 7, .max),
            (32, 0, .max),
        ])
        let name = try write("file", count: 12, in: directory)
        try set("system.posix_acl_access", access, on: name, in: directory)
        _ = try directory.make("directory")
        try set("system.posix_acl_default", access, on: Array("directory".utf8), in: directory)
        try set("system.posix_acl_access", access, on: Array("directory".utf8), in: directory)
        let inner = try Directory(Array("directory".utf8), in: directory)
        try write("inherits", count: 1, in: inner)
    }

    private func owners(_ directory: Directory) throws {
        let modes: [mode_t] = [0o000, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0o640]
        for mode in modes {
            let name = try write("mode\(String(mode, radix: 8))", count: 4, in: directory)
            guard named(name, { fchmodat(directory.descriptor, $0, mode, 0) }) == 0 else {
                throw Failure("chmod", name)
            }
        }
        for (owner, group) in [(1, 2), (65_534, 65_535), (65_536, 70_000), (4_000_000_000, 3_000_000_000)] {
            let name = try write("owner\(owner)", count: 4, in: directory)
            guard named(name, { fchownat(directory.descriptor, $0, uid_t(owner), gid_t(group), 0) }) == 0
            else {
                throw Failure("chown", name)
            }
        }
        _ = try directory.make("sticky")
        _ = try directory.make("setgid")
        guard fchmodat(directory.descriptor, "sticky", 0o1777, 0) == 0,
            fchmodat(directory.descriptor, "setgid", 0o2770, 0) == 0
        else { throw Failure("chmod", []) }
    }

    private func streams(_ directory: Directory) throws {
        var generator = Generator("streams")
        let name = try write("file", count: 5000, in: directory)
        try set("user.small", Array("resident".utf8), on: name, in: directory)
        try set("user.Zone.Identifier", Array("[ZoneTransfer]\r\nZoneId=3\r\n".utf8), on: name, in: directory)
        try set("user.large", generator.bytes(60_000), on: name, in: directory)
        _ = try directory.make("directory")
        try set("user.of a directory", generator.bytes(2000), on: Array("directory".utf8), in: directory)
        let empty = try write("empty", count: 0, in: directory)
        try set("user.only", generator.bytes(9000), on: empty, in: directory)
        // More attributes than an entry of the file table has room for.
        let many = try write("many", count: 700, in: directory)
        for index in 0..<40 {
            try set("user.stream\(index)", generator.bytes(index * 37), on: many, in: directory)
        }
        // A reparse point as of a file that Windows itself compressed: tag, length, and what that filter keeps there.
        let system = try write("system", count: 3000, in: directory)
        let point: [UInt8] = [0x17, 0, 0, 0x80, 16, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
        try set("system.ntfs_reparse_data", point, on: system, in: directory)
        // A new file in a directory that is marked compressed (0x800) is compressed.
        let compressed = try directory.make("compressed")
        try set("system.ntfs_attrib", [0x10, 8, 0, 0], on: Array("compressed".utf8), in: directory)
        let file = try compressed.create(Array("text".utf8))
        defer { close(file) }
        let lines = (0..<8000).map { "line \($0) of a text that compresses well\n" }
        for start in stride(from: 0, to: 8000, by: 400) {
            try append(Array(lines[start..<start + 400].joined().utf8), to: file)
        }
    }

    private func times(_ directory: Directory) throws {
        let moments: [(String, Int, Int)] = [
            ("epoch", 0, 0), ("before", -1, 999_999_999), ("long before", -2_000_000_000, 1),
            ("nanoseconds", 1_600_000_001, 123_456_789), ("even", 1_500_000_000, 0), ("1980", 315_532_802, 0),
            ("last of 32 bits", 2_147_483_647, 1), ("after 2038", 2_147_483_648, 500),
            ("2100", 4_102_444_800, 7),
            ("2107", 4_354_819_196, 0), ("after 2106", 4_294_967_297, 3), ("2400", 13_569_465_600, 42),
        ]
        for (name, seconds, fraction) in moments
        where (abilities.earliest...abilities.latest).contains(seconds) {
            try write(name, count: 9, in: directory)
            _ = try directory.make(name + " directory")
            for name in [name, name + " directory"] {
                let time = timespec(tv_sec: seconds, tv_nsec: fraction)
                let pair = [timespec(tv_sec: seconds, tv_nsec: fraction / 2), time]
                guard utimensat(directory.descriptor, name, pair, 0) == 0 else {
                    throw Failure("utimensat", Array(name.utf8))
                }
            }
        }
    }

    // MARK: Parts

    @discardableResult
    private func write(_ name: String, count: Int, in directory: Directory) throws -> [UInt8] {
        var generator = Generator(name)
        let file = try directory.create(Array(name.utf8), flags: O_EXCL)
        defer { close(file) }
        try append(generator.bytes(count), to: file)
        return Array(name.utf8)
    }

    private func append(_ bytes: [UInt8], to file: Int32) throws {
        guard Glibc.write(file, bytes, bytes.count) == bytes.count else { throw Failure("write", []) }
    }

    private func put(_ bytes: [UInt8], at place: Int, of file: Int32) throws {
        guard pwrite(file, bytes, bytes.count, off_t(place)) == bytes.count else {
            throw Failure("write", [])
        }
    }

    private func set(_ name: String, _ value: [UInt8], on file: [UInt8], in directory: Directory) throws {
        guard named(directory.path(file), { lsetxattr($0, name, value, value.count, 0) }) == 0 else {
            throw Failure("setxattr \(name) of", file)
        }
    }
}
