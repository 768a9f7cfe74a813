import Blocks
import NIOCore

/// Executes checked requests on a store and writes their replies. Nothing here allocates for a READ or a
/// WRITE whose reply fits the buffer that it is given.
struct RequestExecutor: Sendable {
    static let simpleHeader = 16
    static let chunkHeader = 20

    let store: any BlockStore
    let structuredReplies: Bool

    init(_ agreement: Agreement) {
        store = agreement.export.store
        structuredReplies = agreement.structuredReplies
    }

    /// Bytes of a READ's reply before the data.
    var readHeader: Int { structuredReplies ? Self.chunkHeader + 8 : Self.simpleHeader }

    /// Bytes that a reply may need in memory while its request is executed.
    func memory(_ request: RequestHeader) -> Int {
        switch request.command {
        case .read: readHeader + Int(request.length)
        case .write: Int(request.length)
        default: 0
        }
    }

    /// Executes `request` and appends its reply to `output`.
    func execute(_ request: RequestHeader, payload: UnsafeRawBufferPointer, output: inout ByteBuffer) {
        switch request.command {
        case .read: read(request, &output)
        case .blockStatus: blockStatus(request, &output)
        default: reply(request, error: change(request, payload), &output)
        }
    }

    /// Executes a READ or WRITE as ``execute(_:payload:output:)`` does, unless it is a WRITE that would have to
    /// wait for something else than the device.
    /// - Returns: false when it would; then nothing was done.
    func executePromptly(
        _ request: RequestHeader, payload: UnsafeRawBufferPointer, output: inout ByteBuffer
    ) -> Bool {
        guard request.command == .write else {
            execute(request, payload: payload, output: &output)
            return true
        }
        var error: ErrorCode?
        guard writePromptly(request, payload, error: &error) else { return false }
        reply(request, error: error, &output)
        return true
    }

    /// - Returns: false when nothing was done because the write would have to wait; `error` is set when the write
    ///   was tried and failed.
    func writePromptly(
        _ request: RequestHeader, _ payload: UnsafeRawBufferPointer, error: inout ErrorCode?
    ) -> Bool {
        do throws(StoreError) { return try store.writePromptly(payload, at: request.offset) } catch let
            failure
        {
            error = ErrorCode(failure, fastZero: false)
            return true
        }
    }

    /// Appends the reply to a request that has no data: done, or failed.
    func reply(_ request: RequestHeader, error: ErrorCode?, _ output: inout ByteBuffer) {
        output.writeWithUnsafeMutableBytes(minimumWritableBytes: Self.chunkHeader + 6) { buffer in
            // READ and BLOCK_STATUS must be answered with chunks once those were negotiated; others may not.
            if let error, structuredReplies, request.command == .read || request.command == .blockStatus {
                return errorChunk(request, error, buffer)
            }
            buffer.storeBigEndian(Magic.simpleReply, at: 0)
            buffer.storeBigEndian(error?.rawValue ?? 0, at: 4)
            buffer.storeBigEndian(request.cookie, at: 8)
            return Self.simpleHeader
        }
    }

    private func errorChunk(
        _ request: RequestHeader, _ error: ErrorCode, _ buffer: UnsafeMutableRawBufferPointer
    ) -> Int {
        chunk(.error, request, count: 6, buffer)
        buffer.storeBigEndian(error.rawValue, at: Self.chunkHeader)
        buffer.storeBigEndian(UInt16(0), at: Self.chunkHeader + 4)
        return Self.chunkHeader + 6
    }

    private func chunk(
        _ type: ChunkType, _ request: RequestHeader, count: Int, _ buffer: UnsafeMutableRawBufferPointer
    ) {
        buffer.storeBigEndian(Magic.structuredReply, at: 0)
        buffer.storeBigEndian(ChunkType.done, at: 4)
        buffer.storeBigEndian(type.rawValue, at: 6)
        buffer.storeBigEndian(request.cookie, at: 8)
        buffer.storeBigEndian(UInt32(count), at: 16)
    }

    private func read(_ request: RequestHeader, _ output: inout ByteBuffer) {
        let count = Int(request.length)
        var failure: ErrorCode?
        output.writeWithUnsafeMutableBytes(minimumWritableBytes: readHeader + count) { buffer in
            let data = UnsafeMutableRawBufferPointer(rebasing: buffer[readHeader..<readHeader + count])
            do throws(StoreError) { try store.read(at: request.offset, into: data) } catch {
                failure = ErrorCode(error, fastZero: false)
                return 0
            }
            if structuredReplies {
                chunk(.offsetData, request, count: 8 + count, buffer)
                buffer.storeBigEndian(request.offset, at: Self.chunkHeader)
            } else {
                buffer.storeBigEndian(Magic.simpleReply, at: 0)
                buffer.storeBigEndian(UInt32(0), at: 4)
                buffer.storeBigEndian(request.cookie, at: 8)
            }
            return readHeader + count
        }
        if let failure { reply(request, error: failure, &output) }
    }

    private func blockStatus(_ request: RequestHeader, _ output: inout ByteBuffer) {
        let range = ByteRange(offset: request.offset, count: UInt64(request.length))
        let limit = request.flags.contains(.reqOne) ? 1 : NBDLimits.extentsPerReply
        let extents: [AllocationExtent]
        do throws(StoreError) { extents = try store.allocation(of: range, limit: limit) } catch {
            reply(request, error: ErrorCode(error, fastZero: false), &output)
            return
        }
        precondition(!extents.isEmpty && extents.count <= limit, "a store owes 1 to \(limit) extents")
        let count = 4 + 8 * extents.count
        output.writeWithUnsafeMutableBytes(minimumWritableBytes: Self.chunkHeader + count) { buffer in
            chunk(.blockStatus, request, count: count, buffer)
            buffer.storeBigEndian(AllocationState.contextID, at: Self.chunkHeader)
            var position = Self.chunkHeader + 4
            for extent in extents {
                let state =
                    (extent.isHole ? AllocationState.hole : 0)
                    | (extent.readsAsZeros ? AllocationState.zero : 0)
                buffer.storeBigEndian(UInt32(extent.count), at: position)
                buffer.storeBigEndian(state, at: position + 4)
                position += 8
            }
            return position
        }
    }

    func change(_ request: RequestHeader, _ payload: UnsafeRawBufferPointer) -> ErrorCode? {
        let range = ByteRange(offset: request.offset, count: UInt64(request.length))
        // On an export that cannot be written there is nothing to make durable.
        let durable = request.flags.contains(.fua) && store.capabilities.contains(.writable)
        do throws(StoreError) {
            switch request.command {
            case .write:
                try store.write(payload, at: request.offset, durable: durable)
            case .writeZeroes:
                var options: ZeroOptions = durable ? .durable : []
                if request.flags.contains(.noHole) { options.insert(.keepAllocated) }
                if request.flags.contains(.fastZero) {
                    guard store.capabilities.contains(.zeroesFast) else { return .notSupported }
                    options.insert(.onlyIfFast)
                }
                try store.writeZeroes(range, options: options)
            case .trim:
                try store.trim(range, durable: durable)
            case .flush:
                try store.flush()
            case .cache:
                try store.prefetch(range)
            case .read, .blockStatus, .disconnect, nil:
                preconditionFailure("a request without change")
            }
            return nil
        } catch {
            return ErrorCode(error, fastZero: request.flags.contains(.fastZero))
        }
    }
}
