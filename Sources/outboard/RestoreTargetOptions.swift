import Agent
import ArgumentParser
import Blocks

/// `OFFSET+LENGTH`, each as sizes are written: `1GiB+64KiB`.
struct RangeArgument: ExpressibleByArgument, Sendable {
    var range: ByteRange

    init?(argument: String) {
        let parts = argument.split(separator: "+", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2, let offset = ByteCount(parsing: String(parts[0])),
            let length = ByteCount(parsing: String(parts[1])),
            let range = ByteRange(checking: offset.bytes, length.bytes, within: UInt64(Int64.max))
        else { return nil }
        self.range = range
    }
}

/// Where volumes and extents are restored to: a file or device of this machine, or a standing bridge's unit.
struct RestoreTargetOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "A file or device; a file that does not exist is made, as large as the volume.", valueName: "path"
        ))
    var to: String?

    @Option(
        help: ArgumentHelp(
            "Instead of --to, a unit of this standing bridge, iscsi://[user@]host[:port]/target; name and secret are "
                + "given with --chap-file.", valueName: "uri"))
    var bridge: String?

    @Option(help: ArgumentHelp("The bridge's unit to restore to.", valueName: "n"))
    var unit: Int?

    @Option(
        help: ArgumentHelp(
            "The bridge's unit that is the copy's data file or device, so that it copies from there itself. Not "
                + "needed for a copy that it made on its own unit; without, the data pass through this program.",
            valueName: "n"))
    var copyUnit: Int?

    @Option(
        help: ArgumentHelp(
            "The host that serves --to, to restore onto its live source.", valueName: "ctl.sock"))
    var host: String?

    @Option(help: CopyCommand.maxRateHelp)
    var maxRate: ByteCount?

    @Flag(help: "Overwrite what is at --to, or on --unit.")
    var force = false

    func validate() throws {
        if (to == nil) == (bridge == nil) { throw ValidationError("give --to, or --bridge with --unit") }
        if (bridge == nil) != (unit == nil) { throw ValidationError("--bridge and --unit belong together") }
        if copyUnit != nil, bridge == nil { throw ValidationError("--copy-unit belongs to --bridge") }
        if maxRate?.bytes == 0 { throw ValidationError("--max-rate must be more than 0") }
        if host != nil, to == nil { throw ValidationError("--host belongs to --to") }
        if host != nil, !force {
            throw ValidationError("--host restores onto a live volume: give --force, too")
        }
    }

    func request(
        _ source: RestoreSourceOptions, credentials: InitiatorCredentials?
    ) throws -> RestoreRequest {
        if let to { try Trust.require(to, to: "restore to") }
        var request = RestoreRequest(
            copy: source.name, isBackup: source.isBackup, destination: to ?? "", force: force, host: host,
            maximumRate: maxRate?.bytes,
            credentials: credentials)
        if let bridge, let unit {
            let address = try BridgeAddress(parsing: bridge, credentials: credentials)
            request.unit = RestoreUnit(bridge: address, number: unit, copyNumber: copyUnit)
            request.destination = "unit \(unit) of \(address)"
        }
        return request
    }
}
