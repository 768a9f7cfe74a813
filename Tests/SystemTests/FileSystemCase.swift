import Foundation
import TestSupport

/// A file system that a test makes, fills, uses and reads by its own driver.
struct FileSystemCase: Sendable, CustomStringConvertible {
    enum Driver: Sendable {
        /// This machine's kernel, by a loop device.
        case kernel(mountOptions: String)
        /// A program of its own on a file; mount options.
        case ntfs3g(options: String)
        /// Debian's kernel in the virtual machine: type and mount options.
        case guest(type: String, options: String)
    }

    let name: String
    /// Program and arguments; the image's path is added.
    let make: [String]
    let size: UInt64
    let driver: Driver
    /// As the witness takes them.
    let abilities: String
    /// Only then is what is on the disk what its driver would show.
    var freezes = false
    /// Whether the writer must do what leaves nothing half done.
    var isGentle = false
    /// Metadata that this file system has; see ``TreeListing``.
    var fields = TreeListing.Fields.posix
    /// What is not laid out as extents, and why.
    var unrestorable: [String: String] = [:]
    /// Says that a file system has no error; the image's path is added. Empty: there is no such program.
    var check: [String] = []

    var description: String { name }

    private static let posix =
        "names=bytes,symbolic-links,hard-links,devices,owners,access-lists,sparse=8589934592,"
        + "earliest=-2100000000,latest=14000000000"
    private static let e2fsck = ["e2fsck", "-fn"]

    static let ext2 = FileSystemCase(
        name: "ext2", make: ["mkfs.ext2", "-q", "-b", "1024", "-I", "128", "-N", "40000"], size: 192 << 20,
        driver: .kernel(mountOptions: "acl,user_xattr"), abilities: posix + ",entries=3000,attributes=200",
        freezes: true, check: e2fsck)
    static let ext3 = FileSystemCase(
        name: "ext3", make: ["mkfs.ext3", "-q", "-b", "2048", "-N", "40000"], size: 192 << 20,
        driver: .kernel(mountOptions: "acl,user_xattr"), abilities: posix + ",entries=1000,attributes=1500",
        check: e2fsck)
    static let ext4 = FileSystemCase(
        name: "ext4",
        make: ["mkfs.ext4", "-q", "-b", "4096", "-O", "inline_data,64bit,metadata_csum", "-N", "40000"],
        size: 256 << 20, driver: .kernel(mountOptions: "acl,user_xattr"),
        abilities: posix + ",unwritten,entries=3000,attributes=3500", check: e2fsck)
    static let ext4Clusters = FileSystemCase(
        name: "ext4 with clusters and inodes for attributes",
        make: ["mkfs.ext4", "-q", "-b", "4096", "-O", "ea_inode,bigalloc"], size: 256 << 20,
        driver: .kernel(mountOptions: "acl,user_xattr"),
        abilities: posix + ",unwritten,entries=2000,attributes=65536", check: e2fsck)
    static let xfs = FileSystemCase(
        name: "XFS", make: ["mkfs.xfs", "-q"], size: 320 << 20, driver: .kernel(mountOptions: "nouuid"),
        abilities: posix + ",unwritten,entries=6000,attributes=65536",
        check: ["xfs_repair", "-n"])
    static let xfsBlocks = FileSystemCase(
        name: "XFS with blocks of 1 KiB and directory blocks of 8 KiB",
        make: ["mkfs.xfs", "-q", "-b", "size=1024", "-n", "size=8192", "-m", "rmapbt=0,reflink=0"],
        size: 320 << 20, driver: .kernel(mountOptions: "nouuid"),
        abilities: posix + ",unwritten,entries=2000,attributes=65536", freezes: true,
        check: ["xfs_repair", "-n"])
    static let ntfs = FileSystemCase(
        name: "NTFS", make: ["mkntfs", "-q", "-F", "-f"], size: 192 << 20,
        driver: .ntfs3g(options: "acl,compression,streams_interface=xattr"),
        abilities: "names=characters,symbolic-links,hard-links,streams,sparse=100000000,"
            // ntfs-3g shows earlier times with negative nanoseconds.
            + "earliest=0,latest=14000000000,entries=2000",
        isGentle: true, fields: [.windows, .attributes],
        unrestorable: [
            "streams/compressed/text": "compressed", "streams/system": "compressed by the system (WOF)",
        ])

