import Foundation
import TestSupport
import Testing

/// The kernel's own initiator, of Debian's kernel in a virtual machine, and the EXTENDED COPY clients of sg3-utils
/// and ddpt, its offload by tokens included: login with mutual CHAP and both digests, a file system on a unit, copies
/// from unit to unit.
@Suite struct KernelInitiatorTests {
    private static let unitBytes: UInt64 = 64 << 20
    private static let initiator = "iqn.2026-01.net.example:guest"

    /// Units 0 to 2 have blocks of 512 bytes, 3 and 4 of 4096.
    private static let settings = """
        portals: ["127.0.0.1:0"]
        chap_file: guest.chap
        units:
          - {number: 0, path: unit0}
          - {number: 1, path: unit1}
          - {number: 2, path: unit2}
          - {number: 3, path: unit3, block_size: 4096}
          - {number: 4, path: unit4, block_size: 4096}
        """

    private static let guest = """
        set -e
        portal=10.0.2.100:3260
        mkdir -p /etc/iscsi /run/lock/iscsi
        echo "InitiatorName=iqn.2026-01.net.example:guest" > /etc/iscsi/initiatorname.iscsi
        # No pings: a host so slow that one is late would end the connection.
        cat > /etc/iscsi/iscsid.conf <<'CONF'
        node.startup = manual
        node.session.auth.authmethod = CHAP
        node.session.auth.username = guest
        node.session.auth.password = the-guests-own-secret
        node.session.auth.username_in = target
        node.session.auth.password_in = the-targets-own-secret
        discovery.sendtargets.auth.authmethod = CHAP
        discovery.sendtargets.auth.username = guest
        discovery.sendtargets.auth.password = the-guests-own-secret
        node.conn[0].timeo.noop_out_interval = 0
        node.conn[0].iscsi.HeaderDigest = CRC32C
        node.conn[0].iscsi.DataDigest = CRC32C
        CONF
        iscsid -f &
        until iscsiadm -m session 2>&1 | grep -q 'No active'; do sleep 0.1; done
        # The portal that discovery tells is the one that the server listens on; here it has another address.
        target=$(iscsiadm -m discovery -t sendtargets -p $portal | sed 's/.* //')
        node="iscsiadm -m node -T $target -p $portal"
        $node -o new
        $node --login
        disk() { ls /sys/class/scsi_device/0:0:0:$1/device/block; }
        generic() { ls /sys/class/scsi_device/0:0:0:$1/device/scsi_generic; }
        for unit in 0 1 2 3 4; do
            until name=$(disk $unit 2>/dev/null) && [ -b /dev/$name ]; do sleep 0.1; done
            until name=$(generic $unit 2>/dev/null) && [ -c /dev/$name ]; do sleep 0.1; done
            ln -s /dev/$(disk $unit) /dev/unit$unit
            ln -s /dev/$(generic $unit) /dev/generic$unit
        done
        fill() { # UNIT
            mkfs.ext4 -q -F /dev/unit$1
            mount -t ext4 -o discard /dev/unit$1 /mnt
            for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mnt/file$i bs=64k count=16 2>/dev/null; done
            rm /mnt/file1
            (cd /mnt && md5sum file*) > /tmp/sums$1
            umount /mnt
        }
        equal() { # UNIT COPY
            blockdev --flushbufs /dev/unit$2
            cmp /dev/unit$1 /dev/unit$2
            e2fsck -fn /dev/unit$2
            mount -t ext4 -o ro /dev/unit$2 /mnt
            (cd /mnt && md5sum -c /tmp/sums$1)
            umount /mnt
        }
        fill 0
        sg_xcopy if=/dev/generic0 of=/dev/generic1 bs=512
        equal 0 1
        # One command at a time: this ddpt (0.97) begins each further one of a run at the first block again.
        for start in 0 32768 65536 98304; do
            ddpt --xcopy if=/dev/generic0 of=/dev/generic2 bs=512 skip=$start seek=$start count=32768
        done
        equal 0 2
        # The whole unit by a token, in which this ddptctl (0.97) puts addresses and numbers a byte too early: its 512
        # blocks are 131,072.
        dd if=/dev/zero of=/dev/unit2 bs=1M count=64 2>/dev/null
        blockdev --flushbufs /dev/unit2
        ddptctl --pt=0,512 --rtf=/tmp/token /dev/generic0
        ddptctl --wut=0,512 --rtf=/tmp/token /dev/generic2
        equal 0 2
        fill 3
        ddpt --xcopy if=/dev/generic3 of=/dev/generic4 bs=4096
        equal 3 4
        $node --logout
        dmesg -r | grep '^<[0-4]>' || true
        # Warnings and worse of the devices, of the file systems on them and of their connection.
        if dmesg -r | grep '^<[0-4]>' | grep -iE 'sd[a-z]|scsi|connection|EXT4|Buffer'; then exit 1; fi
        echo ALL-EQUAL
        """

