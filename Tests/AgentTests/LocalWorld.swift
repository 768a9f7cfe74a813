import AsyncIO
import Blocks
import Bridge
import Foundation
import Glibc
import Host
import HostControl
import ISCSI
import Logging
import PhysicalCopy
import TableOfContents
import TestSupport

@testable import Agent

/// Real volumes, a real bridge behind real iSCSI, in one process; what is done to hosts and file systems is recorded
/// in its order, and any of it can be made to fail.
final class LocalWorld: Sendable {
    struct State {
        var log: [String] = []
        var failAt: String?
        /// The line on which that is asked is gone from then on.
        var losesLineAt: String?
        var refusesConnections = false
        /// Called when that is about to be done.
        var before: [String: @Sendable () -> Void] = [:]
        /// Called when a host is about to be asked, or has told its status.
        var asking: (@Sendable () -> Void)?
        /// Called with the name that a file of a copy has got.
        var named: (@Sendable (String) -> Void)?
        /// Called when a piece of a logical snapshot was read.
        var readSnapshot: (@Sendable () -> Void)?
        var volumes: [String: LocalVolume] = [:]
        var notices: [String] = []
        var dismissals = 0
        var checkpointNanoseconds: UInt64 = 0
        var restoreFreezeSeconds = AgentLimits.restoreFreezeSeconds
        /// What readers say of every volume.
        var contents: [VolumeRecord] = []
        /// The file systems that paths lie on; others have each their own.
        var fileSystems: [String: UInt64] = [:]
    }
    let directory: String
    let state = Monitor(State())

    init() {
        var template = Array("/tmp/outboard-agent-XXXXXX".utf8CString)
        directory = String(cString: mkdtemp(&template)!)
    }

    deinit { try? FileManager.default.removeItem(atPath: directory) }

    func path(_ name: String) -> String { directory + "/" + name }
    var log: [String] { state.withLock { $0.log } }
    var names: [String] { (try? FileManager.default.contentsOfDirectory(atPath: directory).sorted()) ?? [] }

    /// What a copy that failed has left.
    func postMortem(_ name: String) throws -> PostMortem {
        guard let found = try AbandonedCopy.find(path(name)) else {
            throw AgentError(.software, doing: "looking for", to: name, because: "no abandoned copy is there")
        }
        return found.postMortem
    }

    /// Records, and fails where it shall.
    func record(_ what: String) throws(AgentError) {
        let (fails, hook) = state.withLock { state -> (Bool, (@Sendable () -> Void)?) in
            state.log.append(what)
            return (state.failAt == what, state.before[what])
        }
        hook?()
        if fails { throw AgentError(.io, doing: what, to: "", because: "the test says so") }
    }

    static func open(_ path: String, _ writable: Bool) throws(AgentError) -> any BlockStore {
        do throws(StorageError) {
            return try StorageFile.open(
                path, access: writable ? .readWrite : .readOnly, mode: .pageCache, lock: .none)
        } catch { throw AgentError(.inputMissing, doing: "opening", to: path, because: "\(error)") }
    }

    func addVolume(
        _ name: String, size: Int, seed: UInt64, cache: Int = 8 << 20,
        onCacheFull: CacheFullPolicy = .abandon,
        hook: CheckpointHook? = nil
    ) throws -> LocalVolume {
        let volume = try LocalVolume(
            name, in: self, size: size, seed: seed, cache: cache, onCacheFull: onCacheFull, hook: hook)
        state.withLock { $0.volumes[name] = volume }
        return volume
    }

