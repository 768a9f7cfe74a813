import Blocks
import PhysicalCopy
import SCSI

/// How the data of a copy come to a restore's unit: what copies them, and the two units as that knows them.
final class RestoreRoute {
    private(set) var copier: (any ThirdPartyCopier)?
    private(set) var source: UnitDescription?
    private(set) var target: UnitDescription?
    private var bridge: (any BridgeConnection)?
    private let world: Collaborators
    private let cancellation: CancellationToken
    private let isStopped: @Sendable () -> Bool

    init(
        _ world: Collaborators, _ cancellation: CancellationToken, isStopped: @escaping @Sendable () -> Bool
    ) {
        self.world = world
        self.cancellation = cancellation
        self.isStopped = isStopped
    }

    func end() { bridge?.end() }

    /// By a private bridge; data on a standing bridge's unit are read from there and written by the private one.
    func find(to site: RestoreSite, from data: RestoreSource) throws(AgentError) {
        var place = PrivateUnit(1, site.path, isReadOnly: false)
        place.isLocked = !site.isLocked
        let local = data.path.map { PrivateUnit(0, $0, isReadOnly: true) }
        let own = try world.startPrivateBridge([local, place].compactMap(\.self), cancellation)
        bridge = own
        let target = try own.copier.unit(1)
        self.target = target
        guard let remote = data.remote else {
            source = try own.copier.unit(0)
            copier = own.copier
            return
        }
        try relay(
            remote.bridge.copier.store(of: remote.unit, isCancelled: isStopped),
            of: remote.bridge.copier.name, to: target, at: own.copier)
    }

    /// By the standing bridge itself, where the copy's data are one of its units, too; else they pass through the
    /// agent.
    func find(to unit: RestoreUnit, from data: RestoreSource) throws(AgentError) {
        let standing = try world.connectBridge(unit.bridge, cancellation)
        bridge = standing
        let target = try standing.copier.unit(unit.number)
        self.target = target
        if let remote = data.remote, isSame(remote.address, unit.bridge) {
            guard remote.unit.number != unit.number else { throw overwritesItself(unit) }
            source = try standing.copier.unit(remote.unit.number)
            copier = standing.copier
            return
        }
        guard let number = unit.copyNumber else {
            if let path = data.path, let own = world.storageName(path), target.storage == own {
                throw overwritesItself(unit)
            }
            return try relay(data.raw, of: data.copy.directory, to: target, at: standing.copier)
        }
        guard number != unit.number else { throw overwritesItself(unit) }
        let source = try standing.copier.unit(number)
        try prove(source, is: data, at: standing.copier)
        self.source = source
        copier = standing.copier
    }

    private func isSame(_ a: BridgeAddress, _ b: BridgeAddress) -> Bool {
        (a.host, a.port, a.targetName) == (b.host, b.port, b.targetName)
    }

    private func relay(
        _ store: any BlockStore, of name: String, to target: UnitDescription, at writer: any ThirdPartyCopier
    ) throws(AgentError) {
        let relay = try RelayCopier(
            from: store, of: name, to: target, at: writer, isCancelled: isStopped)
        copier = relay
        source = relay.source
    }

    private func overwritesItself(_ unit: RestoreUnit) -> AgentError {
        AgentError(
            .usage, doing: "restoring to unit \(unit.number) of", to: "\(unit.bridge)",
            because: "it is the copy's own data")
    }

    /// The unit's number was typed by hand.
    private func prove(
        _ unit: UnitDescription, is data: RestoreSource, at copier: any ThirdPartyCopier
    ) throws(AgentError) {
        let wrong = AgentError(
            .usage, doing: "reading the copy's data on unit \(unit.number) of", to: copier.name,
            because: "that unit is something else",
            advice: "name with --copy-unit the unit that is \(data.path ?? "the copy's data"), or none")
        let end = data.copy.manifest.originals?.range.end ?? data.copy.manifest.data.range.end
        let block = UInt64(unit.capacity.blockLength)
        guard unit.size >= end.roundedDown(to: block) else { throw wrong }
        if let path = data.path, let theirs = unit.storage, theirs.boot == MachineBoot.identifier,
            let ours = world.storageName(path)
        {
            if theirs == ours { return }
            // The bridge may have opened it before the copy was replaced: what differs may lie anywhere. A device may be
            // one over our file.
            guard theirs.isBlockDevice || ours.isBlockDevice else { throw wrong }
        }
        let store = try copier.store(of: unit, isCancelled: isStopped)
        for place in samplePlaces(of: min(end, unit.size), block: 4096, count: AgentLimits.samples) {
            try cancellation.check()
            let same = try onStore("comparing the copy with unit \(unit.number) of", copier.name) {
                () throws(StoreError) in
                try data.store.bytes(at: place.offset, count: Int(place.count))
                    == store.bytes(at: place.offset, count: Int(place.count))
            }
            guard same else { throw wrong }
        }
    }
}
