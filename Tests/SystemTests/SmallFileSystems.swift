import Blocks
import Foundation
import TestSupport

/// Small volumes of every kind, made by the file systems' own tools, and where their metadata lie.
struct SmallFileSystems: Sendable {
    struct Image: Sendable {
        let name: String
        let bytes: [UInt8]
        /// Places of the sectors that hold something, and not a file's content: where damage matters.
        let sectors: [Int]
    }

    let images: [Image]

    /// Name, size in MiB, and what makes it, run by bash.
    private static let recipes: [(name: String, mebibytes: UInt64, script: String)] = [
        ("ext2", 4, "mkfs.ext2 -b 1024 $EXT $IMAGE"), ("ext3", 6, "mkfs.ext3 -b 1024 $EXT $IMAGE"),
        ("ext4", 8, "mkfs.ext4 -b 1024 -O ^metadata_csum,inline_data $EXT $IMAGE"),
        ("ext4 with checksums", 8, "mkfs.ext4 -b 4096 -O metadata_csum,64bit $EXT $IMAGE"),
        ("FAT12", 2, "mkfs.fat -F 12 -i 10a7c5a4 $IMAGE; mcopy -Q -s -i $IMAGE $TREE ::/"),
        ("FAT16", 12, "mkfs.fat -F 16 -s 2 -i 10a7c5a4 $IMAGE; mcopy -Q -s -i $IMAGE $TREE ::/"),
        ("FAT32", 36, "mkfs.fat -F 32 -s 1 -i 10a7c5a4 $IMAGE; mcopy -Q -s -i $IMAGE $TREE ::/"),
        // Only its driver makes files.
        (
            "exFAT", 4,
            """
            mkfs.exfat -c 4096 -L small $IMAGE
            if [ $DRIVERS = yes ]; then
                mkdir $IMAGE.mount; device=$(losetup --show -f $IMAGE)
                mount.exfat-fuse $device $IMAGE.mount; cp -r $TREE $IMAGE.mount/
                umount $IMAGE.mount; losetup -d $device
            fi
            """
        ),
        (
            "NTFS", 4,
            """
            mkntfs -q -F -f -c 1024 -s 512 $IMAGE
            for i in $(seq 0 11); do ntfscp -q -f $IMAGE $TREE/file$i file$i; done
            ntfscp -q -f -N stream $IMAGE $TREE/file5 file4
            """
        ),
        ("ISO 9660", 1, "xorriso -as mkisofs -quiet -R -J -o $IMAGE $TREE"),
        ("HFS+", 1, "xorriso -as mkisofs -quiet -hfsplus -o $IMAGE $TREE"),
        ("XFS v4", 16, "mkfs.xfs --unsupported -q -m crc=0,uuid=$ID -p $PROTOTYPE $IMAGE"),
        ("XFS v5", 16, "mkfs.xfs --unsupported -q -m uuid=$ID -p $PROTOTYPE $IMAGE"),
        (
            "MBR", 8,
            """
            sfdisk -q --no-reread --no-tell-kernel $IMAGE <<< 'label: dos
            start=2048, size=4096, type=83
            start=6144, size=10240, type=5
            start=8192, size=2048, type=6
            start=12288, size=4096, type=83'
            mkfs.ext2 -b 1024 $EXT -E offset=1048576 $IMAGE 2M
            mkfs.fat -F 12 --offset 8192 $IMAGE 1024
            """
        ),
        (
            "GPT", 8,
            """
            sfdisk -q --no-reread --no-tell-kernel $IMAGE <<< 'label: gpt
            start=2048, size=4096
            start=6144, size=2048'
            mkfs.ext4 -b 1024 $EXT -E offset=1048576 $IMAGE 2M
            mkfs.fat -F 12 --offset 6144 $IMAGE 1024
            """
        ),
    ]

