import Blocks
import PhysicalCopy

/// Fills files.
public protocol FileMover: RestoreMover {
    /// The targets of what is asked for from now on.
    func begin(_ batch: FileBatch) throws(AgentError)
}

/// Fills files through this process. The way where no engine can: from a standing bridge's unit.
public final class StoreFileMover: FileMover {
    private let data: RestoreSource
    private var mover: StoreMover?

    public init(_ data: RestoreSource) { self.data = data }

    public func begin(_ batch: FileBatch) { mover = StoreMover(data, to: FileTargets(batch)) }

    private var current: StoreMover {
        guard let mover else { preconditionFailure("no files to fill") }
        return mover
    }

    public func move(
        _ runs: [RestoreRun], progress: (UInt64) throws(AgentError) -> Void
    ) throws(AgentError) {
        try current.move(runs, progress: progress)
    }

    public func writeZeroes(_ range: ByteRange, of target: Int) throws(AgentError) {
        try current.writeZeroes(range, of: target)
    }

    public func flush() throws(AgentError) { try current.flush() }
}
