import Blocks
import Glibc
import OriginalImage

/// The steps of ``PhysicalCopy/PhysicalCopy/integrate(_:progress:)``, each durable before the next: killed between or
/// within any two, it can be run again.
public enum IntegrateStep: Hashable, Sendable {
    /// Originals and the slices they will change are being verified, and the slices' new checksums derived.
    case verifying
    /// The manifest is about to say `integrating`.
    case marking
    /// Originals are being written onto the data.
    case replaying
    /// The data are about to be flushed.
    case flushing
    /// The changed slices are being read back and compared with the checksums that were derived.
    case comparing
    /// The manifest is about to say `integrated`.
    case completing
    /// The original-image portion is about to be cut off, and the old checksums to be removed.
    case truncating
}

/// How far `integrate` is.
public struct IntegrateProgress: Hashable, Sendable {
    public var step: IntegrateStep
    /// Bytes of this step done, and of how many.
    public var done: UInt64
    public var total: UInt64
}

extension PhysicalCopy {
    /// Writes the original images onto the data and drops their portion: afterwards the data are consistent as
    /// they stand. On a copy that is so already, it only finishes what a kill has left.
    ///
    /// Nothing is touched before all originals and all slices that will change have been verified. From these verified
    /// bytes the checksums are derived that the slices will have, and the manifest has or names them before the first write. What
    /// is read back at the end must fit them: damage done in between, by whatever, never gets a checksum that fits it.
    /// While the manifest says `integrating`, readers still merge, so a half-replayed chunk is never seen.
    /// - Parameter progress: told often; may throw to stop, as if killed.
    /// - Precondition: opened for ``Use/changing``.
    /// - Throws: `damaged` when something does not verify: nothing was changed yet, or the original images are still
    ///   there; `cannotCreate` when holes in the data need more space than there is: it can be run again.
    public func integrate(
        _ opener: DataOpener, progress: (IntegrateProgress) throws(CopyError) -> Void = { _ in }
    ) throws(CopyError) {
        // The manifest may be another run's that was killed before it had made it durable.
        try files.synchronize(lock.descriptor, "integrate \(directory)")
        if manifest.originals != nil {
            let store = try openData(writable: true, opener)
            let reader = try logReader(in: store)
            let map = try verifiedMap(reader)
            if manifest.state == .complete {
                let derived = try derivedChecksums(map, reader, in: store, progress)
                try progress(IntegrateProgress(step: .marking, done: 0, total: 1))
                var next = manifest
                next.data.checksums = try writeIntegrated(derived)
                next.state = .integrating
                try replaceManifest(next)
            }
            try replay(map, reader, onto: store, progress)
            try progress(IntegrateProgress(step: .flushing, done: 0, total: 1))
            do throws(StoreError) { try store.flush() } catch { throw .store(error, "flush \(dataName)") }
            try compare(map, reader.geometry, in: store, progress)
            var next = manifest
            next.state = .integrated
            next.originals = nil
            try progress(IntegrateProgress(step: .completing, done: 0, total: 1))
            try replaceManifest(next)
        }
        try progress(IntegrateProgress(step: .truncating, done: 0, total: 1))
        try truncate()
        try removeUnnamedChecksums()
    }

    func replaceManifest(_ next: Manifest) throws(CopyError) {
        try files.replace(
            Manifest.fileName, in: lock.descriptor, with: next.encoded(),
            "write \(directory)/\(Manifest.fileName)")
        manifest = next
    }

    func verifiedMap(_ reader: LogReader) throws(CopyError) -> VolumeMap {
        do throws(LogError) { try reader.verify() } catch { throw .log(error, "integrate \(directory)") }
        return try map(reader)
    }

