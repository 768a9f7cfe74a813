import Blocks
import Glibc
import OriginalImage

/// The steps of ``PhysicalCopy/PhysicalCopy/integrate(_:progress:)``, each durable before the next: killed between or
/// within any two, it can be run again.
public enum IntegrateStep: Hashable, Sendable {
    /// Originals and the slices they will change are being verified.
    case verifying
    /// The manifest is about to say `integrating`.
    case marking
    /// Originals are being written onto the data.
    case replaying
    /// The data are about to be flushed.
    case flushing
    /// The changed slices are being read back for their checksums.
    case summing
    /// The manifest is about to say `integrated`.
    case completing
    /// The original-image portion is about to be cut off.
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
    /// Nothing is touched before all originals and all slices that will change have been verified. While the
    /// manifest says `integrating`, readers still merge, so a half-replayed chunk is never seen.
    /// - Parameter progress: told often; may throw to stop, as if killed.
    /// - Precondition: opened for ``Use/integrating``.
    public func integrate(
        _ opener: DataOpener, progress: (IntegrateProgress) throws(CopyError) -> Void = { _ in }
    ) throws(CopyError) {
        if manifest.originals != nil {
            let store = try openData(writable: true, opener)
            let reader = try logReader(in: store)
            let touched = try verifyBeforeIntegrating(reader, in: store, progress)
            if manifest.state == .complete {
                try progress(IntegrateProgress(step: .marking, done: 0, total: 1))
                var next = manifest
                next.state = .integrating
                try replaceManifest(next)
            }
            try replay(reader, onto: store, progress)
            try progress(IntegrateProgress(step: .flushing, done: 0, total: 1))
            do throws(StoreError) { try store.flush() } catch { throw .store(error, "flush \(dataName)") }
            var next = manifest
            next.data.checksums = try sums(ofSlices: touched, in: store, progress)
            next.state = .integrated
            next.originals = nil
            try progress(IntegrateProgress(step: .completing, done: 0, total: 1))
            try replaceManifest(next)
        }
        try progress(IntegrateProgress(step: .truncating, done: 0, total: 1))
        try truncate()
    }

    private func replaceManifest(_ next: Manifest) throws(CopyError) {
        try Files.replace(directory, Manifest.fileName, with: next.encoded())
        manifest = next
    }

    /// - Returns: the slices of the data portion that originals lie in, in ascending order.
    private func verifyBeforeIntegrating(
        _ reader: LogReader, in store: any BlockStore,
        _ progress: (IntegrateProgress) throws(CopyError) -> Void
    ) throws(CopyError) -> [Int] {
        let action = "integrate \(directory)"
        var slices: Set<Int> = []
        do throws(LogError) {
            try reader.verify()
            try reader.forEachBatch { batch throws(LogError) in
                for entry in batch.entries {
                    // A chunk is never larger than a slice and both are powers of two: it lies in one slice.
                    let offset = reader.geometry.range(of: entry.chunk).offset
                    slices.insert(Int(offset / manifest.data.checksums.sliceSize))
                }
            }
        } catch { throw .log(error, action) }
        let touched = slices.sorted()
        guard manifest.state == .complete else { return touched }
        for index in touched {
            let found = try sum(ofSlice: index, in: store)
            guard found == manifest.data.checksums.values[index] else {
                let slice = manifest.data.checksums.range(ofSlice: index, length: manifest.data.length)
                throw CopyError(
                    .damaged, action, "the data at \(slice.offset) (\(slice.count) bytes) do not verify",
                    advice: "see what `outboard verify` says; nothing was changed")
            }
            try progress(IntegrateProgress(step: .verifying, done: 0, total: UInt64(touched.count)))
        }
        return touched
    }

    private func replay(
        _ reader: LogReader, onto store: any BlockStore,
        _ progress: (IntegrateProgress) throws(CopyError) -> Void
    ) throws(CopyError) {
        let buffer = TransferBuffer()
        let total = manifest.epoch.entries
        var entries: [LogEntry] = []
        entries.reserveCapacity(Int(total))
        do throws(LogError) {
            try reader.forEachBatch { batch throws(LogError) in entries += batch.entries }
        } catch { throw .log(error, "integrate \(directory)") }
        // By address: the data are written in one sweep.
        entries.sort { $0.chunk < $1.chunk }
        for (done, entry) in entries.enumerated() {
            try progress(IntegrateProgress(step: .replaying, done: UInt64(done), total: total))
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

    private func sum(ofSlice index: Int, in store: any BlockStore) throws(CopyError) -> UInt32 {
        let slice = manifest.data.checksums.range(ofSlice: index, length: manifest.data.length)
        return try SliceChecksums.checksum(of: slice, in: store, TransferBuffer()) { _ throws(CopyError) in }
    }

    /// The data portion's checksums, those of `touched` slices anew; the others cannot have changed.
    private func sums(
        ofSlices touched: [Int], in store: any BlockStore,
        _ progress: (IntegrateProgress) throws(CopyError) -> Void
    ) throws(CopyError) -> SliceChecksums {
        var checksums = manifest.data.checksums
        for (done, index) in touched.enumerated() {
            try progress(
                IntegrateProgress(step: .summing, done: UInt64(done), total: UInt64(touched.count)))
            checksums.values[index] = try sum(ofSlice: index, in: store)
        }
        return checksums
    }

    /// Cuts a regular file to the data portion; devices and units keep their size.
    private func truncate() throws(CopyError) {
        guard case .path(let path) = dataLocation else { return }
        let action = "cut \(path) to the data portion"
        let descriptor = try Files.open(path, O_RDWR, action)
        defer { close(descriptor) }
        var information = stat()
        guard fstat(descriptor, &information) == 0 else { throw .system(errno, action) }
        guard information.st_mode & S_IFMT == S_IFREG,
            information.st_size > Int(manifest.data.range.end)
        else { return }
        guard ftruncate(descriptor, Int(manifest.data.range.end)) == 0, fsync(descriptor) == 0 else {
            throw .system(errno, action)
        }
    }
}
