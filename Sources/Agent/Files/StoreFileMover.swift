import Blocks
import Glibc
import PhysicalCopy

/// Fills files.
public protocol FileMover: RestoreMover {
    /// The targets of what is asked for from now on.
    func begin(_ batch: FileBatch) throws(AgentError)
}

/// Reads the copy as a store, wherever it is, and writes to the files. The way where no engine can: from a standing
/// bridge's unit.
public final class StoreFileMover: FileMover {
    private let data: RestoreSource
    private let memory = ZeroedMemory(count: AgentLimits.relayBytes)
    private var batch: FileBatch?

    public init(_ data: RestoreSource) { self.data = data }

    public func begin(_ batch: FileBatch) { self.batch = batch }

    public func move(
        _ runs: [RestoreRun], progress: (UInt64) throws(AgentError) -> Void
    ) throws(AgentError) {
        var done: UInt64 = 0
        for run in runs {
            try with(run.target) { descriptor throws(AgentError) in
                var position: UInt64 = 0
                while position < run.count {
                    let part = UnsafeMutableRawBufferPointer(
                        rebasing: memory.buffer.prefix(Int(min(run.count - position, UInt64(memory.count)))))
                    try onStore("reading the copy's data at", "\(run.source + position)") {
                        () throws(StoreError) in
                        try data.store.read(at: run.source + position, into: part)
                    }
                    try Self.write(
                        UnsafeRawBufferPointer(part), to: descriptor, at: run.offset + position)
                    position += UInt64(part.count)
                    done += UInt64(part.count)
                    try progress(done)
                }
            }
        }
    }

    private func with(
        _ target: Int, _ body: (Int32) throws(AgentError) -> Void
    ) throws(AgentError) {
        guard let batch else { preconditionFailure("no files to fill") }
        let descriptor = try batch.descriptor(of: target)
        defer { close(descriptor) }
        try body(descriptor)
    }

    static func write(
        _ buffer: UnsafeRawBufferPointer, to descriptor: Int32, at offset: UInt64
    ) throws(AgentError) {
        var done = 0
        while done < buffer.count {
            let count = pwrite(
                descriptor, buffer.baseAddress.map { $0 + done }, buffer.count - done, Int(offset) + done)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else {
                var error = AgentError.system(errno, doing: "writing", to: "a restored file")
                if errno == ENOSPC || errno == EDQUOT { error.cause = .noSpace }
                throw error
            }
            done += count
        }
    }

    public func writeZeroes(_ range: ByteRange, of target: Int) throws(AgentError) {
        try with(target) { descriptor throws(AgentError) in try Self.writeZeroes(range, to: descriptor) }
    }

    static func writeZeroes(_ range: ByteRange, to descriptor: Int32) throws(AgentError) {
        var position = range.offset
        let zeros = ZeroedMemory(count: Int(min(range.count, 1 << 20)))
        while position < range.end {
            let part = UnsafeRawBufferPointer(
                rebasing: zeros.buffer.prefix(Int(min(range.end - position, UInt64(zeros.count)))))
            try write(part, to: descriptor, at: position)
            position += UInt64(part.count)
        }
    }

    /// Nothing: the restore flushes its files itself, with their metadata and many at once.
    public func flush() {}
}
