import ArgumentParser
import Blocks
import Bridge
import Foundation

struct BridgeCommand: AsyncParsableCommand, LoggingCommand {
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

            Without CHAP anybody who reaches the portal may use all units, so a portal that is not on a loopback \
            address is refused then, unless --insecure says that it is meant. The CHAP file's first line holds a \
            name and a secret of at least 12 bytes (a second line, the target's own for initiators that want \
            proof, too), and nobody but its owner may read it (chmod 600).

            --config reads the same and more from a YAML file; options on the command line win. Nobody but its \
            owner may write it. With `initiators` only those are let in, each by its own CHAP file, and a unit \
            that names initiators exists for them alone:
                portals: ["127.0.0.1:3260"]
                target: iqn.2026-01.net.example:outboard
                initiators:
                  - {name: "iqn.2026-01.net.outboard:agent", chap_file: /etc/outboard/agent.chap}
                  - {name: "iqn.2026-01.net.example:db", chap_file: /etc/outboard/db.chap}
                units:
                  - {number: 0, path: /dev/vg0/volume, read_only: true}
                  - {number: 1, path: /var/lib/outboard/volume.cache, read_only: true}
                  - number: 2
                    path: /backup/monday.img
                    block_size: 4096
                    initiators: ["iqn.2026-01.net.outboard:agent"]
            `outboard copy` is the initiator iqn.2026-01.net.outboard:agent. --check-config tells what would be \
            served, and serves nothing.

            EXAMPLE:
                outboard bridge --unit 0=/dev/vg0/data,ro \\
                    --unit 1=/dev/vg0/data-cache,ro \\
                    --unit 2=/backup/monday.img --chap-file /etc/outboard/chap

            EXIT STATUS: 0 stopped in order, or the settings are right; 64 usage, or a file of settings that cannot be used; 66 a unit or \
            file is missing; 73 the portal cannot be listened on; 74 input/output error; 75 a writable unit is \
            in use, or a second signal came; 77 not permitted, others may use the CHAP file or write the \
            configuration, or a portal would be open to everybody.
            """)

    @Option(
        help: ArgumentHelp(
            "A logical unit: its number, a file or device; `ro` if it is never to be written; `thin` if initiators "
                + "may give space back, `thick` if not (default: where the file system can). Repeat for more.",
            valueName: "n=path[,ro][,thin|,thick]"))
    var unit: [UnitArgument] = []

    @Option(
        help: ArgumentHelp(
            "Where to listen. Default: 127.0.0.1:3260. Repeat for more.", valueName: "address:port"))
    var portal: [Endpoint] = []

    @Option(
        help: ArgumentHelp(
            "The target's iSCSI name. Default: \(BridgeSettings.defaultTarget).", valueName: "iqn"))
    var target: String?

    @Option(help: ArgumentHelp("Demand CHAP with this file's name and secret.", valueName: "file"))
    var chapFile: String?

    @Option(
        help: ArgumentHelp(
            "Keep persistent reservations in this directory, so that they outlive the bridge (APTPL). It must be there, "
                + "and nobody but its owner may write it.", valueName: "directory"))
    var state: String?

    @Option(help: ArgumentHelp("Read settings from this file.", valueName: "bridge.yaml"))
    var config: String?

    @Flag(help: "Tell what would be served and end: nothing is locked, listened on or changed.")
    var checkConfig = false

    @Flag(help: "Listen on any address without CHAP: whoever reaches it may use the units.")
    var insecure = false

    @Flag(help: ArgumentHelp("Serve one agent: end when standard input ends.", visibility: .hidden))
    var `private` = false

    @Option(
        help: ArgumentHelp(
            "A unit of a private bridge.", valueName: "n:[ro][nolock]:path", visibility: .hidden))
    var privateUnit: [PrivateUnitArgument] = []

    @OptionGroup var metrics: MetricsOptions
    @OptionGroup var log: LogOptions
    var isService: Bool { !self.private }

    @Flag(help: "Print the ready line as a JSON object.")
    var json = false

    private struct Output: Encodable {
        /// The first portal.
        var portal: String
        var portals: [String]
        var target: String
        /// Where metrics are told, ADDRESS:PORT; absent: nowhere, or in a file.
        var metrics: String?
        /// Who is let in; absent: all.
        var initiators: [Initiator]?
        var units: [Unit]
        struct Unit: Encodable {
            var number: Int
            var path: String
            var readOnly: Bool
            /// Its blocks can be unmapped.
            var thin: Bool
            var blockSize: UInt32
            var blocks: UInt64
            var designator: String
            var direct: Bool
            /// Who sees it; absent: all.
            var initiators: [String]?
        }
        struct Initiator: Encodable {
            var name: String
            /// Whether it must prove who it is.
            var chap: Bool
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
        settings.isInsecure = insecure
        if !portal.isEmpty { settings.portals = portal }
        if let target { settings.target = target }
        if let state { settings.stateDirectory = state }
        if let chapFile { settings.chapFile = chapFile }
        guard !settings.units.isEmpty else {
            throw Failure(
                .usage, "the configuration \(config ?? "") names no units; see outboard bridge --help")
        }
        if checkConfig {
            let units = try BridgeService.check(settings)
            return try sayChecked(output(settings, settings.portals.map(\.text), units), settings)
        }
        try metrics.refuseOpenAddress()
        let service = try await BridgeService.start(settings)
        await service.tell(metrics.metrics)
        let stop = Monitor(false)
        let isPrivate = self.private
        StopSignals.handle { signal, count in
            // A private bridge ends with its agent, who decides what an interrupt means.
            if isPrivate, signal == SIGINT { return }
            if count > 1 { hardExit(.tryAgain) }
            stop.withLockAndNotify { $0 = true }
        }
        if isPrivate { endWithInput(stop) }
        if json {
            var output = output(settings, service.portals, service.units)
            output.metrics = service.metricsPlace
            try Console.print(json: output)
        } else {
            Console.print("ready \(service.portals.joined(separator: ",")) \(service.target)")
        }
        if !self.private { ServiceManager.ready(serving: service.portals.joined(separator: ", ")) }
        await onBlockingThread { stop.wait { $0 ? () : nil } }
        if !self.private { ServiceManager.stopping() }
        await service.stop()
    }

    private func output(
        _ settings: BridgeSettings, _ portals: [String], _ units: [BridgeUnitSummary]
    ) -> Output {
        let initiators = Dictionary(
            settings.units.map { ($0.number, $0.initiators) }, uniquingKeysWith: { first, _ in first })
        return Output(
            portal: portals[0], portals: portals, target: settings.target, metrics: nil,
            initiators: settings.initiators?.map {
                Output.Initiator(name: $0.name, chap: $0.chapFile != nil)
            },
            units: units.map {
                Output.Unit(
                    number: $0.number, path: $0.path, readOnly: $0.readOnly, thin: $0.isThin,
                    blockSize: $0.blockSize,
                    blocks: $0.blockCount, designator: $0.designator, direct: $0.isDirect,
                    initiators: initiators[$0.number] ?? nil)
            })
    }

    private func sayChecked(_ output: Output, _ settings: BridgeSettings) throws {
        if json { return try Console.print(json: output) }
        Console.print("target \(output.target) on \(output.portals.joined(separator: ", "))")
        if let initiators = output.initiators {
            for one in initiators {
                Console.print("initiator \(one.name), \(one.chap ? "with CHAP" : "without CHAP")")
            }
        } else {
            Console.print("any initiator, \(settings.chapFile == nil ? "without CHAP" : "with CHAP")")
        }
        for unit in output.units {
            let access = unit.readOnly ? "read-only" : unit.thin ? "writable and thin" : "writable"
            let who = unit.initiators.map { $0.isEmpty ? "nobody" : $0.joined(separator: ", ") } ?? "all"
            Console.print(
                "unit \(unit.number): \(unit.path), \(access), \(unit.blocks) blocks of \(unit.blockSize) "
                    + "bytes, for \(who)")
        }
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