    func collaborators() -> Collaborators {
        var world = Collaborators(executable: "/nonexistent") { path, writable throws(AgentError) in
            try LocalWorld.open(path, writable)
        }
        world.connectHost = { [self] control throws(AgentError) in
            let name = control.split(separator: ".").first.map(String.init) ?? ""
            guard let volume = state.withLock({ $0.refusesConnections ? nil : $0.volumes[name] }) else {
                throw AgentError(.unavailable, doing: "reaching", to: control, because: "absent")
            }
            return LocalLine(volume, self)
        }
        world.openSnapshot = { [self] status throws(AgentError) in
            state.withLock { $0.before["open snapshot"] }?()
            let snapshot = try snapshot(of: status.socket)
            return state.withLock { $0.readSnapshot }.map { WatchedSnapshot(snapshot, $0) } ?? snapshot
        }
        world.readVolume = { [self] address, _, scope, sink, token throws(AgentError) in
            let snapshot = try snapshot(of: address.socket)
            try record(scope.contains(.use) ? "read use" : "read files")
            do throws(TocError) {
                for item in state.withLock({ $0.contents }) { try sink.put(item) }
            } catch { throw AgentError(error) }
            if token.isCancelled { throw CancellationToken.interrupted }
            // Of an epoch that is over nothing can be read.
            _ = try onStore("reading", "the snapshot") { () throws(StoreError) in
                try snapshot.bytes(at: 0, count: 512)
            }
            return VolumeReading.Summary()
        }
        world.startPrivateBridge = { [self] units, cancellation throws(AgentError) in
            try record("bridge")
            return try LocalBridge(units, self)
        }
        world.freezeFileSystem = { [self] path throws(AgentError) in try record("freeze \(path)") }
        world.thawFileSystem = { [self] path throws(AgentError) in try record("thaw \(path)") }
        world.runCommand = { [self] command, _ throws(AgentError) in try record("run \(command)") }
        world.fileSystems = { [self] path throws(AgentError) in
            state.withLock { [$0.fileSystems[path] ?? UInt64(path.hash.magnitude) | 1 << 63] }
        }
        world.checkpointNanoseconds = state.withLock { $0.checkpointNanoseconds }
        world.restoreFreezeSeconds = state.withLock { $0.restoreFreezeSeconds }
        world.files.renameat = { [self, rename = world.files.renameat] directory, old, new, flags in
            let outcome = rename(directory, old, new, flags)
            state.withLock { $0.named }?(new)
            return outcome
        }
        world.startThawGuard = { [self] _, _ throws(AgentError) in LocalGuard(self) }
        return world
    }

    private func snapshot(of name: String) throws(AgentError) -> any BlockStore {
        guard let snapshot = state.withLock({ $0.volumes[name] })?.volume.snapshot else {
            throw AgentError(.inputMissing, doing: "opening the snapshot", to: "", because: "none")
        }
        return snapshot
    }

    func copy(
        _ request: CopyRequest, cancellation: CancellationToken = CancellationToken()
    ) async throws -> [CopyOutcome] {
        try await onThread { [self] in
            try CopySequence(request, collaborators(), cancellation: cancellation, observer: self).run()
        }
    }

    /// One whose copy is in `copy`.
    func member(_ name: String) -> CopyRequest.Member {
        .init(control: "\(name).ctl", destination: path("copy"))
    }

    /// The same with a bridge that has its oddities.
    func copy(
        _ request: CopyRequest, cancellation: CancellationToken = CancellationToken(),
        oddly change: (inout OddBridge.Oddities) -> Void
    ) async throws -> [CopyOutcome] {
        var oddities = OddBridge.Oddities()
        change(&oddities)
        var world = collaborators()
        world.startPrivateBridge = { [self, oddities] units, _ throws(AgentError) in
            try record("bridge")
            let replaced = units.map { unit in
                var unit = unit
                unit.path = oddities.replace[unit.number] ?? unit.path
                return unit
            }
            return OddBridge(try LocalBridge(replaced, self), oddities)
        }
        world.connectBridge = { [self, oddities] _, _ throws(AgentError) in
            let units = oddities.replace.sorted { $0.key < $1.key }.map {
                PrivateUnit($0.key, $0.value, isReadOnly: $0.key < 2)
            }
            return OddBridge(try LocalBridge(units, self), oddities)
        }
        return try await onThread { [self, world] in
            try CopySequence(request, world, cancellation: cancellation, observer: self).run()
        }
    }

    func restore(
        _ request: RestoreRequest, cancellation: CancellationToken = CancellationToken(),
        oddly change: (inout OddBridge.Oddities) -> Void = { _ in }
    ) async throws -> RestoreOutcome {
        var oddities = OddBridge.Oddities()
        change(&oddities)
        var world = collaborators()
        let start = world.startPrivateBridge
        world.startPrivateBridge = { [oddities] units, cancellation throws(AgentError) in
            OddBridge(try start(units, cancellation), oddities)
        }
        return try await onThread { [self, world] in
            try RestoreSequence(request, world, cancellation: cancellation, observer: self).run()
        }
    }
}

extension LocalWorld: SequenceObserver {
    func progress(_ progress: SequenceProgress) {}
    func notice(_ text: String) { state.withLock { $0.notices.append(text) } }
}

