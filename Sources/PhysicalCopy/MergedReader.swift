import Blocks
import Glibc
import OriginalImage

/// The volume as of the instant, from an append copy: where there is an original image, it wins; all else comes
/// from the raw data. Read-only. Every original that is read is checked against its CRC.
public final class MergedReader: ReadOnlyStore {
    private let data: any BlockStore
    private let reader: LogReader
    private let map: VolumeMap

    public var size: UInt64 { reader.geometry.volumeSize }
    public let capabilities: StoreCapabilities

    /// - Parameters:
    ///   - data: the raw data from offset 0; at least the volume's size.
    ///   - map: of the copy whose originals `reader` reads; the data portion begins at 0.
    public init(data: any BlockStore, reader: LogReader, map: VolumeMap) {
        precondition(data.size >= reader.geometry.volumeSize)
        self.data = data
        self.reader = reader
        self.map = map
        capabilities = data.capabilities.intersection(.knowsAllocation)
    }

    /// An original is a hole where it is all zeros, and data otherwise; all else is as in the raw data.
    public func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        requireWithin(range)
        precondition(limit > 0 && !range.isEmpty)
        guard capabilities.contains(.knowsAllocation) else {
            return [AllocationExtent(count: range.count, isHole: false, readsAsZeros: false)]
        }
        var extents: [AllocationExtent] = []
        /// - Returns: false when it is one too many.
        func append(_ count: UInt64, isHole: Bool, readsAsZeros: Bool) -> Bool {
            if let last = extents.last, last.isHole == isHole, last.readsAsZeros == readsAsZeros {
                extents[extents.count - 1].count += count
                return true
            }
            guard extents.count < limit else { return false }
            extents.append(AllocationExtent(count: count, isHole: isHole, readsAsZeros: readsAsZeros))
            return true
        }
        for part in map.parts(of: range) {
            switch part.place {
            case .zeros:
                guard append(part.volume.count, isHole: true, readsAsZeros: true) else { return extents }
            case .original:
                guard append(part.volume.count, isHole: false, readsAsZeros: false) else { return extents }
            case .data(var source):
                // They may tell of less than they were asked for.
                let end = source + part.volume.count
                while source < end {
                    let rest = ByteRange(offset: source, count: end - source)
                    for extent in try data.allocation(of: rest, limit: limit) {
                        guard append(extent.count, isHole: extent.isHole, readsAsZeros: extent.readsAsZeros)
                        else { return extents }
                        source += extent.count
                    }
                }
            }
        }
        return extents
    }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        let range = ByteRange(offset: offset, count: UInt64(buffer.count))
        requireWithin(range)
        guard !range.isEmpty else { return }
        for part in map.parts(of: range) {
            let target = Self.part(part.volume, of: range, buffer)
            switch part.place {
            case .data(let source): try data.read(at: source, into: target)
            case .zeros: target.initializeMemory(as: UInt8.self, repeating: 0)
            case .original(let entry, _): try readOriginal(entry, part.volume, into: target)
            }
        }
    }

    private static func part(
        _ part: ByteRange, of range: ByteRange, _ buffer: UnsafeMutableRawBufferPointer
    ) -> UnsafeMutableRawBufferPointer {
        let start = Int(part.offset - range.offset)
        return UnsafeMutableRawBufferPointer(rebasing: buffer[start..<start + Int(part.count)])
    }

    private func readOriginal(
        _ entry: LogEntry, _ part: ByteRange, into target: UnsafeMutableRawBufferPointer
    ) throws(StoreError) {
        let chunk = reader.geometry.range(of: entry.chunk)
        do throws(LogError) {
            if part == chunk { return try reader.read(entry, into: target) }
            // The CRC is the whole chunk's.
            let whole = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(chunk.count), alignment: 4096)
            defer { whole.deallocate() }
            try reader.read(entry, into: whole)
            let start = Int(part.offset - chunk.offset)
            target.copyMemory(from: UnsafeRawBufferPointer(rebasing: whole[start..<start + target.count]))
        } catch {
            if case .store(let failure) = error { throw failure }
            throw StoreError(.corrupt)
        }
    }
}

/// A range of a store as a store of its own, read-only.
public final class PortionView: ReadOnlyStore {
    private let base: any BlockStore
    private let range: ByteRange

    public var size: UInt64 { range.count }
    public let capabilities: StoreCapabilities

    /// - Precondition: `range` lies within `base`.
    public init(_ base: any BlockStore, _ range: ByteRange) {
        base.requireWithin(range)
        self.base = base
        self.range = range
        capabilities = base.capabilities.intersection(.knowsAllocation)
    }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        try base.read(at: range.offset + offset, into: buffer)
    }
    public func allocation(of part: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        requireWithin(part)
        return try base.allocation(
            of: ByteRange(offset: range.offset + part.offset, count: part.count), limit: limit)
    }
}
