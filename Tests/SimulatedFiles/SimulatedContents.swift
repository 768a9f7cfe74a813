import TestSupport

/// The bytes of a simulated file: what is read at once is what was written last; what a crash leaves of what was not
/// synchronized is drawn by lot, sector by sector, and so is the size.
package protocol SimulatedContents: AnyObject {
    /// Bytes, as a reader sees it.
    var size: Int { get }
    /// Bytes of the file system that it takes.
    var allocatedBytes: Int { get }
    /// Bytes that writing to this range would take in addition.
    func bytesToAllocate(at offset: Int, count: Int) -> Int
    /// - Returns: the bytes read, fewer at the end.
    func read(at offset: Int, into buffer: UnsafeMutableRawBufferPointer) -> Int
    /// Writes, beyond the end as well.
    func write(_ data: UnsafeRawBufferPointer, at offset: Int)
    func resize(_ size: Int)
    /// All that was written survives from now on.
    func synchronize()
    /// As when the system could not write: some of it is forgotten, and no later synchronizing saves it. A reader
    /// sees it until the next crash.
    func failToSynchronize(using random: inout SeededGenerator)
    /// The power fails.
    func crash(using random: inout SeededGenerator)
}

/// Such bytes in memory, sparse.
package final class SimulatedBytes: SimulatedContents {
    /// What is written whole or not at all, bytes.
    private static let sector = 512
    private static let page = 4096

    /// A sector's bytes, all of them; empty: zeros.
    private typealias Sector = [UInt8]

    package private(set) var size = 0
    private var seen: [Int: Sector] = [:]
    private var pages: Set<Int> = []
    private var stable: [Int: Sector] = [:]
    private var stableSize = 0
    /// What each sector was since it was saved last, oldest first; and the size.
    private var unsaved: [Int: [Sector]] = [:]
    private var unsavedSizes: [Int] = []

    package init() {}

    package var allocatedBytes: Int { pages.count * Self.page }

    package func bytesToAllocate(at offset: Int, count: Int) -> Int {
        guard count > 0 else { return 0 }
        let touched = offset / Self.page...(offset + count - 1) / Self.page
        return touched.count { !pages.contains($0) } * Self.page
    }

    package func read(at offset: Int, into buffer: UnsafeMutableRawBufferPointer) -> Int {
        let count = max(0, min(buffer.count, size - offset))
        forEachPart(offset, count) { sector, range, place in
            let target = UnsafeMutableRawBufferPointer(rebasing: buffer[place..<place + range.count])
            if let bytes = seen[sector], !bytes.isEmpty {
                bytes[range].withUnsafeBytes { target.copyMemory(from: $0) }
            } else {
                target.initializeMemory(as: UInt8.self, repeating: 0)
            }
        }
        return count
    }

    package func write(_ data: UnsafeRawBufferPointer, at offset: Int) {
        forEachPart(offset, data.count) { sector, range, place in
            var bytes = seen[sector] ?? []
            if bytes.isEmpty { bytes = Sector(repeating: 0, count: Self.sector) }
            bytes.withUnsafeMutableBytes {
                UnsafeMutableRawBufferPointer(rebasing: $0[range])
                    .copyMemory(from: UnsafeRawBufferPointer(rebasing: data[place..<place + range.count]))
            }
            see(bytes, in: sector)
            pages.insert(sector * Self.sector / Self.page)
        }
        if offset + data.count > size, !data.isEmpty { resize(offset + data.count) }
    }

    package func resize(_ size: Int) {
        guard size != self.size else { return }
        if size < self.size {
            let cut = size / Self.sector
            for sector in seen.keys.sorted() where sector >= cut {
                let kept = sector == cut ? size % Self.sector : 0
                let bytes = seen[sector]!
                guard !bytes.isEmpty else { continue }
                see(
                    kept == 0 ? [] : bytes[..<kept] + Sector(repeating: 0, count: Self.sector - kept),
                    in: sector)
            }
            pages = pages.filter { $0 * Self.page < size }
        }
        self.size = size
        unsavedSizes.append(size)
    }

    private func see(_ bytes: Sector, in sector: Int) {
        seen[sector] = bytes
        unsaved[sector, default: []].append(bytes)
    }

    /// - Parameter body: is given each sector, the range in it, and where that lies from `offset`.
    private func forEachPart(_ offset: Int, _ count: Int, _ body: (Int, Range<Int>, Int) -> Void) {
        var place = 0
        while place < count {
            let start = (offset + place) % Self.sector
            let length = min(Self.sector - start, count - place)
            body((offset + place) / Self.sector, start..<start + length, place)
            place += length
        }
    }

    package func synchronize() {
        for (sector, versions) in unsaved { stable[sector] = versions.last }
        stableSize = size
        unsaved = [:]
        unsavedSizes = []
    }

    package func failToSynchronize(using random: inout SeededGenerator) {
        for sector in unsaved.keys.sorted() where Bool.random(using: &random) { unsaved[sector] = nil }
    }

    package func crash(using random: inout SeededGenerator) {
        // Some disks lose all of their cache, some little of it.
        let chance = [0, 1, 4, 7, 8].randomElement(using: &random)!
        for sector in unsaved.keys.sorted() where Int.random(in: 0..<8, using: &random) < chance {
            stable[sector] = unsaved[sector]!.randomElement(using: &random)
        }
        if let size = unsavedSizes.randomElement(using: &random), Bool.random(using: &random) {
            stableSize = size
        }
        (size, seen, unsaved, unsavedSizes) = (stableSize, stable, [:], [])
        // What lies behind the end is no part of it.
        resizeAfterCrash()
    }

    private func resizeAfterCrash() {
        let end = size
        size = Int.max
        resize(end)
        (stable, unsaved, unsavedSizes) = (seen, [:], [])
        pages = Set(seen.filter { !$0.value.isEmpty }.keys.map { $0 * Self.sector / Self.page })
    }

    /// The same again, with a future of its own.
    package func copy() -> SimulatedBytes {
        let copy = SimulatedBytes()
        (copy.size, copy.seen, copy.pages) = (size, seen, pages)
        (copy.stable, copy.stableSize) = (stable, stableSize)
        (copy.unsaved, copy.unsavedSizes) = (unsaved, unsavedSizes)
        return copy
    }
}
