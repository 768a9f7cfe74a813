import Blocks
import Foundation
import Glibc
import TestSupport
import Testing

@testable import TableOfContents

/// Trees that the kernel made, compared with what the kernel says of the same image.
@Suite(.enabled(if: MountedImage.isPossible, Comment(rawValue: MountedImage.reason)))
struct XFSLoopTests {
    /// Every form of directory, data fork and attribute fork, and what else is odd.
    static let tree = #"""
        mkdir empty short; : > short/a; : > short/bb; ln short/bb short/hard-link
        mkdir block leaf node deep
        (cd block; for i in $(seq 30); do : > file-with-some-name-$i; done)
        (cd leaf; for i in $(seq 400); do : > file-with-some-name-$i; done; rm file-with-some-name-1??)
        mkdir huge; (cd huge; seq -f 'file-with-a-name-that-takes-some-room-%.0f' NUMBER | xargs touch)
        (cd huge; seq -f 'file-with-a-name-that-takes-some-room-%.0f' 1000 3 2000 | xargs rm)
        d=deep; for i in $(seq 60); do d=$d/level-$i; done; mkdir -p $d; echo bottom > $d/file
        long=$(printf 'n%.0s' $(seq 255)); echo long > $long
        mkdir odd; printf x > odd/$'latin-\xe9\xff'; printf x > odd/$'new\nline'; printf x > odd/$'\x01\x7f\\'
        printf x > 'odd/ leading and trailing '; printf x > odd/-; printf x > odd/日本語
        printf 'tiny' > tiny; : > nothing; head -c 1048579 /dev/urandom > random
        truncate -s 3G sparse; printf data | dd of=sparse bs=1 seek=2147483648 conv=notrunc status=none
        printf data | dd of=sparse bs=1 seek=70000 conv=notrunc status=none
        xfs_io -f -c 'falloc 0 1m' -c 'pwrite -q 300k 10k' unwritten
        xfs_io -f -c 'falloc -k 0 4m' -c 'pwrite -q 0 5000' beyond-the-end
        ln -s target link; ln -s $(printf 'long-target/%.0s' $(seq 80)) long-link
        ln -s "$(printf 't%.0s' $(seq 1023))" longest-link; ln -s $'bytes-\xff' odd/odd-link
        mknod char c 5 1; mknod block-device b 8 17; mknod big c 300 70000; mkfifo fifo
        touch -h -d @1.123456789 link; touch -d '1969-12-31 23:59:58.5 UTC' before-1970
        touch -d '2037-05-05 05:05:05.987654321 UTC' later; FUTURE
        chmod 7751 tiny; chown 123456:654321 tiny; chmod 1777 empty
        setfattr -n user.small -v value tiny; setfattr -n user.empty tiny
        setfattr -n trusted.one -v 1 tiny; setfattr -n security.two -v 2 tiny; setfattr -h -n trusted.l -v v link
        setfattr -n user.binary -v 0x00ff00 short
        setfattr -n user.large -v "$(head -c 45000 /dev/zero | tr '\0' x)" random
        setfattr -n user.kilo -v "$(head -c 3000 /dev/zero | tr '\0' y)" nothing
        for i in $(seq 200); do setfattr -n user.attribute-$i -v "value number $i" short/a; done
        for i in $(seq 12); do setfattr -n user.remote-$i -v "$(head -c 2000 /dev/zero | tr '\0' $((i % 10)))" leaf; done
        setfacl -m u:1000:rw,g:100:r,m::rwx random; setfacl -m u:7:r -d -m u:1000:rwx,g:5:x empty
        for i in $(seq 0 2 3000); do echo "pwrite -q -S $((i % 255)) $((i * 4096)) 4096"; done > /tmp/commands.$$
        xfs_io -f fragmented < /tmp/commands.$$ > /dev/null; rm /tmp/commands.$$
        sync; rm block/*-2; REFLINK
        """#

    struct Variant: CustomTestStringConvertible, Sendable {
        var options: [String]
        var directory = 6_000
        var hasReflink = true
        var hasBigTime = true

        var testDescription: String { options.joined(separator: " ") }
    }

    static let variants: [Variant] = [
        Variant(options: [], directory: 100_000),
        Variant(
            options: ["-b", "size=1024", "-m", "bigtime=0,rmapbt=1", "-i", "size=512"], hasBigTime: false),
        Variant(options: ["-b", "size=1024", "-n", "size=64k", "-m", "reflink=0"], hasReflink: false),
        Variant(options: ["-n", "size=64k", "-i", "nrext64=1", "-d", "agcount=7"]),
        Variant(options: ["-s", "size=4096", "-n", "size=16k", "-i", "size=2048,sparse=0"]),
        Variant(options: ["-b", "size=1024", "-l", "size=64m,su=32k"]),
        Variant(options: ["-n", "size=8k", "-i", "nrext64=1", "-m", "inobtcount=0,bigtime=1,finobt=0"]),
    ]

    @Test(arguments: variants)
    func readsWhatTheKernelReads(_ variant: Variant) throws {
        let scratch = try ScratchDirectory()
        let image = scratch("image")
        try shell("truncate -s 2G \(image); mkfs.xfs -q \(variant.options.joined(separator: " ")) \(image)")
        let made = try MountedImage(image, at: scratch("mnt"))
        let script = Self.tree
            .replacingOccurrences(of: "NUMBER", with: "\(variant.directory)")
            .replacingOccurrences(
                of: "FUTURE", with: variant.hasBigTime ? "touch -d '2450-01-01 UTC' future" : ":"
            )
            .replacingOccurrences(
                of: "REFLINK",
                with: variant.hasReflink
                    ? "cp --reflink=always random shared; xfs_io -c 'pwrite -q 64k 4k' shared" : ":")
        try shell(script, directory: made.mountPoint, seconds: 300)
        try made.unmount()
        let again = try MountedImage(image, at: scratch("mnt"), options: "loop,ro")
        let store = try ImageStore(image)
        let range = ByteRange(offset: 0, count: store.size)
        let reader = try #require(try XFSReader(store, range, index: 0))
        let found = try CollectedRecords(reader)
        try expectEqual(found, store, again.mountPoint)
        let fragmented = try #require(found.paths[Array("/fragmented".utf8)])
        #expect(found.extents[fragmented]?.count ?? 0 > 1000)
        let unwritten = try #require(found.paths[Array("/unwritten".utf8)])
        let written = (found.extents[unwritten] ?? []).reduce(0) { $0 + $1.count }
        #expect(written >= 10 << 10 && written < 64 << 10)
        #expect(found.description?.knowsUse == true)
        try again.unmount()
        try expectUseIsSound(found, image)
    }

    /// Node by node, byte by byte.
    private func expectEqual(_ found: CollectedRecords, _ store: any BlockStore, _ mountPoint: String) throws
    {
        #expect(found.problems == [])
        #expect(found.isEnded && found.longestBatch <= TocLimits.extentsPerRecord)
        let kernel = try KernelEntry.tree(mountPoint)
        // stat(2) does not tell when a file was made.
        let births = try shell(
            "find . -print0 | TZ=UTC xargs -0 stat --printf '%i %W %w\\n'", directory: mountPoint
        ).split(separator: "\n")
        for line in births {
            // Inode, seconds, and a date with nanoseconds behind its point.
            let words = line.split(separator: " ")
            let number = try #require(words.first.flatMap { UInt64($0) })
            let nanoseconds = try #require(line.split(separator: ".").last.flatMap { UInt32($0.prefix(9)) })
            let created = found.nodes[number]?.created
            #expect(
                words.count == 5 && created.map { "\($0.seconds)" } == words.dropFirst().first.map { "\($0)" }
            )
            #expect(created?.nanoseconds == nanoseconds)
        }
        #expect(births.count == kernel.count)
        let paths = found.paths
        #expect(paths.count == kernel.count)
        #expect(Set(found.nodes.keys) == Set(kernel.values.map { UInt64($0.status.st_ino) }))
        for (path, entry) in kernel {
            let name = String(decoding: path, as: UTF8.self)
            guard let number = paths[path], let node = found.nodes[number] else {
                Issue.record("\(name) is missing")
                continue
            }
            let status = entry.status
            #expect(number == UInt64(status.st_ino), "\(name)")
            #expect(node.permissions.map { UInt32($0) } == status.st_mode & 0o7777, "\(name)")
            #expect(node.owner == status.st_uid && node.group == status.st_gid, "\(name)")
            #expect(node.links == UInt32(status.st_nlink), "\(name)")
            #expect(node.size == UInt64(status.st_size) || node.kind != .regular, "\(name)")
            #expect(node.modified == FileTime(status.st_mtim), "\(name)")
            #expect(node.accessed == FileTime(status.st_atim), "\(name)")
            #expect(node.changed == FileTime(status.st_ctim), "\(name)")
            #expect(node.target == entry.target, "\(name)")
            #expect(found.attributes[number] ?? [:] == entry.attributes, "\(name)")
            let isDevice = [S_IFCHR, S_IFBLK].contains(status.st_mode & S_IFMT)
            #expect(node.device == (isDevice ? entry.device : nil), "\(name)")
            guard status.st_mode & S_IFMT == S_IFREG else { continue }
            #expect(node.kind == .regular)
            if status.st_size > 1 << 30 {
                // Mostly holes: what is no hole was read by the kernel, too.
                #expect(found.extents[number]?.count == 2, "\(name)")
                continue
            }
            let full = Array(mountPoint.utf8) + path
            let isEqual =
                try found.content(number, from: store)
                == KernelEntry.content(full, count: Int(status.st_size))
            #expect(isEqual, "\(name)")
        }
    }

    /// With random bytes in all that is said to be free, xfs_repair has nothing to complain of and files are equal.
    private func expectUseIsSound(_ found: CollectedRecords, _ image: String) throws {
        let size = try ImageStore(image).size
        var cursor: UInt64 = 0
        var free: UInt64 = 0
        let noise = seededBytes(1 << 20, seed: 7)
        let descriptor = open(image, O_RDWR | O_CLOEXEC)
        defer { close(descriptor) }
        for range in found.used + [ByteRange(offset: size, count: 0)] {
            #expect(range.offset >= cursor)
            free += range.offset - cursor
            while cursor < range.offset {
                let count = min(Int(range.offset - cursor), noise.count)
                #expect(pwrite(descriptor, noise, count, off_t(cursor)) == count)
                cursor += UInt64(count)
            }
            cursor = range.end
        }
        #expect(free > size / 3)
        try shell("xfs_repair -n \(image) 2>&1")
        let store = try ImageStore(image)
        let reader = try #require(try XFSReader(store, ByteRange(offset: 0, count: size), index: 0))
        let again = try CollectedRecords(reader)
        #expect(again.problems == [] && again.nodes == found.nodes && again.extents == found.extents)
        #expect(again.used == found.used)
    }
}

extension FileTime {
    init(_ time: timespec) {
        self.init(seconds: Int64(time.tv_sec), nanoseconds: UInt32(time.tv_nsec))
    }
}
