import Blocks
import SCSI

/// Why a copy ended before its end.
struct CopyFailure: Error {
    enum Reason: Hashable, Sendable {
        case cancelled
        case store(StoreError, SenseTable.Direction)
    }
    var reason: Reason
    /// The segment that was being processed.
    var segment: Int
}

/// What a running copy asks and tells: whether it shall end, and how far it is.
struct CopyControl: Sendable {
    let record: CopyRecord
    let isCancelled: @Sendable () -> Bool
}

/// Moves the bytes of a plan.
protocol CopyMover: Sendable {
    /// Does all pieces; where one reads or writes what another writes, in their order. Tells
    /// `control.record` the bytes and segments that are done. After it threw nothing runs on.
    func move(_ plan: CopyPlan, _ control: CopyControl) throws(CopyFailure)
}

/// One piece after another through one buffer: the order is the plan's by itself.
struct SerialMover: CopyMover {
    func move(_ plan: CopyPlan, _ control: CopyControl) throws(CopyFailure) {
        let mover = SerialPiece(control)
        for piece in plan.pieces {
            control.record.processed(segments: piece.segment)
            try mover.move(piece)
        }
    }
}

/// A buffer and what to do with it.
struct SerialPiece: ~Copyable {
    private let control: CopyControl
    private let buffer: UnsafeMutableRawBufferPointer

    init(_ control: CopyControl) {
        self.control = control
        // Page-aligned, so that direct I/O needs no second buffer.
        buffer = .allocate(byteCount: BridgeLimits.serialBuffer, alignment: 4096)
    }

    deinit { buffer.deallocate() }

    func move(_ piece: CopyPiece) throws(CopyFailure) {
        // Like memmove: from the end where the destination lies behind in the same bytes.
        let backwards = piece.overlapsItself && piece.targetOffset > piece.sourceOffset
        var done: UInt64 = 0
        while done < piece.count {
            if control.isCancelled() { throw CopyFailure(reason: .cancelled, segment: piece.segment) }
            let count = min(UInt64(buffer.count), piece.count - done)
            let offset = backwards ? piece.count - done - count : done
            try step(piece, offset, Int(count))
            done += count
            control.record.wrote(count)
        }
    }

    private func step(_ piece: CopyPiece, _ offset: UInt64, _ count: Int) throws(CopyFailure) {
        let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
        if let source = piece.source {
            do throws(StoreError) { try source.store.read(at: piece.sourceOffset + offset, into: part) } catch
            {
                throw CopyFailure(reason: .store(error, .read), segment: piece.segment)
            }
        } else {
            part.initializeMemory(as: UInt8.self, repeating: 0)
        }
        do throws(StoreError) {
            try piece.target.store.write(
                UnsafeRawBufferPointer(part), at: piece.targetOffset + offset, durable: false)
        } catch { throw CopyFailure(reason: .store(error, .write), segment: piece.segment) }
    }
}