/// Runs what blocks on a thread of its own.
func onThread<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) async throws -> Result {
    try await withCheckedThrowingContinuation { continuation in
        precondition(BlockingThread.start { continuation.resume(with: Swift.Result { try body() }) })
    }
}

/// A host's volume on files.
final class LocalVolume: Sendable {
    let name: String
    let uuid = UUID()
    let sourcePath: String
    let cachePath: String
    let volume: CopyOnWriteVolume
    let size: Int

    init(
        _ name: String, in world: LocalWorld, size: Int, seed: UInt64, cache: Int,
        onCacheFull: CacheFullPolicy, hook: CheckpointHook?
    ) throws {
        self.name = name
        self.size = size
        sourcePath = world.path("\(name).source")
        cachePath = world.path("\(name).cache")
        var bytes = seededBytes(size, seed: seed)
        for start in stride(from: 0, to: size, by: 32768) {
            let end = min(start + 8192, size)
            bytes.replaceSubrange(start..<end, with: repeatElement(0, count: end - start))
        }
        try Data(bytes).write(to: URL(fileURLWithPath: sourcePath))
        try Data(count: cache).write(to: URL(fileURLWithPath: cachePath))
        volume = try CopyOnWriteVolume(
            source: LocalWorld.open(sourcePath, true), cache: LocalWorld.open(cachePath, true),
            settings: VolumeSettings(
                uuid: uuid, chunkSize: 16384, durability: .process, onCacheFull: onCacheFull, boot: UUID()),
            defects: [], hook: hook)
    }

    var contents: [UInt8] { Array(FileManager.default.contents(atPath: sourcePath) ?? Data()) }

    /// Overwrites places all over the volume.
    func scribble(_ seed: UInt64, times: Int = 40) {
        var random = SeededGenerator(seed: seed)
        for _ in 0..<times {
            let start = Int.random(in: 0..<size, using: &random)
            let count = Int.random(in: 1...min(40_000, size - start), using: &random)
            let bytes = [UInt8](repeating: UInt8.random(in: 1...255, using: &random), count: count)
            do { try volume.write(bytes, at: UInt64(start)) } catch { preconditionFailure("\(error)") }
        }
    }
}

/// Tells when it was dismissed.
final class LocalGuard: ThawGuard {
    private let world: LocalWorld
    init(_ world: LocalWorld) { self.world = world }
    func freezesNext() {}
    func dismiss() { world.state.withLock { $0.dismissals += 1 } }
}

/// The control line of a volume, recorded.
final class LocalLine: HostLine {
    let volume: LocalVolume
    let world: LocalWorld
    let holder = EpochHolder()
    let isLost = Monitor(false)
    var path: String { volume.name + ".ctl" }

    init(_ volume: LocalVolume, _ world: LocalWorld) {
        self.volume = volume
        self.world = world
    }

    func close() { volume.volume.disconnect(holder) }

    func call<M: ControlMethod>(
        _ method: M.Type, _ parameters: M.Parameters, timeout: Double
    ) throws(AgentError) -> M.Result {
        let asking = world.state.withLock { $0.asking }
        let isStatus = M.name == VolumeStatusMethod.name
        if !isStatus {
            asking?()
            try world.record("\(M.name) \(volume.name)")
        }
        defer { if isStatus { asking?() } }
        if world.state.withLock({ $0.losesLineAt == "\(M.name) \(volume.name)" }) {
            isLost.withLock { $0 = true }
            holder.release()
        }
        if isLost.withLock({ $0 }) {
            throw AgentError(
                .unavailable, doing: M.name, to: path, because: "lost", cause: .disconnected)
        }
        do {
            return try answer(M.name, parameters) as! M.Result
        } catch let error as ControlError {
            throw AgentError(
                .tryAgain, doing: M.name, to: path, because: error.message, cause: .control(error.code))
        } catch { preconditionFailure("\(error)") }
    }

