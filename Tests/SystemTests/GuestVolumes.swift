import Blocks
import Foundation
import TestSupport

/// A volume of the virtual machine: one file system, or a partition table and several.
struct GuestVolume: Sendable {
    struct Part: Sendable {
        let kind: FileSystemCase
        /// Of the partition; 0: the volume is the file system.
        let number: Int
        let offset: UInt64
    }

    let name: String
    let size: UInt64
    let parts: [Part]
    /// For sfdisk; nil: no partitions.
    let table: String?

    init(_ kind: FileSystemCase) {
        name = kind.name
        // One that cannot be written leaves room for a writer.
        size = kind.size + (kind.isWritable ? 0 : 16 << 20)
        parts = [Part(kind: kind, number: 0, offset: 0)]
        table = nil
    }

    /// Partitions one behind another, each at a MiB; of an MBR the fourth is extended, and holds the others.
    init(_ name: String, table: String, _ kinds: [FileSystemCase]) {
        let mebibyte: UInt64 = 1 << 20
        var place = mebibyte
        var lines = "label: \(table)\n"
        var parts: [Part] = []
        for (index, kind) in kinds.enumerated() {
            if table == "dos", index == 3 {
                lines += "start=\(place / 512), type=5\n"
                place += mebibyte
            }
            let number = table == "dos" && index >= 3 ? index + 2 : index + 1
            lines += "start=\(place / 512), size=\(kind.size / 512)\n"
            parts.append(Part(kind: kind, number: number, offset: place))
            // Between logical partitions lie their tables.
            place += kind.size + mebibyte
        }
        self.name = name
        self.table = lines
        self.parts = parts
        size = place + mebibyte
    }

    /// Makes the volume in a new file.
    func make(at path: String, in scratch: ScratchDirectory) throws {
        try makeSparseFile(path, size: size)
        if let table {
            let script = scratch("table")
            try table.write(toFile: script, atomically: true, encoding: .utf8)
            try LoopMount.succeed("sh", ["-c", "sfdisk -q --no-tell-kernel '\(path)' < '\(script)'"])
        }
        for part in parts {
            let image = scratch("part.img")
            try part.kind.makeForGuest(at: image, in: scratch)
            try LoopMount.succeed(
                "dd",
                [
                    "if=\(image)", "of=\(path)", "bs=1M", "seek=\(part.offset >> 20)", "conv=notrunc,sparse",
                    "status=none",
                ])
            unlink(image)
        }
    }
}

extension FileSystemCase {
    var isWritable: Bool {
        if case .guest("iso9660", _) = driver { false } else { true }
    }

    fileprivate func makeForGuest(at path: String, in scratch: ScratchDirectory) throws {
        switch driver {
        case .guest("hfsplus", _): try HFSPlusFormatter.format(path, size: size)
        case .guest("iso9660", let options):
            let tree = scratch("tree")
            try FileManager.default.createDirectory(atPath: tree, withIntermediateDirectories: false)
            try Witness.run(["fill", tree, abilities])
            let kind = options.contains("norock") ? ["--norock", "-J", "-joliet-long"] : ["-R"]
            try LoopMount.succeed(
                "xorriso",
                [
                    "-hardlinks", "on", "-as", "mkisofs", "-quiet", "-iso-level", "3", "-input-charset",
                    "UTF-8",
                ] + kind + [
                    "-o", path, tree,
                ])
            try LoopMount.succeed("rm", ["-rf", tree])
        default: try make(at: path)
        }
    }
}

/// The virtual machine with volumes that hosts serve, each filled and used by Debian's kernel.
final class GuestVolumes: Sendable {
    let volumes: [GuestVolume]
    let hosts: [HostProcess]
    let scratch: ScratchDirectory
    private let machine: ChildProcess
    private let out: String

    /// - Parameter snapshots: how many states of each volume are listed at the end.
    init(_ volumes: [GuestVolume], snapshots: Int) throws {
        self.volumes = volumes
        let scratch = try ScratchDirectory()
        self.scratch = scratch
        hosts = try volumes.indices.map { index in
            try volumes[index].make(at: scratch("v\(index).img"), in: scratch)
            return try HostProcess(scratch, name: "v\(index)")
        }
        out = scratch("out.img")
        try makeSparseFile(out, size: 64 << 20)
        var disks = hosts.map { "nbd+unix:///?socket=\($0.socket)" }
        for snapshot in 0..<snapshots {
            for (index, volume) in volumes.enumerated() {
                let path = scratch("s\(snapshot)-\(index).img")
                try makeSparseFile(path, size: volume.size)
                disks.append(path)
            }
        }
        disks.append(out)
        let script = scratch("guest")
        try Self.script(volumes, snapshots: snapshots).write(
            toFile: script, atomically: true, encoding: .utf8)
        let scripts =
            URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent().path + "/scripts"
        machine = try ChildProcess(
            scripts + "/vm",
            ["--disks", disks.joined(separator: " "), "--programs", Witness.program, script],
            keepsInputOpen: true)
        // The first time with a download of the kernel; and the guest's processor is emulated by a busy one.
        try expect("IN-USE", seconds: 1200)
    }