    init() throws {
        let scratch = try ScratchDirectory()
        let data = try Self.fill(scratch("tree"))
        try Self.prototype(scratch("tree")).write(
            toFile: scratch("prototype"), atomically: true, encoding: .utf8)
        let identifier = "10a7c5a4-2b0e-4b6c-8c53-0e1d2a3b4c5d"
        // Times and identifiers are the same every time, as far as the tools let themselves be told.
        var environment = [
            "SOURCE_DATE_EPOCH": "1767225600", "E2FSPROGS_FAKE_TIME": "1767225600", "TZ": "UTC",
            "MTOOLS_SKIP_CHECK": "1", "TREE": scratch("tree"), "PROTOTYPE": scratch("prototype"),
            "ID": identifier, "DRIVERS": Machine.canMount && Tier.isHost ? "yes" : "no",
            "EXT": "-q -N 200 -U \(identifier) -E hash_seed=\(identifier) -d \(scratch("tree"))",
            "PATH": ProcessInfo.processInfo.environment["PATH"] ?? "/usr/sbin:/usr/bin",
        ]
        images = try Self.recipes.enumerated().map { index, recipe in
            let path = scratch("image\(index)")
            environment["IMAGE"] = path
            try makeSparseFile(path, size: recipe.mebibytes << 20)
            let made = try runProgram("bash", ["-euc", recipe.script], environment: environment)
            guard made.isSuccess else { throw TestFailure("\(recipe.name): \(made)") }
            var bytes = try contents(path)
            if recipe.name == "HFS+" { bytes = try Self.hfsPlus(in: bytes) }
            return Image(name: recipe.name, bytes: bytes, sectors: Self.sectors(bytes, leavingOut: data))
        }
    }

    private static func sectors(_ bytes: [UInt8], leavingOut data: Set<[UInt8]>) -> [Int] {
        let zeros = [UInt8](repeating: 0, count: 512)
        return stride(from: 0, through: bytes.count - 512, by: 512).filter { place in
            let sector = Array(bytes[place..<place + 512])
            return sector != zeros && !data.contains(sector)
        }
    }

    /// - Returns: the files' content, sector by sector.
    private static func fill(_ tree: String) throws -> Set<[UInt8]> {
        let files = FileManager.default
        try files.createDirectory(
            atPath: tree + "/directory/deeper/deepest", withIntermediateDirectories: true)
        try files.createDirectory(atPath: tree + "/many", withIntermediateDirectories: true)
        var sectors: Set<[UInt8]> = []
        func write(_ path: String, _ count: Int) throws {
            let bytes = seededBytes(count, seed: 7)
            try Data(bytes).write(to: URL(fileURLWithPath: "\(tree)/\(path)"))
            for start in stride(from: 0, to: count, by: 512) {
                let part = Array(bytes[start..<min(start + 512, count)])
                sectors.insert(part + [UInt8](repeating: 0, count: 512 - part.count))
            }
        }
        // With blocks of 1 KiB the largest need an indirect block.
        for (index, count) in [0, 1, 50, 150, 600, 1024, 1025, 3000, 5000, 9000, 14_000, 20_000].enumerated()
        {
            try write("file\(index)", count)
        }
        for index in 0..<60 { try write("many/a rather long name of entry \(index)", 1) }
        try write("directory/deeper/deepest/last", 100)
        return sectors
    }

    /// The tree as mkfs.xfs takes it.
    private static func prototype(_ tree: String) -> String {
        var lines = ["/", "0 0", "d--755 0 0"]
        for index in 0..<12 { lines.append("file\(index) ---644 0 0 \(tree)/file\(index)") }
        lines += ["link l--777 0 0 file3", "fifo p--644 0 0", "null c--666 0 0 1 3", "many d--755 0 0"]
        for index in 0..<60 { lines.append("entry-with-a-long-name-\(index) ---600 5 6 \(tree)/file1") }
        lines += ["$", "deeper d--755 0 0", "last ---644 0 0 \(tree)/file2", "$", "$"]
        return lines.joined(separator: "\n") + "\n"
    }