    private func answer(_ method: String, _ parameters: any Codable) throws -> any Codable {
        let volume = volume.volume
        switch (method, parameters) {
        case (_, let freeze as VolumeFreezeMethod.Parameters):
            try volume.freeze(timeout: freeze.timeout, renew: freeze.renew ?? false, holder: holder)
            return Empty()
        case (SnapshotMarkMethod.name, let epoch as EpochParameters):
            return try volume.mark(epoch: UUID(uuidString: epoch.epoch)!)
        case (SnapshotEndMethod.name, let epoch as EpochParameters):
            return try volume.end(epoch: UUID(uuidString: epoch.epoch)!)
        case (CacheReleaseMethod.name, let epoch as EpochParameters):
            try volume.release(epoch: UUID(uuidString: epoch.epoch)!)
            return Empty()
        case (SnapshotAdoptMethod.name, let epoch as EpochParameters):
            return try volume.adopt(epoch: UUID(uuidString: epoch.epoch)!, holder: holder)
        case (_, let passed as SnapshotPassedMethod.Parameters):
            if !passed.extents.isEmpty { try world.record("passed extents of \(self.volume.name)") }
            try volume.passed(passed.extents, epoch: UUID(uuidString: passed.epoch)!)
            return Empty()
        case (_, let changes as SnapshotChangesMethod.Parameters):
            return try volume.changes(before: UUID(uuidString: changes.epoch)!, from: changes.from)
        case (SnapshotBeginMethod.name, _): return try volume.begin(holder: holder)
        case (VolumeThawMethod.name, _):
            return VolumeThawMethod.Result(wasFrozen: try volume.thaw(by: holder))
        default:
            return volume.status(
                of: HostDescriptor(
                    source: self.volume.sourcePath, cache: self.volume.cachePath, uris: [],
                    socket: self.volume.name))
        }
    }
}

/// Tells of each read.
private final class WatchedSnapshot: ReadOnlyStore {
    private let below: any BlockStore
    private let hasRead: @Sendable () -> Void
    var size: UInt64 { below.size }
    var capabilities: StoreCapabilities { below.capabilities }

    init(_ below: any BlockStore, _ hasRead: @escaping @Sendable () -> Void) {
        self.below = below
        self.hasRead = hasRead
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try below.read(at: offset, into: buffer)
        hasRead()
    }
    func flush() throws(StoreError) {}
}

/// The bridge module behind its iSCSI transport, and our initiator.
final class LocalBridge: BridgeConnection {
    private let initiator: Initiator
    private let target: ISCSITarget
    private let world: LocalWorld
    private let isOver = Monitor(false)
    var copier: any ThirdPartyCopier { initiator }
    var isLost: Bool { !isOver.withLock { $0 } && !initiator.isConnected }

    init(_ units: [PrivateUnit], _ world: LocalWorld) throws(AgentError) {
        self.world = world
        let started = Monitor<Result<ISCSITarget, any Error>?>(nil)
        let name = "iqn.2026-01.net.outboard:test"
        Task.detached {
            let result: Result<ISCSITarget, any Error>
            do {
                let device = try BridgeDevice(
                    units: units.map { unit in
                        var made = BridgeUnit(number: unit.number, path: unit.path, readOnly: unit.isReadOnly)
                        made.isLocked = unit.isLocked
                        return made
                    }, logger: Logger(label: "bridge") { _ in SwiftLogNoOpLogHandler() })
                result = .success(
                    try await ISCSITarget.start(
                        device: device,
                        configuration: ISCSITargetConfiguration(host: "127.0.0.1", port: 0, targetName: name),
                        logger: Logger(label: "iscsi") { _ in SwiftLogNoOpLogHandler() }))
            } catch { result = .failure(error) }
            started.withLockAndNotify { $0 = result }
        }
        do { target = try started.wait { $0 }.get() } catch {
            var status = AgentError.ExitStatus.inputMissing
            // As a bridge's process says it. A child that another test starts has our locks until its program begins.
            if case BridgeError.storage(_, let failure) = error, failure.kind == .locked {
                status = .tryAgain
            }
            throw AgentError(status, doing: "starting a bridge", to: "", because: "\(error)")
        }
        initiator = try Initiator(BridgeAddress(host: "127.0.0.1", port: target.port, targetName: name))
    }

    /// The session is gone all at once, as when the bridge's process is killed.
    func die() { initiator.close() }

    func end() {
        guard
            !isOver.withLock({ over in
                defer { over = true }
                return over
            })
        else { return }
        initiator.close()
        let over = Monitor(false)
        Task.detached { [target] in
            await target.shutdown()
            over.withLockAndNotify { $0 = true }
        }
        over.wait { $0 ? () : nil }
    }
}

extension Monitor where State == Int {
    /// Counts one more.
    func next() -> Int {
        withLockAndNotify { count in
            count += 1
            return count
        }
    }
}
