import Blocks

/// What a backup has as its data: a copy's data location from the start to the end of its last portion, zeros between
/// the portions. Read-only.
final class BackupImage {
    let size: UInt64
    private let store: any BlockStore
    private let portions: [ByteRange]
    private let scanned = TransferBuffer()

    /// - Parameter portions: in their order, each within `store`.
    init(_ store: any BlockStore, portions: [ByteRange]) {
        for portion in portions { store.requireWithin(portion) }
        self.store = store
        self.portions = portions
        size = portions.last?.end ?? 0
    }

    func read(_ range: ByteRange, into buffer: UnsafeMutableRawBufferPointer) throws(CopyError) {
        let target = UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(range.count)])
        if !portions.contains(where: { $0.intersection(range) == range }) {
            target.initializeMemory(as: UInt8.self, repeating: 0)
        }
        for portion in portions {
            guard let part = portion.intersection(range) else { continue }
            let start = Int(part.offset - range.offset)
            do throws(StoreError) {
                try store.read(
                    at: part.offset,
                    into: UnsafeMutableRawBufferPointer(rebasing: target[start..<start + Int(part.count)]))
            } catch {
                throw .store(error, "read the copy's data at \(part.offset)")
            }
        }
    }

    /// A part of the image, from one place to the next, and what of it is no hole.
    struct Stretch {
        var range: ByteRange
        /// In their order, apart from each other, aligned to ``MediaLimits/extentAlignment`` but for the image's end.
        var extents: [ByteRange]
    }

    /// From `offset` on, as far as `limit` extents reach.
    /// - Parameters:
    ///   - zeros: also what is stored but all zeros is a hole, in whole blocks of ``MediaLimits/zeroBlock``: it has to
    ///     be read to be known.
    ///   - progress: told the bytes looked at since it was told last; may throw to stop.
    func stretch(
        from offset: UInt64, limit: Int = MediaLimits.extentsPerMember, zeros: Bool,
        progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) -> Stretch {
        var extents: [ByteRange] = []
        /// - Returns: false when it does not fit any more.
        func append(_ range: ByteRange) -> Bool {
            let start = max(range.offset.roundedDown(to: MediaLimits.extentAlignment), offset)
            let end = min(range.end.roundedUp(to: MediaLimits.extentAlignment), size)
            if let last = extents.last, last.end >= start {
                extents[extents.count - 1] = ByteRange(offset: last.offset, count: end - last.offset)
                return true
            }
            guard extents.count < limit else { return false }
            extents.append(ByteRange(offset: start, count: end - start))
            return true
        }
        var position = offset
        while position < size {
            let found = try allocation(from: position)
            for extent in found {
                let range = ByteRange(offset: position, count: extent.count)
                if !extent.isHole {
                    let full = zeros ? try lastThatFits(range, append, progress) : append(range) ? nil : range
                    if let full {
                        let end = max(full.offset.roundedDown(to: MediaLimits.extentAlignment), offset)
                        return Stretch(
                            range: ByteRange(offset: offset, count: end - offset), extents: extents)
                    }
                }
                position = range.end
                if extent.isHole || !zeros { try progress(extent.count) }
            }
        }
        return Stretch(range: ByteRange(offset: offset, count: size - offset), extents: extents)
    }

    /// Appends what is not zeros of `range`, block by block.
    /// - Returns: the first that did not fit.
    private func lastThatFits(
        _ range: ByteRange, _ append: (ByteRange) -> Bool, _ progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) -> ByteRange? {
        var position = range.offset
        while position < range.end {
            let limit = (position + UInt64(CopyLimits.transferBytes)).roundedDown(to: MediaLimits.zeroBlock)
            let part = ByteRange(offset: position, count: min(limit, range.end) - position)
            try read(part, into: scanned.prefix(part.count))
            while position < part.end {
                let next = min((position + 1).roundedUp(to: MediaLimits.zeroBlock), part.end)
                let start = Int(position - part.offset)
                let bytes = scanned.prefix(part.count)[start..<start + Int(next - position)]
                if !UnsafeRawBufferPointer(rebasing: bytes).isAllZeros {
                    let block = ByteRange(offset: position, count: next - position)
                    guard append(block) else { return block }
                }
                position = next
            }
            try progress(part.count)
        }
        return nil
    }

    /// What the store knows from `offset` on; between the portions there is nothing.
    private func allocation(from offset: UInt64) throws(CopyError) -> [AllocationExtent] {
        guard let portion = portions.first(where: { $0.end > offset }) else {
            preconditionFailure("beyond the image's end")
        }
        guard portion.offset <= offset else {
            return [AllocationExtent(count: portion.offset - offset, isHole: true, readsAsZeros: true)]
        }
        do throws(StoreError) {
            return try store.allocation(
                of: ByteRange(offset: offset, count: portion.end - offset), limit: MediaLimits.extentsAtOnce
            ).map { extent in
                let isHole = extent.isHole && extent.readsAsZeros
                return AllocationExtent(count: extent.count, isHole: isHole, readsAsZeros: isHole)
            }
        } catch { throw .store(error, "look for holes in the copy's data at \(offset)") }
    }
}