    /// Those that this machine writes itself.
    static let local = [ext2, ext3, ext4, ext4Clusters, xfs, xfsBlocks, ntfs]

    /// Makes the file system in a new file.
    func make(at path: String) throws {
        try makeSparseFile(path, size: size)
        try LoopMount.succeed(make[0], Array(make.dropFirst()) + [path])
    }

    /// Mounts what is in a file.
    func mount(_ file: String, at place: String, readOnly: Bool = false) throws {
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        switch driver {
        case .kernel(let options):
            try LoopMount.succeed(
                "mount", ["-o", "loop,noatime,\(options)\(readOnly ? ",ro" : "")", file, place])
        case .ntfs3g(let options):
            try LoopMount.succeed(
                "ntfs-3g", ["-o", "noatime,\(options)\(readOnly ? ",ro" : "")", file, place])
        case .guest: throw TestFailure("this machine has no driver for \(name)")
        }
    }

    /// What is wrong with the file system in a file; nil: nothing, or nobody can tell.
    func complaint(about file: String) throws -> String? {
        guard let program = check.first else { return nil }
        let result = try runProgram(program, Array(check.dropFirst()) + [file])
        return result.isSuccess ? nil : "\(result)"
    }
}

/// Those that Debian's kernel writes in the virtual machine.
extension FileSystemCase {
    private static let fatOptions = "utf8,iocharset=iso8859-1,tz=UTC,noatime"
    private static let windows = "names=windows,earliest=315532800,latest=4354819198,entries=300,depth=20"
    private static let fatCheck = ["fsck.fat", "-n"]

    /// - Parameter sectors: of a cluster.
    private static func fat(_ bits: Int, size: UInt64, sectors: Int) -> FileSystemCase {
        FileSystemCase(
            name: "FAT\(bits)", make: ["mkfs.fat", "-F", "\(bits)", "-s", "\(sectors)"], size: size << 20,
            driver: .guest(type: "vfat", options: fatOptions), abilities: windows, isGentle: true,
            fields: .fat,
            check: fatCheck)
    }

    static let fat12 = fat(12, size: 64, sectors: 64)
    static let fat16 = fat(16, size: 128, sectors: 8)
    static let fat32 = fat(32, size: 96, sectors: 1)
    static let exfat = FileSystemCase(
        name: "exFAT", make: ["mkfs.exfat"], size: 96 << 20,
        driver: .guest(type: "exfat", options: "iocharset=utf8,time_offset=0,noatime"), abilities: windows,
        isGentle: true, fields: .fat, check: ["fsck.exfat", "-n"])
    static let hfsPlus = FileSystemCase(
        name: "HFS+", make: [], size: 96 << 20,
        // As the names are on the disk: decomposed.
        driver: .guest(type: "hfsplus", options: "nls=utf8,nodecompose,noatime"),
        abilities: "names=characters,symbolic-links,hard-links,devices,owners,attributes=3500,"
            + "earliest=0,latest=2212122495,entries=500",
        isGentle: true, fields: .posix)
    /// Which this machine's kernel may no longer know.
    static let xfsV4 = FileSystemCase(
        name: "XFS v4", make: ["mkfs.xfs", "-q", "-m", "crc=0", "-n", "ftype=0"], size: 320 << 20,
        driver: .guest(type: "xfs", options: "noatime"),
        abilities: posix + ",unwritten,entries=1000,attributes=65536",
        check: ["xfs_repair", "-n"])
    static let iso = FileSystemCase(
        name: "ISO 9660", make: [], size: 64 << 20, driver: .guest(type: "iso9660", options: "ro"),
        abilities: "names=bytes,symbolic-links,hard-links,devices,owners,earliest=0,latest=2147483647,"
            + "entries=500,depth=40,longest-name=250",
        // Linux shows each name of a file as a file of its own.
        fields: [.owner, .modified])
    static let isoJoliet = FileSystemCase(
        name: "ISO 9660 with Joliet", make: [], size: 64 << 20,
        driver: .guest(type: "iso9660", options: "ro,norock,iocharset=utf8"),
        abilities: "names=windows,entries=300,depth=20,longest-name=64", fields: .fat)
}
