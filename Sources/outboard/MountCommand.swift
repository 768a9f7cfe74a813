import Agent
import ArgumentParser
import Blocks
import PhysicalCopy

struct MountCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "mount", abstract: "Serve a copy read-only over NBD.",
        discussion: """
            Serves the volume as of the copy's instant on a unix socket (mode 0600) until it is interrupted; \
            of an append copy the data with the original images over them, each of which is compared with its \
            checksum when it is read. It prints one line, `ready URI`, when it serves. Nothing is mounted by \
            it, and it needs no root: nbdfuse makes a file of it, qemu-img and nbdcopy read it, `nbd-client` \
            makes a device of it. Meanwhile the copy cannot be integrated or replaced.

            EXAMPLE:
                outboard mount /backup/monday /tmp/monday.sock
                nbdfuse /tmp/monday nbd+unix:///?socket=/tmp/monday.sock
                qemu-img convert -O qcow2 'nbd+unix:///?socket=/tmp/monday.sock' monday.qcow2

            EXIT STATUS: 0 interrupted; 64 usage; 65 the copy does not verify; 66 no such copy; 69 the bridge that \
            has the data is unreachable; 73 the socket cannot be made; 74 input/output error; 75 the copy was \
            abandoned, or somebody else serves there; 77 not permitted.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String

    @Argument(help: "The unix socket to make.")
    var socket: String

    @OptionGroup var data: CopyDataOptions

    func run() async throws {
        try Trust.require(socket, to: "serve NBD at")
        let credentials = try data.credentials()
        let cancellation = CancellationToken()
        let stop = Monitor(false)
        StopSignals.handle { _, count in
            if count > 2 { hardExit(.done) }
            cancellation.cancel()
            stop.withLockAndNotify { $0 = true }
        }
        let source = try RestoreSource(
            PhysicalCopy.opened(copy), Sequences.world { Console.logger("mount").notice("\($0)") },
            credentials,
            cancellation)
        defer { source.close() }
        let manifest = source.copy.manifest
        let service = try await StoreService.start(
            source.volume,
            description: "\(manifest.volume.uuid) as of \(ShowCommand.time(manifest.epoch.institutedAt))",
            socket: socket, logger: Console.logger("mount"))
        Console.print("ready \(service.uri)")
        await onBlockingThread { stop.wait { $0 ? () : nil } }
        await service.stop()
    }
}
