import Blocks
import Foundation
import Glibc
import PhysicalCopy
import TableOfContents

/// A backup that is restored from: it passes by once. What is restored is known to be whole only when all of it has
/// passed: a new file gets its name only then, and what is there is half done until then. Its table of contents comes
/// first, so that it is known whose the data are that pass.
final class BackupOrigin: RestoreOrigin {
    let name: String
    private let context: RestoreContext
    private let reader: BackupReader
    /// Has the table of contents, which has to be a file to be asked; nobody else's to look into.
    private var directory: String?
    /// Of the stream, when all of it has passed.
    private(set) var bytesRead: UInt64 = 0
    private var isOver = false

    /// - Parameter path: a file, a device, or `-` for standard input.
    init(_ path: String, _ context: RestoreContext) throws(AgentError) {
        name = path
        self.context = context
        reader = try BackupReader.open(path, context.cancellation)
    }

    var manifest: Manifest { reader.manifest }
    var path: String? { name == "-" ? nil : name }

    func close() {
        guard let directory else { return }
        unlink(directory + "/" + TocDescription.fileName)
        rmdir(directory)
    }

    /// Reads the data, and applies the plan to them as they pass.
    private func pass(
        _ plan: RestorePlan, to target: any RestoreTarget, rate: UInt64? = nil,
        check: () throws(AgentError) -> Void = {}
    ) throws(AgentError) {
        try reader.restore(
            plan, to: target, rate: rate, context.cancellation, context.observer, check: check)
        bytesRead = try onCopy { () throws(CopyError) in try reader.finish() }
        isOver = true
        try target.flush()
    }

    // MARK: A volume, or extents of it

    /// How much of it are holes is not known yet, so how much space it takes is not either.
    func space(for plan: RestorePlan) -> UInt64 { 0 }

    func check(_ plan: RestorePlan, _ request: RestoreRequest) {}

    func restore(
        _ plan: RestorePlan, _ request: RestoreRequest, to site: RestoreSite
    ) throws(AgentError) -> UInt64 {
        let destination = try Destination(request, site, context)
        defer { destination.close() }
        let store = destination.store
        try request.requireRoom(
            for: plan, store.size, isWritable: store.capabilities.contains(.writable))
        let target = VolumeTarget(
            store, isBlank: site.isBlank, named: request.destination, context.cancellation)
        _ = try onCopy { () throws(CopyError) in try reader.readToc() }
        site.begin()
        try pass(plan, to: target, rate: request.maximumRate) { () throws(AgentError) in try site.check() }
        return reader.originals
    }

    // MARK: Files

    func tableOfContents() throws(AgentError) -> TocDatabase {
        guard reader.manifest.toc != nil else {
            throw AgentError(
                .inputMissing, doing: "reading the table of contents of", to: name,
                because: "it has none", advice: "restore the volume, and have it made with `outboard toc`")
        }
        let directory = try Self.makeDirectory()
        self.directory = directory
        let path = directory + "/" + TocDescription.fileName
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw AgentError.system(errno, doing: "making", to: path, otherwise: .cannotCreate)
        }
        defer { Glibc.close(descriptor) }
        var position: UInt64 = 0
        var failure: AgentError?
        do throws(CopyError) {
            _ = try reader.readToc { [context] bytes throws(CopyError) in
                do throws(AgentError) {
                    try context.cancellation.check()
                    try FileCalls.write(bytes, to: descriptor, at: position)
                } catch {
                    failure = error
                    throw error.copyError
                }
                position += UInt64(bytes.count)
            }
        } catch { throw failure ?? AgentError(error) }
        return try openToc(at: path, of: reader.manifest, in: name)
    }

    private static func makeDirectory() throws(AgentError) -> String {
        let parent = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/var/tmp"
        var template = Array("\(parent)/outboard-toc-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else {
            throw AgentError.system(
                errno, doing: "making a directory in", to: parent, otherwise: .cannotCreate)
        }
        return String(cString: made)
    }

    /// All of them at once: the data pass by once.
    var batchFiles: Int { .max }

    func fill(_ batch: FileBatch, checksSlices: Bool) throws(AgentError) {
        try pass(batch.plan, to: FileTargets(batch))
    }

    /// Where nothing of the data was wanted, whoever writes into the pipe goes on to the end nevertheless.
    func finish() throws(AgentError) {
        guard !isOver else { return }
        try pass(RestorePlan([]), to: MemoryTarget(UnsafeMutableRawBufferPointer(start: nil, count: 0)))
    }
}

