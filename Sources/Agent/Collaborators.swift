import Blocks
import HostControl
import PhysicalCopy
import SCSI
import Synchronization
import TableOfContents

/// A line to one host's control socket; ``HostClient`` is it, tests record.
public protocol HostLine: AnyObject, Sendable {
    /// The control socket's path.
    var path: String { get }
    func call<M: ControlMethod>(
        _ method: M.Type, _ parameters: M.Parameters, timeout: Double
    ) throws(AgentError) -> M.Result
    /// An epoch begun on it is held by nobody afterwards.
    func close()
}

extension HostClient: HostLine {}

extension HostLine {
    func call<M: ControlMethod>(_ method: M.Type, _ parameters: M.Parameters) throws(AgentError) -> M.Result {
        try call(method, parameters, timeout: ClientLimits.hostAnswerSeconds)
    }
    func status() throws(AgentError) -> VolumeStatus { try call(VolumeStatusMethod.self, Empty()) }
}

/// What a sequence asks of a bridge: ``Initiator`` is it, tests record.
public protocol ThirdPartyCopier: AnyObject, Sendable {
    /// What it is called in messages.
    var name: String { get }
    func unit(_ number: Int) throws(AgentError) -> UnitDescription
    /// The copy manager's limits, as that unit tells them.
    func planLimits(of unit: UnitDescription) throws(AgentError) -> PlanLimits
    /// Executes one EXTENDED COPY to its end.
    func copy(
        to unit: UnitDescription, _ list: CopyParameterList, isCancelled: @escaping @Sendable () -> Bool
    ) throws(AgentError)
    /// Bytes that a running copy has written, as far as the copy manager knows it.
    func copiedBytes(of listIdentifier: UInt8, at unit: UnitDescription) -> UInt64?
    /// The unit's blocks as a store; flushed by SYNCHRONIZE CACHE, zeroed by WRITE SAME.
    /// - Parameter isCancelled: true makes operations under way fail with ``StoreError/Code/gone``.
    func store(
        of unit: UnitDescription, isCancelled: @escaping @Sendable () -> Bool
    ) throws(AgentError) -> any BlockStore
    /// Has the unit keep checksums of what is written to it, from now on; with a length of 0 none any more.
    /// - Returns: false where it cannot.
    func keepChecksums(_ keeping: ChecksumKeeping, of unit: UnitDescription) throws(AgentError) -> Bool
    /// What they are by now; nil where the unit does not keep these.
    func checksums(
        _ keeping: ChecksumKeeping, of unit: UnitDescription
    ) throws(AgentError) -> ChecksumTable?
    /// Ends the session; commands in flight are aborted by the target.
    func close()
}

extension ThirdPartyCopier {
    func store(of unit: UnitDescription) throws(AgentError) -> any BlockStore {
        try store(of: unit) { false }
    }
    func keepChecksums(_ keeping: ChecksumKeeping, of unit: UnitDescription) throws(AgentError) -> Bool {
        false
    }
    func checksums(
        _ keeping: ChecksumKeeping, of unit: UnitDescription
    ) throws(AgentError) -> ChecksumTable? { nil }
}

extension Initiator: ThirdPartyCopier {
    public var name: String { "\(address)" }

    public func unit(_ number: Int) throws(AgentError) -> UnitDescription { try describe(lun: number) }

    public func planLimits(of unit: UnitDescription) throws(AgentError) -> PlanLimits {
        PlanLimits(try copyOperatingParameters(lun: unit.number))
    }

    public func copy(
        to unit: UnitDescription, _ list: CopyParameterList, isCancelled: @escaping @Sendable () -> Bool
    ) throws(AgentError) {
        try extendedCopy(lun: unit.number, list, patience: .unlimited(isCancelled: isCancelled))
    }

    public func copiedBytes(of listIdentifier: UInt8, at unit: UnitDescription) -> UInt64? {
        // A list that has ended meanwhile is not known any more: no progress is told, and that is no failure.
        try? copyStatus(lun: unit.number, listIdentifier: listIdentifier).transferredBytes
    }

