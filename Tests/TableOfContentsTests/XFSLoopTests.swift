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
        sync -f .; rm block/*-2; REFLINK
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
        try found.expectEqual(store, again.mountPoint)
        let fragmented = try #require(found.paths[Array("/fragmented".utf8)])
        #expect(found.extents[fragmented]?.count ?? 0 > 1000)
        let unwritten = try #require(found.paths[Array("/unwritten".utf8)])
        let written = (found.extents[unwritten] ?? []).reduce(0) { $0 + $1.count }
        #expect(written >= 10 << 10 && written < 64 << 10)
        #expect(found.description?.knowsUse == true)
        try again.unmount()
        try found.expectUseIsSound(image)
    }
}

extension FileTime {
    init(_ time: timespec) {
        self.init(seconds: Int64(time.tv_sec), nanoseconds: UInt32(time.tv_nsec))
    }
}
