import Blocks
import PhysicalCopy

/// Applies a restore plan to a backup's data as they pass by: first the data, then the original images over them, as
/// the plan's runs are from a copy. Nothing is sought and nothing kept.
struct PassingRestore {
    private let plan: RestorePlan
    private let target: any RestoreTarget
    /// The data have passed up to here; what comes of what lies before are original images.
    private var passed: UInt64 = 0
    /// Bytes that were written.
    private(set) var bytes: UInt64 = 0

    init(_ plan: RestorePlan, to target: any RestoreTarget) {
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