/// Where a volume from a backup is written: a file or device of this machine, which nobody else may write meanwhile, or
/// a standing bridge's unit.
private final class Destination {
    let store: any BlockStore
    private let lock: Int32
    private let bridge: (any BridgeConnection)?

    init(
        _ request: RestoreRequest, _ site: RestoreSite, _ context: RestoreContext
    ) throws(AgentError) {
        let world = context.world
        if let unit = request.unit {
            let bridge = try world.connectBridge(unit.bridge, context.cancellation)
            do throws(AgentError) {
                store = try bridge.copier.store(
                    of: bridge.copier.unit(unit.number), isCancelled: context.isStopped(site))
            } catch {
                bridge.end()
                throw error
            }
            self.bridge = bridge
            lock = -1
            return
        }
        bridge = nil
        lock = site.isLocked ? -1 : try Self.lock(site.path)
        do throws(AgentError) { store = try world.openStore(site.path, true) } catch {
            if lock >= 0 { Glibc.close(lock) }
            throw error
        }
    }

    private static func lock(_ path: String) throws(AgentError) -> Int32 {
        // Not opened exclusively: while it is, the system refuses to make zeros on a device by another descriptor.
        let descriptor = open(path, O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else { throw AgentError.system(errno, doing: "restoring to", to: path) }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK else {
            Glibc.close(descriptor)
            throw AgentError(.tryAgain, doing: "restoring to", to: path, because: "it is in use")
        }
        return descriptor
    }

    func close() {
        if lock >= 0 { Glibc.close(lock) }
        bridge?.end()
    }
}

extension BackupReader {
    /// - Parameter path: a file, a device, or `-` for standard input.
    static func open(_ path: String, _ cancellation: CancellationToken) throws(AgentError) -> BackupReader {
        func check() throws(CopyError) {
            do throws(AgentError) { try cancellation.check() } catch { throw error.copyError }
        }
        return try onCopy { () throws(CopyError) in
            try BackupReader(BackupInput(argument: path, check: check))
        }
    }

    /// Reads the data and applies a plan to them.
    /// - Parameter check: called often; throws to stop.
    func restore(
        _ plan: RestorePlan, to target: any RestoreTarget, rate: UInt64? = nil,
        _ cancellation: CancellationToken, _ observer: any SequenceObserver,
        check: () throws(AgentError) -> Void = {}
    ) throws(AgentError) {
        var restore = PassingRestore(plan, to: target)
        var done: UInt64 = 0
        let started = MonotonicClock.now
        // The reader's steps throw its own errors; what was ours is kept aside.
        var failure: AgentError?
        func own(_ body: () throws(AgentError) -> Void) throws(CopyError) {
            do throws(AgentError) { try body() } catch {
                failure = error
                throw error.copyError
            }
        }
        do throws(CopyError) {
            try readData { count throws(CopyError) in
                done += count
                observer.progress(SequenceProgress(phase: "restoring", done: done, total: dataBytes))
                try own { () throws(AgentError) in
                    try cancellation.check()
                    try check()
                    guard let rate else { return }
                    let due = started &+ UInt64(Double(restore.bytes) / Double(rate) * 1e9)
                    let now = MonotonicClock.now
                    if due > now { try cancellation.pause(nanoseconds: due - now) }
                }
            } to: { offset, passing throws(CopyError) in
                try own { () throws(AgentError) in try restore.take(offset, passing) }
            }
        } catch { throw failure ?? AgentError(error) }
    }
}
