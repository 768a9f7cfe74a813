import Blocks
import PhysicalCopy

/// Moves through this process: reads the copy as a store, wherever it is.
final class StoreMover: RestoreMover {
    private let data: RestoreSource
    private let target: any RestoreTarget
    private let memory = ZeroedMemory(count: AgentLimits.relayBytes)

    init(_ data: RestoreSource, to target: any RestoreTarget) {
        self.data = data
        self.target = target
    }

    func move(
        _ runs: [RestoreRun], progress: (UInt64) throws(AgentError) -> Void
    ) throws(AgentError) {
        var done: UInt64 = 0
        for run in runs {
            var position: UInt64 = 0
            while position < run.count {
                let part = UnsafeMutableRawBufferPointer(
                    rebasing: memory.buffer.prefix(Int(min(run.count - position, UInt64(memory.count)))))
                try onStore("reading the copy's data at", "\(run.source + position)") {
                    () throws(StoreError) in
                    try data.store.read(at: run.source + position, into: part)
                }
                try target.write(
                    UnsafeRawBufferPointer(part), at: run.offset + position, of: run.target)
                position += UInt64(part.count)
                done += UInt64(part.count)
                try progress(done)
            }
        }
    }

    func writeZeroes(_ range: ByteRange, of number: Int) throws(AgentError) {
        try target.writeZeroes(range, of: number)
    }

    func flush() throws(AgentError) { try target.flush() }
}