    /// Reads the slices that were changed back.
    private func compare(
        _ map: VolumeMap, _ geometry: ChunkGeometry, in store: any BlockStore,
        _ progress: (IntegrateProgress) throws(CopyError) -> Void
    ) throws(CopyError) {
        let checksums = try dataChecksums()
        let changed = slicesUnderOriginals(map, geometry, checksums)
        var done: UInt64 = 0
        let reader = SliceReader(store, manifest.data.range, sliceSize: checksums.sliceSize)
        func tell() throws(CopyError) {
            try progress(IntegrateProgress(step: .comparing, done: done, total: changed.population))
        }
        try tell()
        try reader.read(
            only: { changed.contains(UInt64($0)) }, progress: { _ throws(CopyError) in try tell() },
            to: { slice, found throws(CopyError) in
                guard found == checksums.values[slice] else {
                    throw doesNotVerify(
                        checksums, slice,
                        advice: "they were damaged after they had been verified; the original images are kept"
                    )
                }
                done += 1
            })
    }

    private func replay(
        _ map: VolumeMap, _ reader: LogReader, onto store: any BlockStore,
        _ progress: (IntegrateProgress) throws(CopyError) -> Void
    ) throws(CopyError) {
        let buffer = TransferBuffer()
        for (done, entry) in map.entries.enumerated() {
            try progress(
                IntegrateProgress(step: .replaying, done: UInt64(done), total: UInt64(map.entries.count)))
            let range = reader.geometry.range(of: entry.chunk)
            let original = buffer.prefix(range.count)
            do throws(LogError) { try reader.read(entry, into: original) } catch {
                throw .log(error, "integrate \(directory)")
            }
            do throws(StoreError) {
                if entry.isZero {
                    try store.writeZeroes(range, options: [])
                } else {
                    try store.write(UnsafeRawBufferPointer(original), at: range.offset, durable: false)
                }
            } catch { throw .store(error, "write to \(dataName) at \(range.offset)") }
        }
    }

    /// Cuts a regular file to the data portion; devices and units keep their size.
    private func truncate() throws(CopyError) {
        guard case .path(let path) = dataLocation else { return }
        let action = "cut \(path) to the data portion"
        let descriptor = try openDataFile(path, action)
        defer { files.calls.close(descriptor) }
        let status = try files.status(of: descriptor, action)
        guard status.st_mode & S_IFMT == S_IFREG, status.st_size > Int(manifest.data.range.end) else {
            return
        }
        // The copy's own file, and nobody else's, is cut whatever a power cut has left of the log in it.
        let isOwn = manifest.location == .usual && status.st_nlink <= 1
        if !isOwn { try requireOwnLog(descriptor, path, action) }
        try files.truncate(descriptor, to: manifest.data.range.end, action)
        try files.synchronize(descriptor, action)
    }

    /// What is cut off must be the log that was integrated: a manifest can name any file, and say that it is integrated.
    private func requireOwnLog(_ descriptor: Int32, _ path: String, _ action: String) throws(CopyError) {
        let place = manifest.data.range.end.roundedUp(to: CopyLimits.portionAlignment)
        let block = ZeroedMemory(count: Int(LogFormat.blockSize))
        for position in [0, LogFormat.blockSize] {
            let count = try files.read(descriptor, at: place + position, into: block.buffer, action)
            guard count == block.count,
                let superblock = try? LogSuperblock(
                    decoding: UnsafeRawBufferPointer(block.buffer), at: position),
                superblock.epoch?.uuid.uuidString.lowercased() == manifest.epoch.uuid.lowercased(),
                superblock.volume.uuidString.lowercased() == manifest.volume.uuid.lowercased()
            else { continue }
            return
        }
        throw CopyError(
            .damaged, action,
            "what lies behind the data is not this copy's original images, and it is left alone",
            advice: "the data themselves are integrated")
    }

    private func openDataFile(_ path: String, _ action: String) throws(CopyError) -> Int32 {
        if case .member(let name) = manifest.location {
            return try files.openRegular(name, in: lock.descriptor, O_RDWR, action).descriptor
        }
        return try files.open(path, O_RDWR, action)
    }
}
