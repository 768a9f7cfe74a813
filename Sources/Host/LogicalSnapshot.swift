import Blocks
import OriginalImage

/// The volume as of the epoch's instant, but for what its copy had passed before it was overwritten; read-only, without
/// any lock against writers: a preserved chunk is read from the cache; another from the source, and *then* looked at
/// again: if it has become preserved meanwhile, the source may have been overwritten under the read, and the cache is
/// read after all.
final class LogicalSnapshot: ReadOnlyStore {
    private let volume: CopyOnWriteVolume
    private let epoch: Epoch

    init(of volume: CopyOnWriteVolume, _ epoch: Epoch) {
        self.volume = volume
        self.epoch = epoch
    }

    var size: UInt64 { volume.size }
    var capabilities: StoreCapabilities { [] }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        let range = ByteRange(offset: offset, count: UInt64(buffer.count))
        requireWithin(range)
        guard !range.isEmpty else { return }
        do throws(StoreError) {
            var chunks = volume.geometry.chunks(touching: range)
            while !chunks.isEmpty {
                let first = chunks.lowerBound
                let isPreserved = epoch.preserved.contains(first)
                let run = isPreserved ? 1 : chunks.prefix { !epoch.preserved.contains($0) }.count
                let part = first..<(first + UInt64(max(run, 1)))
                if !isPreserved { try readSource(part, range, buffer) }
                for chunk in part where epoch.preserved.contains(chunk) {
                    try readCache(chunk, range, buffer)
                }
                chunks = part.upperBound..<chunks.upperBound
            }
        } catch {
            throw epoch.phase == .open ? error : StoreError(.gone)
        }
        // Once the epoch is over, the source changes without notice.
        guard epoch.phase == .open else { throw StoreError(.gone) }
    }

    /// The part of `buffer` that belongs to `part` of the volume.
    private func slice(
        _ part: ByteRange, _ range: ByteRange, _ buffer: UnsafeMutableRawBufferPointer
    ) -> UnsafeMutableRawBufferPointer {
        let start = Int(part.offset - range.offset)
        return UnsafeMutableRawBufferPointer(rebasing: buffer[start..<start + Int(part.count)])
    }

    private func readSource(
        _ chunks: Range<UInt64>, _ range: ByteRange, _ buffer: UnsafeMutableRawBufferPointer
    ) throws(StoreError) {
        let start = volume.geometry.range(of: chunks.lowerBound).offset
        let end = volume.geometry.range(of: chunks.upperBound - 1).end
        guard let part = ByteRange(offset: start, count: end - start).intersection(range) else { return }
        try volume.source.read(at: part.offset, into: slice(part, range, buffer))
        volume.hook?(.readSource)
    }

    private func readCache(
        _ chunk: UInt64, _ range: ByteRange, _ buffer: UnsafeMutableRawBufferPointer
    ) throws(StoreError) {
        let whole = volume.geometry.range(of: chunk)
        guard let part = whole.intersection(range) else { return }
        let target = slice(part, range, buffer)
        guard volume.log.contains(chunk) else {
            if !volume.defects.isDisjoint(with: [.forgetsOneBit, .readsPassedFromSource]) {
                return try volume.source.read(at: part.offset, into: target)
            }
            // The copy had it, so nobody kept it: nothing was lost that was promised.
            throw StoreError(.gone)
        }
        if part == whole { return try original(of: chunk, into: target) }
        // The CRC is the whole original's.
        let scratch = volume.buffers.take()
        defer { volume.buffers.give(scratch) }
        let original = UnsafeMutableRawBufferPointer(rebasing: scratch[..<Int(whole.count)])
        try self.original(of: chunk, into: original)
        let start = Int(part.offset - whole.offset)
        target.copyMemory(from: UnsafeRawBufferPointer(rebasing: original[start..<start + target.count]))
    }

    private func original(
        of chunk: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(StoreError) {
        do throws(LogError) { try volume.log.readOriginal(of: chunk, into: buffer) } catch {
            if case .store(let error) = error { throw error }
            throw StoreError(.corrupt)
        }
    }

    func flush() throws(StoreError) {}
}