    /// The HFS+ in an image that is ISO 9660 as well: from its boot blocks to behind its second header.
    private static func hfsPlus(in bytes: [UInt8]) throws -> [UInt8] {
        for place in stride(from: 1024, to: bytes.count - 512, by: 512)
        where bytes[place..<place + 4].elementsEqual([0x48, 0x2B, 0, 4]) {
            func word(_ offset: Int) -> Int {
                bytes[place + offset..<place + offset + 4].reduce(0) { $0 << 8 | Int($1) }
            }
            let count = word(40) * word(44)
            guard place - 1024 + count <= bytes.count else { continue }
            return Array(bytes[(place - 1024)...].prefix(count))
        }
        throw TestFailure("xorriso has made no HFS+")
    }
}

/// One of the images, damaged as a seed tells: a volume of its own.
final class MutatedVolume: BlockStore, CustomStringConvertible {
    let image: SmallFileSystems.Image
    let seed: UInt64
    private let bytes: [UInt8]

    var description: String { "\(image.name), seed \(seed)" }
    var size: UInt64 { UInt64(bytes.count) }
    var capabilities: StoreCapabilities { [] }

    init(_ images: SmallFileSystems, seed: UInt64) {
        image = images.images[Int(seed % UInt64(images.images.count))]
        self.seed = seed
        var generator = SeededGenerator(seed: seed)
        var bytes = image.bytes
        // Few changes, so that much of the rest is still believed.
        for _ in 0..<(1 << Int.random(in: 0...5, using: &generator)) {
            Self.change(&bytes, image.sectors, &generator)
        }
        if Int.random(in: 0..<20, using: &generator) == 0 {
            bytes.removeLast(Int.random(in: 0..<bytes.count, using: &generator))
        }
        self.bytes = bytes
    }

    /// As it is.
    init(_ image: SmallFileSystems.Image) {
        self.image = image
        seed = 0
        bytes = image.bytes
    }

    private static let extremes: [UInt64] = [
        0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF, .max,
        .max - 1,
        1 << 63, (1 << 63) - 1,
    ]

    private static func change(
        _ bytes: inout [UInt8], _ sectors: [Int], _ generator: inout SeededGenerator
    ) {
        func random(_ below: Int) -> Int { Int.random(in: 0..<below, using: &generator) }
        func put(_ new: some Collection<UInt8>, at place: Int) {
            let new = new.prefix(bytes.count - place)
            bytes.replaceSubrange(place..<place + new.count, with: new)
        }
        // The first sectors have the superblock, or lead to it.
        let sector = sectors[random(random(4) == 0 ? min(12, sectors.count) : sectors.count)]
        var place = sector + random(512)
        // What is not zero says more, most often.
        for _ in 0..<8 where bytes[place] == 0 { place = sector + random(512) }
        switch random(8) {
        case 0, 1: bytes[place] ^= 1 << UInt8(random(8))
        case 2: bytes[place] = UInt8(random(256))
        case 3, 4:
            let width = 1 << (random(3) + 1)
            let number = extremes[random(extremes.count)]
            let little = withUnsafeBytes(of: number.littleEndian) { Array($0.prefix(width)) }
            put(random(2) == 0 ? little : little.reversed(), at: place & ~(width - 1))
        case 5: put([UInt8](repeating: 0, count: [16, 64, 512][random(3)]), at: sector)
        case 6:
            // Something else of this file system in its place: what points to it finds another thing.
            let other = sectors[random(sectors.count)]
            let count = [16, 128, 512, 1024, 4096][random(5)]
            let (here, there) = (Array(bytes[sector...].prefix(count)), Array(bytes[other...].prefix(count)))
            put(there, at: sector)
            if random(2) == 0 { put(here, at: other) }
        default: put((0..<16).map { _ in UInt8(random(256)) }, at: place)
        }
    }

    /// Keeps it as DIRECTORY/SEED.img.
    func write(to directory: String) throws {
        try Data(bytes).write(to: URL(fileURLWithPath: "\(directory)/\(seed).img"))
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        buffer.copyBytes(from: bytes[Int(offset)..<Int(offset) + buffer.count])
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func flush() throws(StoreError) {}
}
