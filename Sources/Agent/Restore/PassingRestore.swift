import Blocks
import Glibc
import PhysicalCopy

/// What takes the bytes of a restore that come as they pass by, instead of being fetched: a volume, or files.
protocol PassingTarget: AnyObject {
    /// Whether target `number` reads as zeros wherever nothing was written.
    var isBlank: Bool { get }
    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64, of number: Int) throws(AgentError)
    func writeZeroes(_ range: ByteRange, of number: Int) throws(AgentError)
    /// At return all that was written is on stable storage.
    func flush() throws(AgentError)
}

/// Applies a restore plan to a backup's data as they pass by: first the data, then the original images over them, as
/// the plan's runs are from a copy. Nothing is sought and nothing kept.
struct PassingRestore {
    private let plan: RestorePlan
    private let target: any PassingTarget
    /// The data have passed up to here; what comes of what lies before are original images.
    private var passed: UInt64 = 0
    /// Bytes that were written.
    private(set) var bytes: UInt64 = 0

    init(_ plan: RestorePlan, to target: any PassingTarget) {
        self.plan = plan
        self.target = target
    }

    /// - Parameter offset: where in the volume the bytes belong.
    mutating func take(_ offset: UInt64, _ passing: PassingBytes) throws(AgentError) {
        let range = ByteRange(offset: offset, count: passing.count)
        let isFirst = offset >= passed
        passed = max(passed, range.end)
        switch passing {
        case .bytes(let bytes):
            for piece in plan.pieces(in: range) {
                let start = Int(piece.volume.offset - offset)
                let part = UnsafeRawBufferPointer(rebasing: bytes[start..<start + Int(piece.volume.count)])
                try target.write(part, at: piece.offset, of: piece.target)
                self.bytes += piece.volume.count
            }
        case .zeros:
            // What was not written yet has them already.
            if isFirst, target.isBlank { return }
            for piece in plan.pieces(in: range) {
                try target.writeZeroes(
                    ByteRange(offset: piece.offset, count: piece.volume.count), of: piece.target)
            }
        }
    }
}

/// A volume, or a part of it, that is restored from what passes by.
final class PassingVolume: PassingTarget {
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

/// Files that are restored from what passes by.
final class PassingFiles: PassingTarget {
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
        if open.count >= AgentLimits.openPassingFiles,
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
        try StoreFileMover.write(bytes, to: descriptor(of: number), at: offset)
    }

    func writeZeroes(_ range: ByteRange, of number: Int) throws(AgentError) {
        try StoreFileMover.writeZeroes(range, to: descriptor(of: number))
    }

    /// Nothing: the restore flushes its files itself.
    func flush() {}
}
