import Foundation
import TestSupport
import Testing

/// The kernel's own NBD client, of Debian's kernel in a virtual machine: this machine's may have none.
@Suite struct KernelClientTests {
    static let guest = """
        set -e
        nbd-client 10.0.2.100 10809 /dev/nbd0 -b 512 -C 4
        mkfs.ext4 -q -b 4096 -F /dev/nbd0
        mount -t ext4 -o discard /dev/nbd0 /mnt
        for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mnt/file$i bs=64k count=16 2>/dev/null; done
        rm /mnt/file1
        (cd /mnt && md5sum file*) > /tmp/sums
        umount /mnt
        nbd-client -d /dev/nbd0
        nbd-client 10.0.2.100 10809 /dev/nbd0 -b 4096
        e2fsck -fn /dev/nbd0
        mount -t ext4 -o ro /dev/nbd0 /mnt
        (cd /mnt && md5sum -c /tmp/sums)
        umount /mnt
        nbd-client -d /dev/nbd0
        echo ALL-EQUAL
        """

    @Test(.enabled(if: Tier.isHost, "the virtual machine belongs to the host tier"))
    func makesMountsAndChecksAFileSystem() throws {
        let host = try HostProcess(size: 64 << 20)
        let guest = host.directory("guest")
        try Self.guest.write(toFile: guest, atomically: true, encoding: .utf8)
        let scripts =
            URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent().path + "/scripts"
        // The first time with a download of the kernel; and the guest's processor is emulated by a busy one.
        let machine = try runProgram(scripts + "/vm", ["--nbd", host.socket, guest], seconds: 1800)
        #expect(machine.isSuccess, "\(machine)")
        #expect(machine.output.contains("ALL-EQUAL"))
        #expect(host.stop() == .exit(0), "\(host.process.errors)")
        // And with this machine's tools, what the guest's kernel left.
        #expect(try runProgram("e2fsck", ["-fn", host.source]).isSuccess)
    }
}