    public func store(
        of unit: UnitDescription, isCancelled: @escaping @Sendable () -> Bool
    ) throws(AgentError) -> any BlockStore {
        let store = try ISCSIStore(self, lun: unit.number, patience: Patience(isCancelled: isCancelled))
        // All that is planned is within what it was; a cache may have grown.
        guard store.size >= unit.size, store.unit.capacity.blockLength == unit.capacity.blockLength else {
            throw AgentError(
                .unavailable, doing: "using unit \(unit.number) of", to: name,
                because: "it has \(store.size) bytes now and had \(unit.size), or blocks of another length",
                advice: "see what has been done to it, and copy again")
        }
        return store
    }

    public func keepChecksums(
        _ keeping: ChecksumKeeping, of unit: UnitDescription
    ) throws(AgentError) -> Bool {
        unit.isOurs ? try keepChecksums(keeping, lun: unit.number) : false
    }

    public func checksums(
        _ keeping: ChecksumKeeping, of unit: UnitDescription
    ) throws(AgentError) -> ChecksumTable? { try checksums(keeping, lun: unit.number) }
}

/// A unit that a private bridge shall have.
public struct PrivateUnit: Hashable, Sendable {
    public var number: Int
    public var path: String
    public var isReadOnly: Bool
    /// Whether the bridge takes it for itself when it is written; false where a host that stands still has it locked.
    public var isLocked = true

    public init(_ number: Int, _ path: String, isReadOnly: Bool) {
        self.number = number
        self.path = path
        self.isReadOnly = isReadOnly
    }

    /// As `--private-unit` of `bridge` takes it: `N:[ro][nolock]:PATH`, so that no path reads as a flag.
    var argument: String { "\(number):\(isReadOnly ? "ro" : isLocked ? "" : "nolock"):\(path)" }
}

/// A bridge that was reached: the session, and whether it is ours to end.
public protocol BridgeConnection: AnyObject, Sendable {
    var copier: any ThirdPartyCopier { get }
    /// Whether it is gone though nobody has ended it here, as far as is known.
    var isLost: Bool { get }
    /// Ends the session, and a private bridge with it, so that its files are closed. May be called again.
    func end()
}

/// What the sequences need of the world. The command line fills it: the agent opens no files by itself.
public struct Collaborators: Sendable {
    /// Opens a file or device of this machine. The flag: it will be written.
    public var openStore: @Sendable (String, Bool) throws(AgentError) -> any BlockStore
    public var connectHost: @Sendable (String) throws(AgentError) -> any HostLine
    /// The logical snapshot that a host with that status serves while an epoch is open.
    public var openSnapshot: @Sendable (VolumeStatus) throws(AgentError) -> any BlockStore
    /// Has processes of their own read the file systems of a volume of that size, and hands on what they hold.
    public var readVolume:
        @Sendable (VolumeAddress, UInt64, ReadScope, any RecordSink, CancellationToken) throws(AgentError) ->
            VolumeReading.Summary
    public var startPrivateBridge:
        @Sendable ([PrivateUnit], CancellationToken) throws(AgentError) -> any BridgeConnection
    public var connectBridge:
        @Sendable (BridgeAddress, CancellationToken) throws(AgentError) -> any BridgeConnection
    /// FIFREEZE and FITHAW of a mount point.
    public var freezeFileSystem: @Sendable (String) throws(AgentError) -> Void
    public var thawFileSystem: @Sendable (String) throws(AgentError) -> Void
    /// The numbers (st_dev) of the file system that a path lies on, first, and of all that that one lies on in its turn.
    public var fileSystems: @Sendable (String) throws(AgentError) -> [UInt64]
    /// Seconds after which a host that stands still for a restore thaws by itself, unless that is renewed.
    public var restoreFreezeSeconds = AgentLimits.restoreFreezeSeconds
    /// Runs a command by the shell. Throws unless it ends with status 0. With a token it is ended when that is
    /// cancelled.
    public var runCommand: @Sendable (String, CancellationToken?) throws(AgentError) -> Void
    /// Starts what thaws these mount points and runs that command if this process ends before it is dismissed.
    public var startThawGuard: @Sendable ([String], String?) throws(AgentError) -> any ThawGuard
    /// Nanoseconds between two checkpoints of a raw pass.
    public var checkpointNanoseconds = UInt64(AgentLimits.checkpointSeconds * 1e9)
    /// What fills restored files from a copy's data.
    public var fileMover: @Sendable (RestoreSource, CancellationToken) throws(AgentError) -> any FileMover
    /// What storage of this machine a path is; nil: nobody knows.
    public var storageName: @Sendable (String) -> StorageName? = { StorageName(path: $0) }
    /// The file system that copies are made on.
    public var files = FileSystemCalls()
    /// Nanoseconds since 1970.
    public var realTime: @Sendable () -> Int64

