import Blocks
import Glibc
import HostControl
import PhysicalCopy
import TableOfContents

/// Compares a copy, as the volume that it is, with the logical snapshot of the epoch that it was made under, while that is open
/// still: with the source and the originals themselves, and not with what the copy says of itself.
public struct SnapshotComparison {
    /// What it found.
    public struct Report: Codable, Hashable, Sendable {
        /// Bytes that are the same.
        public var bytes: UInt64 = 0
        /// Bytes that could not be compared: the copy had passed them, so that the host kept no originals when they were
        /// overwritten.
        public var goneBytes: UInt64 = 0
        /// Bytes that were not compared because they are not in use, and so not copied.
        public var unusedBytes: UInt64 = 0
        /// Chunks of the copy that differ, at most ``CopyLimits/findings``, and how many more.
        public var different: [Difference] = []
        public var moreDifferences: UInt64 = 0
        public var isSame: Bool { different.isEmpty }
    }

    public struct Difference: Codable, Hashable, Sendable {
        /// Bytes of the volume: the chunk, as far as it was compared.
        public var offset: UInt64
        public var length: UInt64
        /// The first byte that differs.
        public var firstByte: UInt64
    }

    private let source: RestoreSource
    private let control: String
    private let world: Collaborators
    private let cancellation: CancellationToken
    private let observer: any SequenceObserver

    /// - Parameter control: of the host, its control socket.
    public init(
        _ source: RestoreSource, control: String, _ world: Collaborators,
        cancellation: CancellationToken, observer: any SequenceObserver
    ) {
        self.source = source
        self.control = control
        self.world = world
        self.cancellation = cancellation
        self.observer = observer
    }

    /// - Throws: 66 when the host serves another volume; 75 when the copy's epoch is not open any more.
    public func run() throws(AgentError) -> Report {
        let line = try world.connectHost(control)
        defer { line.close() }
        let status = try line.status()
        try requireEpoch(status)
        var report = Report()
        do throws(AgentError) {
            let snapshot = try world.openSnapshot(status)
            guard snapshot.size == source.copy.manifest.volume.size else {
                throw refusal(.inputMissing, "its logical snapshot has another size")
            }
            try compare(snapshot, try ranges(status, &report), line, &report)
        } catch {
            // The snapshot goes away when its epoch does: then that is the reason.
            if error.status != .tryAgain { try requireEpoch(line.status()) }
            throw error
        }
        return report
    }

    private func refusal(
        _ status: AgentError.ExitStatus, _ reason: String, advice: String? = nil
    ) -> AgentError {
        AgentError(
            status, doing: "comparing \(source.copy.directory) with the host at", to: control,
            because: reason, advice: advice)
    }

    private func requireEpoch(_ status: VolumeStatus) throws(AgentError) {
        let manifest = source.copy.manifest
        guard status.volumeUUID.lowercased() == manifest.volume.uuid.lowercased() else {
            throw refusal(
                .inputMissing, "it serves another volume than the copy's",
                advice: "name the control socket of the host of \(manifest.volume.source)")
        }
        let keep =
            "to compare a copy, make it with `outboard copy --end after-cache-copy --keep-epoch`, and "
            + "compare before `outboard release` and the next copy"
        guard let epoch = status.epoch, epoch.uuid.lowercased() == manifest.epoch.uuid.lowercased() else {
            throw refusal(.tryAgain, "the epoch of the copy is over", advice: keep)
        }
        guard epoch.state == .open else {
            let why = epoch.voidReason.map { ": \($0)" } ?? ""
            throw refusal(.tryAgain, "the epoch of the copy is \(epoch.state.rawValue)\(why)", advice: keep)
        }
    }

    /// What was copied: all, or what is in use in the snapshot.
    private func ranges(
        _ status: VolumeStatus, _ report: inout Report
    ) throws(AgentError) -> RangeList {
        let size = source.copy.manifest.volume.size
        guard source.copy.manifest.usedBytes != nil else { return .whole(size) }
        observer.progress(SequenceProgress(phase: "reading what is in use", done: 0, total: 0))
        let map = UsedMap(size: size)
        let address = VolumeAddress(socket: status.socket, export: "snapshot")
        _ = try world.readVolume(address, size, .use, map, cancellation)
        let used = RangeList(merging: map.ranges(alignment: 4096))
        report.unusedBytes = size - used.total
        return used
    }