    private struct Copy {
        let source: Int
        let destination: Int
    }

    @Test(.enabled(if: Tier.isHost, "the virtual machine belongs to the host tier"))
    func makesAFileSystemAndCopiesUnits() throws {
        let scratch = try ScratchDirectory()
        for unit in 0...4 { try makeSparseFile(scratch("unit\(unit)"), size: Self.unitBytes) }
        try Self.settings.write(toFile: scratch("bridge.yaml"), atomically: true, encoding: .utf8)
        try "guest the-guests-own-secret\ntarget the-targets-own-secret\n".write(
            toFile: scratch("guest.chap"), atomically: true, encoding: .utf8)
        try #require(chmod(scratch("guest.chap"), 0o600) == 0)
        try Self.guest.write(toFile: scratch("guest"), atomically: true, encoding: .utf8)
        let bridge = try BridgeProcess(arguments: ["--config", scratch("bridge.yaml")])

        var root = URL(fileURLWithPath: #filePath)
        for _ in 0..<3 { root.deleteLastPathComponent() }
        // The first time with a download of the kernel; and the guest's processor is emulated by a busy one.
        let machine = try runProgram(
            root.path + "/scripts/vm", ["--iscsi", bridge.portal, scratch("guest")], seconds: 1800)
        #expect(machine.isSuccess && machine.output.contains("ALL-EQUAL"), "\(machine)")
        #expect(bridge.process.stop() == .exit(0))

        // By EXTENDED COPY and not by reading and writing: the audit log has every byte of it.
        let log = bridge.process.errors
        for copy in [
            Copy(source: 0, destination: 1), Copy(source: 0, destination: 2), Copy(source: 3, destination: 4),
        ] {
            let lines = log.split(separator: "\n").filter {
                $0.contains("EXTENDED COPY ") && $0.contains(" from=\(copy.source) ")
                    && $0.contains(" to=\(copy.destination) ")
            }
            let bytes = lines.compactMap { $0.firstMatch(of: /bytes=([0-9]+)/).flatMap { UInt64($0.1) } }
            #expect(bytes.reduce(0, +) == Self.unitBytes, "\(copy): \(log)")
            for line in lines {
                #expect(line.contains("initiator=\(Self.initiator) ") && line.contains(" result=done "))
                #expect(line.contains("user=guest"))
            }
            // And with this machine's tools.
            let files = [scratch("unit\(copy.source)"), scratch("unit\(copy.destination)")]
            #expect(try runProgram("cmp", files).isSuccess)
            #expect(try runProgram("e2fsck", ["-fn", files[1]]).isSuccess)
        }
        let offload = try #require(
            log.split(separator: "\n").first { $0.contains("WRITE USING TOKEN ") }, "\(log)")
        #expect(offload.contains("bytes=\(Self.unitBytes) ") && offload.contains(" from=0 "))
        #expect(offload.contains(" to=2 ") && offload.contains(" result=done "))
    }
}