    /// The real ones.
    /// - Parameters:
    ///   - executable: the program whose command `bridge` a private bridge is.
    ///   - notice: called with what people should know of a private bridge.
    ///   - openStore: see ``openStore``.
    public init(
        executable: String, notice: @escaping @Sendable (String) -> Void = { _ in },
        openStore: @escaping @Sendable (String, Bool) throws(AgentError) -> any BlockStore
    ) {
        self.openStore = openStore
        connectHost = { path throws(AgentError) in try HostClient(path: path) }
        openSnapshot = { status throws(AgentError) in
            try NBDStore(.unixSocket(status.socket, export: "snapshot"))
        }
        readVolume = { volume, size, scope, sink, cancellation throws(AgentError) in
            try VolumeReading(nbd: volume.uri, volumeSize: size, executable: executable)
                .run(scope, into: sink, cancellation: cancellation)
        }
        startPrivateBridge = { units, cancellation throws(AgentError) in
            try BridgeProcess(
                executable: executable, units: units, cancellation: cancellation, notice: notice)
        }
        connectBridge = { address, cancellation throws(AgentError) in
            try StandingBridge(address, cancellation: cancellation)
        }
        freezeFileSystem = { path throws(AgentError) in try FileSystemFreeze.freeze(path) }
        thawFileSystem = { path throws(AgentError) in try FileSystemFreeze.thaw(path) }
        fileSystems = { path throws(AgentError) in try FileSystems.under(path) }
        runCommand = { command, token throws(AgentError) in try ShellCommand.run(command, token) }
        startThawGuard = { mountPoints, command throws(AgentError) in
            try ThawGuardProcess(executable: executable, mountPoints, command)
        }
        fileMover = { data, _ in StoreFileMover(data) }
        realTime = { ShellCommand.realTime() }
    }
}

/// A session with a bridge that somebody else runs.
final class StandingBridge: BridgeConnection {
    private let initiator: Initiator
    private let isEnded = Atomic(false)
    var copier: any ThirdPartyCopier { initiator }
    var isLost: Bool { !isEnded.load(ordering: .acquiring) && !initiator.isConnected }

    init(_ address: BridgeAddress, cancellation: CancellationToken) throws(AgentError) {
        initiator = try Initiator(address) { cancellation.isCancelled }
    }

    func end() {
        isEnded.store(true, ordering: .releasing)
        initiator.close()
    }
}

/// Something that a sequence reports while it runs.
public struct SequenceProgress: Hashable, Sendable {
    /// What is being done, for people: `copying`.
    public var phase: String
    /// Bytes done and in all; 0 in all: not known.
    public var done: UInt64
    public var total: UInt64
    /// How full the original image cache is, 0 to 1, where there is one.
    public var cacheFill: Double?
    /// Seconds until it is full, if applications go on as in the last seconds; nil: it does not fill, or nobody knows.
    public var secondsToFull: Double?

    /// The phase without what it says of itself in parentheses, which changes: one of few names.
    public var phaseName: String {
        phase.firstRange(of: " (").map { String(phase[..<$0.lowerBound]) } ?? phase
    }

    public init(
        phase: String, done: UInt64, total: UInt64, cacheFill: Double? = nil, secondsToFull: Double? = nil
    ) {
        self.phase = phase
        self.done = done
        self.total = total
        self.cacheFill = cacheFill
        self.secondsToFull = secondsToFull
    }
}

/// Where a sequence tells how far it is. Called on any thread.
public protocol SequenceObserver: AnyObject, Sendable {
    func progress(_ progress: SequenceProgress)
    /// Something that people should know though nothing failed.
    func notice(_ text: String)
}
