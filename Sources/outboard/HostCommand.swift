import ArgumentParser
import Blocks
import Host
import HostControl
import NBD

struct HostCommand: AsyncParsableCommand, LoggingCommand {
    static let configuration = CommandConfiguration(
        commandName: "host",
        abstract: "Serve a volume over NBD, and preserve its originals while a copy is taken.",
        discussion: """
            Stands between the source volume and the applications, which use it as an NBD export: the \
            default export is the live volume, read-write; the export `snapshot` is the volume as of the \
            instant of the running copy, read-only, and there only while one runs. `outboard copy` drives \
            the host through the control socket. One process serves one volume; source and cache are \
            locked, and a second host on either is refused.

            The host stays in the foreground and prints one line on standard output when it serves:
                ready NBD-URI CONTROL-SOCKET
            SIGINT and SIGTERM stop it: it accepts nothing more, finishes the requests it has, flushes and \
            exits with 0. A second signal ends it at once; what was flushed stays safe, and the next start \
            goes on with an open epoch, unless originals are missing from its cache.

            The original image cache is a file or a block device. A file that does not exist is made, of \
            --cache-size bytes, sparse. It must hold what applications overwrite while a copy runs and does not \
            have yet, once for each chunk; when it is full, --on-cache-full decides, and `outboard grow` helps before.

            EXAMPLE:
                outboard host --source /dev/vg0/data --cache /dev/vg0/data-cache \\
                    --socket /run/outboard/data.sock \\
                    --control /run/outboard/data.ctl

            EXIT STATUS: 0 stopped in order; 64 usage; 65 the cache is damaged or another volume's, or the \
            source's size is impossible; 66 no such source or certificate; 73 the cache or a socket cannot be \
            made, or the cache is too small; 74 input/output error; 75 source, cache or socket are in use, or a \
            second signal came; 77 not permitted.
            """)

    @OptionGroup var options: HostOptions
    @OptionGroup var metrics: MetricsOptions
    @OptionGroup var log: LogOptions
    var isService: Bool { true }

    func validate() throws {
        let tls = [options.tlsCertificate, options.tlsKey, options.tlsCa].compactMap { $0 }
        guard options.listen != nil || tls.isEmpty else {
            throw ValidationError("--tls-certificate, --tls-key and --tls-ca belong to --listen")
        }
        guard options.listen == nil || tls.count == 3 else {
            throw ValidationError(
                "--listen serves TLS only, and only clients that --tls-ca has signed: give --tls-certificate, "
                    + "--tls-key and --tls-ca")
        }
        if let chunk = options.chunkSize?.bytes {
            guard HostOptions.chunkSizes.contains(chunk), chunk & (chunk - 1) == 0 else {
                throw ValidationError(
                    "--chunk-size is a power of two from 4KiB to 1MiB, not \(ByteCount(chunk))")
            }
        }
    }

    func run() async throws {
        try metrics.refuseOpenAddress()
        let service = try await HostService.start(options)
        StopSignals.handle { _, count in
            if count > 1 {
                Console.logger("host").notice("second signal, ending at once")
                hardExit(.tryAgain)
            }
            service.requestStop()
        }
        await service.tell(metrics.metrics)
        let place = service.place
        if options.json {
            try Console.print(json: place)
        } else {
            Console.print("ready \(place.uris[0]) \(place.control)")
        }
        ServiceManager.ready(serving: place.source)
        await service.waitForStop()
        ServiceManager.stopping()
        try await service.stop()
    }
}

struct HostOptions: ParsableArguments {
    static let chunkSizes: ClosedRange<UInt64> = (4 << 10)...(1 << 20)

    @Option(help: ArgumentHelp("The volume.", valueName: "path"))
    var source: String

    @Option(help: ArgumentHelp("The original image cache.", valueName: "path"))
    var cache: String

    @Option(help: ArgumentHelp("Unix socket on which NBD is served (mode 0600).", valueName: "nbd.sock"))
    var socket: String

    @Option(help: ArgumentHelp("Unix socket for `outboard copy` (mode 0600).", valueName: "ctl.sock"))
    var control: String

    @Option(
        help: ArgumentHelp(
            "Size of the cache. Default: all of an existing one; a new file gets a quarter of the source, "
                + "at least 16MiB.", valueName: "size"))
    var cacheSize: ByteCount?

    @Option(
        help: ArgumentHelp(
            "Unit of copy-on-write, a power of two, 4KiB to 1MiB. Default: 64KiB, or what an epoch that "
                + "the cache holds was begun with.", valueName: "size"))
    var chunkSize: ByteCount?

    @Option(
        help: ArgumentHelp(
            "What a running copy survives: a crash of the `process`, or a `power` cut, too (each first "
                + "overwrite then waits for the cache's disk).", valueName: "process|power"))
    var durability = Durability.process

    @Option(
        help: ArgumentHelp(
            "When the cache is full or fails: `abandon` the copy, so that applications notice nothing; `block` "
                + "writes for up to 30 s, then abandon it; or `restart-from`: no write waits for the cache, but all do "
                + "at the gate of another institution, 10 s at most, and the copy becomes one of that later instant: "
                + "what was overwritten since the first is copied again. So 8 times at most, then it is abandoned, "
                + "as are copies of several volumes at one instant the first time. A write waits for a full cache, "
                + "or a copy begins anew, only while the agent that began it is there.",
            valueName: "abandon|block|restart-from"))
    var onCacheFull = CacheFullPolicy.abandon

    @Option(
        help: ArgumentHelp(
            "Serve NBD on TCP, too, with TLS, to clients with a certificate of --tls-ca: each may read and write "
                + "the volume.", valueName: "address:port"))
    var listen: Endpoint?

    @Option(help: ArgumentHelp("The host's certificate chain, PEM.", valueName: "file"))
    var tlsCertificate: String?

    @Option(help: ArgumentHelp("Its private key, PEM.", valueName: "file"))
    var tlsKey: String?

    @Option(
        help: ArgumentHelp(
            "The authorities, PEM: every client shows a certificate that one of them has signed.",
            valueName: "file"))
    var tlsCa: String?

    @Option(
        help: ArgumentHelp(
            "The volume's identity. Default: made from this machine's id and the source's path, links "
                + "followed; of a device, from the name that was given. Give it when the source has moved.",
            valueName: "uuid"))
    var volume: String?

    @Flag(help: "Print the ready line as a JSON object.")
    var json = false
}
