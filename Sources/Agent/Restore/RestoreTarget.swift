import Blocks
import Glibc
import PhysicalCopy

/// What takes the bytes of a restore that pass through this process: a volume, files, memory.
protocol RestoreTarget: AnyObject {
    /// Whether target `number` reads as zeros wherever nothing was written.
    var isBlank: Bool { get }
    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64, of number: Int) throws(AgentError)
    func writeZeroes(_ range: ByteRange, of number: Int) throws(AgentError)
    /// At return all that was written is on stable storage.
    func flush() throws(AgentError)
}

/// A volume, or a part of it.
final class VolumeTarget: RestoreTarget {
    let isBlank: Bool
    private let store: any BlockStore
    private let name: String
    private let cancellation: CancellationToken

    init(
        _ store: any BlockStore, isBlank: Bool, named name: String, _ cancellation: CancellationToken
    ) {
        self.store = store
        self.isBlank = isBlank
        self.name = name
        self.cancellation = cancellation
    }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64, of number: Int) throws(AgentError) {
        try onStore("writing to", name) { () throws(StoreError) in
            try store.write(bytes, at: offset, durable: false)
        }
    }

    func writeZeroes(_ range: ByteRange, of number: Int) throws(AgentError) {
        var position = range.offset
        while position < range.end {
            try cancellation.check()
            let part = ByteRange(
                offset: position, count: min(range.end - position, AgentLimits.zeroBytes))
            try onStore("writing zeros to", name) { () throws(StoreError) in
                try store.writeZeroes(part, options: [])
            }
            position = part.end
        }
    }

    func flush() throws(AgentError) {
        try onStore("flushing", name) { () throws(StoreError) in try store.flush() }
    }
}

/// The files of a batch.
final class FileTargets: RestoreTarget {
    let isBlank = true
    private let batch: FileBatch
    /// Some that were written last, and when.
    private var open: [Int: (descriptor: Int32, used: UInt64)] = [:]
    private var uses: UInt64 = 0

    init(_ batch: FileBatch) { self.batch = batch }

    deinit { for file in open.values { close(file.descriptor) } }

    private func descriptor(of number: Int) throws(AgentError) -> Int32 {
        uses += 1
        if let file = open[number] {
            open[number]?.used = uses
            return file.descriptor
        }
        if open.count >= AgentLimits.openTargets,
            let oldest = open.min(by: { $0.value.used < $1.value.used })
        {
            close(oldest.value.descriptor)
            open[oldest.key] = nil
        }
        let descriptor = try batch.descriptor(of: number)
        open[number] = (descriptor, uses)
        return descriptor
    }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64, of number: Int) throws(AgentError) {
        try FileCalls.write(bytes, to: descriptor(of: number), at: offset)
    }

    func writeZeroes(_ range: ByteRange, of number: Int) throws(AgentError) {
        guard !range.isEmpty else { return }
        let descriptor = try descriptor(of: number)
        // For whatever reason there is none: then they are written, which tells of what is really wrong.
        if FileCalls.makeHole(descriptor, range.offset, range.count) == 0 { return }
        var position = range.offset
        let zeros = ZeroedMemory(count: Int(min(range.count, 1 << 20)))
        while position < range.end {
            let part = UnsafeRawBufferPointer(
                rebasing: zeros.buffer.prefix(Int(min(range.end - position, UInt64(zeros.count)))))
            try FileCalls.write(part, to: descriptor, at: position)
            position += UInt64(part.count)
        }
    }

    /// Nothing: the restore flushes its files itself, with their metadata and many at once.
    func flush() {}
}

/// Memory, as large as what is restored to it.
final class MemoryTarget: RestoreTarget {
    let isBlank = false
    let buffer: UnsafeMutableRawBufferPointer

    /// - Parameter buffer: valid as long as this is used.
    init(_ buffer: UnsafeMutableRawBufferPointer) { self.buffer = buffer }

    private func part(_ range: ByteRange) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: buffer[Int(range.offset)..<Int(range.end)])
    }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64, of number: Int) {
        part(ByteRange(offset: offset, count: UInt64(bytes.count))).copyMemory(from: bytes)
    }

    func writeZeroes(_ range: ByteRange, of number: Int) {
        part(range).initializeMemory(as: UInt8.self, repeating: 0)
    }

    func flush() {}
}
