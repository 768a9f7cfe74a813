import ArgumentParser
import Blocks
import Bridge
import Foundation

struct BridgeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bridge",
        abstract: "Serve files and block devices over iSCSI, and copy between them on command.",
        discussion: """
            An iSCSI target with a SCSI third-party copy manager: initiators read and write its logical units, \
            and EXTENDED COPY copies between them with asynchronous direct I/O, without the data passing \
            through the initiator. `outboard copy` starts a private one by itself; a standing one serves \
            copies on another machine, named by `--bridge`.

            It stays in the foreground and prints one line on standard output when it serves:
                ready ADDRESS:PORT TARGET
            With port 0 in --portal the line tells the port. SIGINT and SIGTERM stop it in order, a second one at once.

            Without --chap-file anybody who reaches the portal may use all units: keep it on a loopback \
            address then. The CHAP file's first line holds a name and a secret of at least 12 bytes, and \
            nobody but its owner may read it (chmod 600).

            --config reads the same from a YAML file; options on the command line win:
                portal: 127.0.0.1:3260
                target: iqn.2026-01.net.example:outboard
                chap_file: /etc/outboard/chap
                units:
                  - {number: 0, path: /dev/vg0/volume, read_only: true}
                  - {number: 1, path: /var/lib/outboard/volume.cache, read_only: true}
                  - {number: 2, path: /backup/monday.img}

            EXAMPLE:
                outboard bridge --unit 0=/dev/vg0/data,ro \\
                    --unit 1=/dev/vg0/data-cache,ro \\
                    --unit 2=/backup/monday.img --chap-file /etc/outboard/chap

            EXIT STATUS: 0 stopped in order; 64 usage, or a file of settings that cannot be used; 66 a unit or \
            file is missing; 73 the portal cannot be listened on; 74 input/output error; 75 a writable unit is \
            in use, or a second signal came; 77 not permitted, or others may read the CHAP file.
            """)

    @Option(
        help: ArgumentHelp(
            "A logical unit: its number, a file or device, and `ro` if it is never to be written. Repeat "
                + "for more.", valueName: "n=path[,ro]"))
    var unit: [UnitArgument] = []

    @Option(help: ArgumentHelp("Where to listen. Default: 127.0.0.1:3260.", valueName: "address:port"))
    var portal: Endpoint?

    @Option(
        help: ArgumentHelp(
            "The target's iSCSI name. Default: \(BridgeSettings.defaultTarget).", valueName: "iqn"))
    var target: String?

    @Option(help: ArgumentHelp("Demand CHAP with this file's name and secret.", valueName: "file"))
    var chapFile: String?

    @Option(help: ArgumentHelp("Read settings from this file.", valueName: "bridge.yaml"))
    var config: String?

    @Flag(help: ArgumentHelp("Serve one agent: end when standard input ends.", visibility: .hidden))
    var `private` = false

    @Option(
        help: ArgumentHelp(
            "A unit of a private bridge.", valueName: "n:[ro][nolock]:path", visibility: .hidden))
    var privateUnit: [PrivateUnitArgument] = []

    @Flag(help: "Print the ready line as a JSON object.")
    var json = false

    private struct Output: Encodable {
        var portal: String
        var target: String
        var units: [Unit]
        struct Unit: Encodable {
            var number: Int
            var path: String
            var readOnly: Bool
            var blockSize: UInt32
            var blocks: UInt64
            var designator: String
            var direct: Bool
        }
    }

    func validate() throws {
        if unit.isEmpty, privateUnit.isEmpty, config == nil {
            throw ValidationError("a bridge needs at least one unit: give --unit N=PATH, or --config")
        }
    }

    func run() async throws {
        var settings = try config.map { try BridgeSettings(readingFile: $0) } ?? BridgeSettings()
        if !unit.isEmpty { settings.units = unit }
        settings.units += privateUnit.map(\.unit)
        settings.isPrivate = self.private
        if let portal { settings.portal = portal }
        if let target { settings.target = target }
        if let chapFile { settings.chapFile = chapFile }
        guard !settings.units.isEmpty else {
            throw Failure(
                .usage, "the configuration \(config ?? "") names no units; see outboard bridge --help")
        }
        let service = try await BridgeService.start(settings)
        let stop = Monitor(false)
        let isPrivate = self.private
        StopSignals.handle { signal, count in
            // A private bridge ends with its agent, who decides what an interrupt means.
            if isPrivate, signal == SIGINT { return }
            if count > 1 { hardExit(.tryAgain) }
            stop.withLockAndNotify { $0 = true }
        }
        if isPrivate { endWithInput(stop) }
        try say(service)
        await onBlockingThread { stop.wait { $0 ? () : nil } }
        await service.stop()
    }

    private func say(_ service: BridgeService) throws {
        guard json else { return Console.print("ready \(service.portal) \(service.target)") }
        try Console.print(
            json: Output(
                portal: service.portal, target: service.target,
                units: service.units.map {
                    Output.Unit(
                        number: $0.number, path: $0.path, readOnly: $0.readOnly, blockSize: $0.blockSize,
                        blocks: $0.blockCount, designator: $0.designator, direct: $0.isDirect)
                }))
    }

    /// Standard input is a pipe of which the agent holds the other end: its end is the agent's.
    private func endWithInput(_ stop: Monitor<Bool>) {
        let started = BlockingThread.start {
            var byte: UInt8 = 0
            while true {
                let count = read(STDIN_FILENO, &byte, 1)
                if count == 0 || (count < 0 && errno != EINTR) { break }
            }
            stop.withLockAndNotify { $0 = true }
        }
        precondition(started, "no thread to watch the agent")
    }
}