    private func compare(
        _ snapshot: any BlockStore, _ ranges: RangeList, _ line: any HostLine, _ report: inout Report
    ) throws(AgentError) {
        let copy = source.volume
        let memory = ZeroedMemory(count: 2 * AgentLimits.comparedBytes)
        let half = UInt64(AgentLimits.comparedBytes)
        defer { withExtendedLifetime(memory) {} }
        var done: UInt64 = 0
        for range in ranges.ranges {
            var position = range.offset
            while position < range.end {
                try cancellation.check()
                let end = min(range.end, (position + half).roundedDown(to: half))
                let part = ByteRange(offset: position, count: end - position)
                let (ours, theirs) = (
                    UnsafeMutableRawBufferPointer(rebasing: memory.buffer[..<Int(part.count)]),
                    UnsafeMutableRawBufferPointer(rebasing: memory.buffer[Int(half)..<Int(half + part.count)])
                )
                try onStore("reading the copy's volume at", "\(part.offset)") { () throws(StoreError) in
                    try copy.read(at: part.offset, into: ours)
                }
                try compare(part, ours, theirs, snapshot, line, &report)
                position = end
                done += part.count
                observer.progress(SequenceProgress(phase: "comparing", done: done, total: ranges.total))
            }
        }
    }

    /// - Parameters:
    ///   - ours: what the copy has there.
    ///   - theirs: as much memory.
    private func compare(
        _ part: ByteRange, _ ours: UnsafeMutableRawBufferPointer, _ theirs: UnsafeMutableRawBufferPointer,
        _ snapshot: any BlockStore, _ line: any HostLine, _ report: inout Report
    ) throws(AgentError) {
        if try read(part, into: theirs, snapshot) {
            return compareRead(part, UnsafeRawBufferPointer(ours), UnsafeRawBufferPointer(theirs), &report)
        }
        // Something of it is gone: chunk by chunk, as the host has them.
        try requireEpoch(line.status())
        let chunk = source.copy.manifest.volume.chunkSize
        var position = part.offset
        while position < part.end {
            let end = min(part.end, (position + chunk).roundedDown(to: chunk))
            let place = ByteRange(offset: position, count: end - position)
            let start = Int(position - part.offset)
            let memory = UnsafeMutableRawBufferPointer(
                rebasing: theirs[start..<start + Int(place.count)])
            if try read(place, into: memory, snapshot) {
                let mine = UnsafeRawBufferPointer(rebasing: ours[start..<start + Int(place.count)])
                compareRead(place, mine, UnsafeRawBufferPointer(memory), &report)
            } else {
                try requireEpoch(line.status())
                report.goneBytes += place.count
            }
            position = end
        }
    }

    /// - Returns: false where some of it is gone, or all of the snapshot.
    private func read(
        _ range: ByteRange, into buffer: UnsafeMutableRawBufferPointer, _ snapshot: any BlockStore
    ) throws(AgentError) -> Bool {
        do throws(StoreError) {
            try snapshot.read(at: range.offset, into: buffer)
            return true
        } catch {
            if error.code == .gone { return false }
            throw AgentError(error, doing: "reading the logical snapshot at", to: "\(range.offset)")
        }
    }

    /// Of which differences are told, bytes.
    private var chunkSize: UInt64 {
        guard case .file(let file) = source.copy.manifest.data.checksums else {
            return CopyLimits.smallestChunk
        }
        return file.chunkSize
    }

    private func compareRead(
        _ range: ByteRange, _ ours: UnsafeRawBufferPointer, _ theirs: UnsafeRawBufferPointer,
        _ report: inout Report
    ) {
        let size = chunkSize
        var position = range.offset
        while position < range.end {
            let end = min(range.end, (position + size).roundedDown(to: size))
            let place = Int(position - range.offset)..<Int(end - range.offset)
            let (mine, other) = (
                UnsafeRawBufferPointer(rebasing: ours[place]), UnsafeRawBufferPointer(rebasing: theirs[place])
            )
            if memcmp(mine.baseAddress!, other.baseAddress!, place.count) == 0 {
                report.bytes += UInt64(place.count)
            } else if report.different.count < CopyLimits.findings {
                let first = mine.indices.first { mine[$0] != other[$0] } ?? 0
                report.different.append(
                    Difference(
                        offset: position, length: end - position, firstByte: position + UInt64(first)))
            } else {
                report.moreDifferences += 1
            }
            position = end
        }
    }
}
