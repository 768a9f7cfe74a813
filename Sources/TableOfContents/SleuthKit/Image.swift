import Blocks
import CLibTSK

/// A range of a store as libtsk's external image.
///
/// libtsk tells a failed read from a short one only partly, and takes what was in its buffer for the bytes: so every
/// buffer is filled with zeros where there is nothing, and what the store said is kept here, to be asked by
/// ``check()`` after the library returns.
final class TskImage {
    let info: UnsafeMutablePointer<TSK_IMG_INFO>
    let range: ByteRange
    private let store: any BlockStore
    private var failure: StoreError?

    /// - Parameter range: of `store`; what libtsk calls offset 0 is its start.
    init(_ store: any BlockStore, _ range: ByteRange, sectorSize: UInt32 = 512) throws(TocError) {
        store.requireWithin(range)
        guard range.count <= UInt64(Int64.max) else { throw TocError(.damaged, "the range is too large") }
        self.store = store
        self.range = range
        // The structure is libtsk's; behind it lies the way back to this object.
        let tail = MemoryLayout<TSK_IMG_INFO>.stride
        let memory = UnsafeMutableRawPointer.allocate(
            byteCount: tail + MemoryLayout<UnsafeRawPointer>.stride, alignment: 16)
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: tail)
        info = memory.bindMemory(to: TSK_IMG_INFO.self, capacity: 1)
        (memory + tail).initializeMemory(
            as: UnsafeRawPointer.self, to: UnsafeRawPointer(Unmanaged.passUnretained(self).toOpaque()))
        let opened = tsk_img_open_external(
            memory, TSK_OFF_T(range.count), sectorSize,
            { image, offset, buffer, count in TskImage.of(image!).read(offset, buffer, count) },
            { _ in }, { _, _ in })
        precondition(opened != nil, "libtsk refused an image")
    }

    deinit {
        tsk_img_close(info)
        UnsafeMutableRawPointer(info).deallocate()
    }

    private static func of(_ image: UnsafeMutablePointer<TSK_IMG_INFO>) -> TskImage {
        let tail = UnsafeRawPointer(image) + MemoryLayout<TSK_IMG_INFO>.stride
        return Unmanaged<TskImage>.fromOpaque(tail.load(as: UnsafeRawPointer.self)).takeUnretainedValue()
    }

    private func read(_ offset: TSK_OFF_T, _ buffer: UnsafeMutablePointer<CChar>?, _ count: Int) -> Int {
        guard let buffer, count > 0 else { return 0 }
        let target = UnsafeMutableRawBufferPointer(start: buffer, count: count)
        guard offset >= 0, UInt64(offset) < range.count else {
            target.initializeMemory(as: UInt8.self, repeating: 0)
            return 0
        }
        let there = Int(min(UInt64(count), range.count - UInt64(offset)))
        do throws(StoreError) {
            try store.read(
                at: range.offset + UInt64(offset),
                into: UnsafeMutableRawBufferPointer(rebasing: target[..<there]))
        } catch {
            if failure == nil { failure = error }
            target.initializeMemory(as: UInt8.self, repeating: 0)
            return -1
        }
        target[there...].initializeMemory(as: UInt8.self, repeating: 0)
        return there
    }

    /// Throws what the store has said since the last time it was asked.
    func check() throws(TocError) {
        guard let failure else { return }
        self.failure = nil
        throw TocError(.store(failure), "the volume cannot be read: \(failure.code)")
    }
}
