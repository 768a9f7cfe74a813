import Blocks
import OriginalImage

/// What the data portion will sum to with the original images over it.
extension PhysicalCopy {
    /// The slices of the data portion that have original images over them.
    func slicesUnderOriginals(
        _ map: VolumeMap, _ geometry: ChunkGeometry, _ checksums: SliceChecksums
    ) -> ChunkBitmap {
        let slices = ChunkBitmap(count: UInt64(checksums.values.count))
        for entry in map.entries {
            let range = geometry.range(of: entry.chunk)
            for slice in range.offset / checksums.sliceSize...(range.end - 1) / checksums.sliceSize {
                slices.insert(slice)
            }
        }
        return slices
    }

    /// The data portion's checksums as they will be with the originals over the data, from an opened copy whose original
    /// images are verified first.
    func derivedChecksums(in store: any BlockStore) throws(CopyError) -> SliceChecksums {
        let reader = try logReader(in: store)
        return try derivedChecksums(verifiedMap(reader), reader, in: store) { _ in }
    }

    /// The same; the slices that change are verified on the way, and the originals were before.
    func derivedChecksums(
        _ map: VolumeMap, _ reader: LogReader, in store: any BlockStore,
        _ progress: (IntegrateProgress) throws(CopyError) -> Void
    ) throws(CopyError) -> SliceChecksums {
        var checksums = try dataChecksums()
        // Whole slices and whole chunks at once: both sizes are powers of two.
        let window = max(checksums.sliceSize, reader.geometry.chunkSize)
        var windows: [UInt64] = []
        for entry in map.entries {
            let number = reader.geometry.range(of: entry.chunk).offset / window
            if windows.last != number { windows.append(number) }
        }
        for (done, number) in windows.enumerated() {
            let start = number * window
            let range = ByteRange(offset: start, count: min(window, manifest.data.length - start))
            let (now, then) = try sums(of: range, checksums.sliceSize, map, reader, in: store)
            let first = Int(start / checksums.sliceSize)
            for index in now.indices {
                guard now[index] == checksums.values[first + index] else {
                    throw doesNotVerify(checksums, first + index, advice: "nothing was changed")
                }
                checksums.values[first + index] = then[index]
            }
            try progress(
                IntegrateProgress(step: .verifying, done: UInt64(done), total: UInt64(windows.count)))
        }
        return checksums
    }

    /// Reads some of the data once.
    /// - Parameter range: whole slices and whole chunks.
    /// - Returns: the slices' checksums as they are, and with the originals over them.
    private func sums(
        of range: ByteRange, _ sliceSize: UInt64, _ map: VolumeMap, _ reader: LogReader,
        in store: any BlockStore
    ) throws(CopyError) -> (now: [UInt32], then: [UInt32]) {
        let buffer = TransferBuffer()
        var (now, then) = (StreamChecksums(sliceSize: sliceSize), StreamChecksums(sliceSize: sliceSize))
        var place = ByteRange(offset: range.offset, count: 0)
        while place.end < range.end {
            let count = min(range.end - place.end, UInt64(CopyLimits.transferBytes))
            place = ByteRange(offset: place.end, count: count)
            let part = buffer.prefix(count)
            do throws(StoreError) { try store.read(at: place.offset, into: part) } catch {
                throw .store(error, "read the copy's data at \(place.offset)")
            }
            now.update(UnsafeRawBufferPointer(part))
            // As in the range, a chunk lies in one part of it.
            for original in map.originals(over: place) {
                let start = Int(original.volume.offset - place.offset)
                let target = UnsafeMutableRawBufferPointer(
                    rebasing: part[start..<start + Int(original.volume.count)])
                switch original.place {
                case .data: continue
                case .zeros: target.initializeMemory(as: UInt8.self, repeating: 0)
                case .original(let entry, _):
                    do throws(LogError) { try reader.read(entry, into: target) } catch {
                        throw .log(error, "integrate \(directory)")
                    }
                }
            }
            then.update(UnsafeRawBufferPointer(part))
        }
        return (now.finish().values, then.finish().values)
    }

    func doesNotVerify(_ checksums: SliceChecksums, _ index: Int, advice: String) -> CopyError {
        let slice = checksums.range(ofSlice: index, length: manifest.data.length)
        return CopyError(
            .damaged, "integrate \(directory)",
            "the data at \(slice.offset) (\(slice.count) bytes) do not verify",
            advice: "see what `outboard verify` says; \(advice)")
    }

    /// Writes the checksums that the data will have where the manifest can name them: in a file of another name than that
    /// which it names now.
    func writeIntegrated(_ checksums: SliceChecksums) throws(CopyError) -> Portion.Checksums {
        guard case .file(let old) = manifest.data.checksums else { return .slices(checksums) }
        let names = [ChecksumDescription.integratedFileName, ChecksumDescription.fileName]
        guard let name = names.first(where: { $0 != old.name }) else { preconditionFailure("one of two") }
        let bytes = ChecksumFile.encode(checksums, length: manifest.data.length)
        try files.replace(name, in: lock.descriptor, with: bytes, "write \(directory)/\(name)")
        return .file(ChecksumFile.describe(bytes, checksums, name: name))
    }

    /// What integrate has left of the checksums that were the data's before it.
    func removeUnnamedChecksums() throws(CopyError) {
        guard case .file(let named) = manifest.data.checksums else { return }
        for name in [ChecksumDescription.fileName, ChecksumDescription.integratedFileName]
        where name != named.name {
            try files.remove(name, in: lock.descriptor, "remove \(directory)/\(name)")
        }
    }
}