    deinit { machine.stop() }

    /// A disk's name in the guest.
    private static func disk(_ number: Int) -> String {
        let letters = (0..<26).map { String(Unicode.Scalar(UInt8(97 + $0))) }
        return "/dev/vd" + (number < 26 ? letters[number] : letters[number / 26 - 1] + letters[number % 26])
    }

    private static func script(_ volumes: [GuestVolume], snapshots: Int) -> String {
        var lines = ["set -e", "mkdir -p /m"]
        var writers: [String] = []
        func device(_ disk: Int, _ part: GuestVolume.Part) -> String {
            self.disk(disk) + (part.number == 0 ? "" : "\(part.number)")
        }
        for (index, volume) in volumes.enumerated() {
            for part in volume.parts where part.kind.isWritable {
                guard case .guest(let type, let options) = part.kind.driver else { continue }
                let place = "/m/\(index)-\(part.number)"
                let written = options.replacingOccurrences(of: ",nodecompose", with: "")
                lines += [
                    "mkdir \(place); mount -t \(type) -o \(written) \(device(index, part)) \(place)",
                    "FileSystemWitness fill \(place) \(part.kind.abilities)",
                ]
                if part.kind.freezes {
                    lines += ["sync; fsfreeze --freeze \(place)"]
                    writers.insert("fsfreeze --unfreeze \(place)", at: 0)
                } else {
                    writers.append("FileSystemWitness busy \(place) 100000000 gentle")
                }
            }
        }
        let busy = writers.filter { !$0.hasPrefix("fsfreeze") }
        lines += ["sync"] + busy.enumerated().map { "\($1) >/tmp/busy\($0) &" }
        lines += ["until [ $(cat /tmp/busy* | grep -c BUSY) = \(busy.count) ]; do sleep 1; done"]
        // With echo, what the test writes would appear as if the guest had said it.
        lines += ["stty -echo", "echo IN-USE; read next", "kill $(jobs -p); wait || true"]
        lines += writers.filter { $0.hasPrefix("fsfreeze") } + ["umount /m/* && echo UNUSED; read next"]
        for snapshot in 0..<snapshots {
            for (index, volume) in volumes.enumerated() {
                let disk = volumes.count * (snapshot + 1) + index
                lines.append("blockdev --flushbufs \(self.disk(disk))")
                if volume.table != nil { lines.append("blockdev --rereadpt \(self.disk(disk))") }
                for part in volume.parts {
                    guard case .guest(let type, let options) = part.kind.driver else { continue }
                    lines += [
                        "mkdir -p /r; mount -t \(type) -o \(options) \(device(disk, part)) /r",
                        "echo '=== \(snapshot) \(index) \(part.number)' >>/tmp/out",
                        "FileSystemWitness list /r >>/tmp/out; umount /r",
                    ]
                }
            }
        }
        lines += ["cat /tmp/out >\(disk(volumes.count * (snapshots + 1))); sync", "echo LISTED"]
        return lines.joined(separator: "\n") + "\n"
    }

    private func expect(_ word: String, seconds: Double) throws {
        let said = machine.line(seconds: seconds) { $0.contains(word) || $0.contains("GUEST-EXIT") }
        guard let said, said.contains(word) else {
            throw TestFailure("the guest did not say \(word): \(machine.output) \(machine.errors)")
        }
    }

    /// Ends all use.
    func stopUse() throws {
        machine.write("next\n")
        try expect("UNUSED", seconds: 300)
    }

    /// What Debian's kernel shows: by snapshot, volume and partition. The snapshots are at
    /// ``snapshot(_:_:)``.
    func references() throws -> [[Int]: TreeListing] {
        machine.write("next\n")
        try expect("LISTED", seconds: 600)
        let text = String(decoding: try contents(out).prefix { $0 != 0 }, as: UTF8.self)
        var found: [[Int]: TreeListing] = [:]
        for section in text.components(separatedBy: "=== ").dropFirst() {
            let line = section.prefix { $0 != "\n" }
            found[line.split(separator: " ").compactMap { Int($0) }] = TreeListing(
                text: String(section.dropFirst(line.count)))
        }
        return found
    }

    /// Gives the guest one state of a volume.
    func put(_ file: String, snapshot: Int, volume: Int) throws {
        try LoopMount.succeed(
            "dd",
            [
                "if=\(file)", "of=\(scratch("s\(snapshot)-\(volume).img"))", "bs=1M", "conv=notrunc,sparse",
                "status=none",
            ])
    }
}
