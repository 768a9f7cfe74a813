// The one file that imports libnbd.
import Blocks
import CLibNBD
import Glibc

/// An NBD export as a store, by libnbd. A server that allows several connections (NBD_FLAG_CAN_MULTI_CONN)
/// gets one more whenever all are busy, up to a bound; with another, callers take turns.
///
/// A lost connection is not made again: its callers get ``StoreError/Code/gone``.
public final class NBDStore: BlockStore {
    /// Where an export is.
    public enum Address: Hashable, Sendable, CustomStringConvertible {
        /// A unix socket's path and an export's name; the empty one is the default export.
        case unixSocket(String, export: String)
        /// `nbd://…`, `nbds://…`, `nbd+unix:///…`.
        case uri(String)

        public var description: String {
            switch self {
            case .unixSocket(let path, let export): export.isEmpty ? path : "\(path) (export \(export))"
            case .uri(let uri): uri
            }
        }
    }

    /// A libnbd handle; one caller at a time has it.
    private struct Handle: @unchecked Sendable {
        // @unchecked: an opaque pointer; the pool gives it to one thread.
        let pointer: OpaquePointer
    }

    private struct Pool {
        var idle: [Handle]
        var count = 1
    }

    private struct Features {
        var fua = false
        var flush = false
        var zero = false
        var fastZero = false
        var cache = false
        var blockStatus = false
        var maximumConnections = 1
    }

    private let address: Address
    private let pool: Monitor<Pool>
    private let features: Features
    private let blocks: PartialBlocks
    private let requestBytes: Int

    public let size: UInt64
    public let capabilities: StoreCapabilities

    /// Connects.
    /// - Parameter connections: the most that are made, should the server allow several.
    /// - Throws: 69 when the server is not reachable, 66 when it has no such export, 77 when it may not be used.
    public init(_ address: Address, connections: Int = ClientLimits.nbdConnections) throws(AgentError) {
        precondition(connections > 0)
        self.address = address
        let handle = try Self.connect(address)
        let nbd = handle.pointer
        func can(_ question: (OpaquePointer?) -> Int32) -> Bool { question(nbd) == 1 }
        var features = Features()
        features.fua = can(nbd_can_fua)
        features.flush = can(nbd_can_flush)
        features.zero = can(nbd_can_zero)
        features.fastZero = can(nbd_can_fast_zero)
        features.cache = can(nbd_can_cache)
        features.blockStatus = nbd_can_meta_context(nbd, Self.allocationContext) == 1
        if can(nbd_can_multi_conn) { features.maximumConnections = connections }
        self.features = features
        var capabilities: StoreCapabilities = []
        if !can(nbd_is_read_only) { capabilities.insert(.writable) }
        if can(nbd_can_trim) { capabilities.insert(.trims) }
        if features.fastZero { capabilities.insert(.zeroesFast) }
        if features.blockStatus { capabilities.insert(.knowsAllocation) }
        self.capabilities = capabilities

        let exportSize = nbd_get_size(nbd)
        let minimum = nbd_get_block_size(nbd, Int32(LIBNBD_SIZE_MINIMUM))
        let maximum = nbd_get_block_size(nbd, Int32(LIBNBD_SIZE_MAXIMUM))
        let block = UInt64(max(minimum, 1))
        guard exportSize >= 0, block & (block - 1) == 0, block <= 64 << 10,
            UInt64(exportSize) % block == 0, maximum <= 0 || UInt64(maximum) >= block
        else {
            nbd_close(nbd)
            throw AgentError(
                .unavailable, doing: "connecting to the NBD export", to: address.description,
                because: "its size or its block size cannot be served")
        }
        size = UInt64(exportSize)
        blocks = PartialBlocks(blockLength: block)
        let bound =
            maximum > 0 ? min(Int(maximum), ClientLimits.nbdRequestBytes) : ClientLimits.nbdRequestBytes
        requestBytes = Int(UInt64(bound).roundedDown(to: block))
        pool = Monitor(Pool(idle: [handle]))
    }

    deinit {
        pool.withLock { pool in
            for handle in pool.idle {
                // A polite end, not waited for; a server that does not hear it has gone.
                _ = nbd_aio_disconnect(handle.pointer, 0)
                nbd_close(handle.pointer)
            }
            pool.idle = []
        }
    }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        try blocks.read(at: offset, into: buffer, whole: readBlocks)
    }

    public func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        let range = ByteRange(offset: offset, count: UInt64(buffer.count))
        try requireWritable(range)
        try blocks.write(
            buffer, at: offset, read: readBlocks,
            whole: { position, bytes throws(StoreError) in
                try writeBlocks(position, bytes, durable: durable)
            })
        if durable, !features.fua { try flush() }
    }

    public func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try requireWritable(range)
        if options.contains(.onlyIfFast), !features.fastZero { throw StoreError(.notSupported) }
        try blocks.writeZeroes(
            range,
            whole: { whole throws(StoreError) in try zeroBlocks(whole, options) },
            read: readBlocks,
            write: { position, bytes throws(StoreError) in
                try writeBlocks(position, bytes, durable: options.contains(.durable))
            })
        if options.contains(.durable), !features.fua { try flush() }
    }

    public func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
        try requireWritable(range)
        let first = range.offset.roundedUp(to: blocks.blockLength)
        let last = range.end.roundedDown(to: blocks.blockLength)
        if capabilities.contains(.trims), first < last {
            let flags = durable && features.fua ? UInt32(LIBNBD_CMD_FLAG_FUA) : 0
            try eachPart(of: ByteRange(offset: first, count: last - first)) { nbd, part in
                nbd_trim(nbd, part.count, part.offset, flags)
            }
        }
        if durable, !features.fua { try flush() }
    }

    public func flush() throws(StoreError) {
        guard capabilities.contains(.writable) else { throw StoreError(.readOnly) }
        // Without the flag the server has nothing volatile to tell of.
        guard features.flush else { return }
        try command { nbd in nbd_flush(nbd, 0) }
    }

    public func prefetch(_ range: ByteRange) throws(StoreError) {
        requireWithin(range)
        guard features.cache else { return }
        let first = range.offset.roundedDown(to: blocks.blockLength)
        let last = range.end.roundedUp(to: blocks.blockLength)
        guard first < last else { return }
        try eachPart(of: ByteRange(offset: first, count: last - first)) { nbd, part in
            nbd_cache(nbd, part.count, part.offset, 0)
        }
    }

    private func readBlocks(_ offset: UInt64, _ buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        var done = 0
        while done < buffer.count {
            let count = min(buffer.count - done, requestBytes)
            let position = offset + UInt64(done)
            let target = buffer.baseAddress! + done
            try command { nbd in nbd_pread(nbd, target, count, position, 0) }
            done += count
        }
    }

    private func writeBlocks(
        _ offset: UInt64, _ buffer: UnsafeRawBufferPointer, durable: Bool
    ) throws(StoreError) {
        let flags = durable && features.fua ? UInt32(LIBNBD_CMD_FLAG_FUA) : 0
        var done = 0
        while done < buffer.count {
            let count = min(buffer.count - done, requestBytes)
            let position = offset + UInt64(done)
            let source = buffer.baseAddress! + done
            try command { nbd in nbd_pwrite(nbd, source, count, position, flags) }
            done += count
        }
    }

    private func zeroBlocks(_ range: ByteRange, _ options: ZeroOptions) throws(StoreError) {
        guard features.zero else {
            let zeros = ZeroedMemory(count: Int(min(range.count, UInt64(requestBytes), 4 << 20)))
            var position = range.offset
            while position < range.end {
                let count = Int(min(range.end - position, UInt64(zeros.count)))
                try writeBlocks(
                    position, UnsafeRawBufferPointer(rebasing: zeros.buffer[..<count]),
                    durable: options.contains(.durable))
                position += UInt64(count)
            }
            return
        }
        var flags: UInt32 = 0
        if options.contains(.durable), features.fua { flags |= UInt32(LIBNBD_CMD_FLAG_FUA) }
        if options.contains(.keepAllocated) { flags |= UInt32(LIBNBD_CMD_FLAG_NO_HOLE) }
        if options.contains(.onlyIfFast) { flags |= UInt32(LIBNBD_CMD_FLAG_FAST_ZERO) }
        let all = flags
        try eachPart(of: range) { nbd, part in nbd_zero(nbd, part.count, part.offset, all) }
    }

    /// Requests without data, as long as the protocol's lengths reach.
    private func eachPart(
        of range: ByteRange, _ body: (OpaquePointer, ByteRange) -> Int32
    ) throws(StoreError) {
        var position = range.offset
        while position < range.end {
            let part = ByteRange(
                offset: position, count: min(range.end - position, ClientLimits.nbdRangeBytes))
            try command { nbd in body(nbd, part) }
            position = part.end
        }
    }
}

// Handles.
extension NBDStore {
    private static let allocationContext = "base:allocation"

    /// Runs one libnbd call on a handle of its own.
    private func command(_ body: (OpaquePointer) -> Int32) throws(StoreError) {
        let handle = acquire()
        let code = body(handle.pointer)
        // Asked on this thread and before another call: libnbd keeps the error per thread.
        let failure = code == -1 ? Self.storeError(nbd_get_errno(), isDead: isDead(handle)) : nil
        pool.withLockAndNotify { $0.idle.append(handle) }
        if let failure { throw failure }
    }

    private func isDead(_ handle: Handle) -> Bool {
        nbd_aio_is_dead(handle.pointer) == 1 || nbd_aio_is_closed(handle.pointer) == 1
    }

    private func acquire() -> Handle {
        enum Turn {
            case take(Handle)
            case connect
        }
        let turn = pool.wait { pool -> Turn? in
            // The last given back is the likeliest to be in the processor's caches.
            if let handle = pool.idle.popLast() { return .take(handle) }
            guard pool.count < features.maximumConnections else { return nil }
            pool.count += 1
            return .connect
        }
        switch turn {
        case .take(let handle): return handle
        case .connect:
            do throws(AgentError) {
                let handle = try Self.connect(address)
                // Another size is another server's, started meanwhile.
                if UInt64(bitPattern: nbd_get_size(handle.pointer)) == size { return handle }
                nbd_close(handle.pointer)
            } catch {}
            // One connection fewer, then: those that stand are enough.
            pool.withLock { $0.count -= 1 }
            return pool.wait { $0.idle.popLast() }
        }
    }

    private static func connect(_ address: Address) throws(AgentError) -> Handle {
        let doing = "connecting to the NBD export"
        guard let nbd = nbd_create() else {
            throw AgentError(.unavailable, doing: doing, to: address.description, because: lastError())
        }
        var code = nbd_add_meta_context(nbd, allocationContext)
        if code == 0 {
            switch address {
            case .unixSocket(let path, let export):
                code = nbd_set_export_name(nbd, export)
                if code == 0 { code = nbd_connect_unix(nbd, path) }
            case .uri(let uri): code = nbd_connect_uri(nbd, uri)
            }
        }
        guard code == 0 else {
            let number = nbd_get_errno()
            let reason = lastError()
            nbd_close(nbd)
            let status: AgentError.ExitStatus
            switch number {
            case EACCES, EPERM: status = .notPermitted
            // A path that is not there says so, too; an export that is not is told by the server.
            case ENOENT where !reason.contains("connect: "): status = .inputMissing
            default: status = .unavailable
            }
            throw AgentError(
                status, doing: doing, to: address.description, because: reason,
                advice: "check that the server runs and which exports it has (nbdinfo --list)",
                cause: .disconnected)
        }
        return Handle(pointer: nbd)
    }

    private static func lastError() -> String {
        nbd_get_error().map { String(cString: $0) } ?? "no reason given"
    }

    private static func storeError(_ number: Int32, isDead: Bool) -> StoreError {
        switch number {
        case _ where isDead: StoreError(.gone, errno: number)
        case ESHUTDOWN, ENOTCONN, EPIPE, ECONNRESET: StoreError(.gone, errno: number)
        case ENOSPC, EDQUOT, EFBIG: StoreError(.noSpace, errno: number)
        case EPERM, EROFS: StoreError(.readOnly, errno: number)
        case EOPNOTSUPP: StoreError(.notSupported, errno: number)
        default: StoreError(.io, errno: number)
        }
    }

    public func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        requireWithin(range)
        precondition(limit > 0 && !range.isEmpty)
        guard features.blockStatus else {
            return [AllocationExtent(count: range.count, isHole: false, readsAsZeros: false)]
        }
        let start = range.offset.roundedDown(to: blocks.blockLength)
        let end = min(range.end.roundedUp(to: blocks.blockLength), start + ClientLimits.nbdRangeBytes)
        final class Found {
            var entries: [(count: UInt32, flags: UInt32)] = []
        }
        let found = Found()
        try command { nbd in
            let callback = nbd_extent_callback(
                callback: { reference, context, _, entries, count, _ in
                    guard let entries, let context, String(cString: context) == "base:allocation" else {
                        return 0
                    }
                    let found = Unmanaged<Found>.fromOpaque(reference!).takeUnretainedValue()
                    for i in stride(from: 0, to: count - 1, by: 2) {
                        found.entries.append((entries[i], entries[i + 1]))
                    }
                    return 0
                }, user_data: Unmanaged.passUnretained(found).toOpaque(), free: nil)
            return nbd_block_status(nbd, end - start, start, callback, 0)
        }
        var result: [AllocationExtent] = []
        var position = start
        for entry in found.entries where result.count < limit {
            let next = position + UInt64(entry.count)
            let piece = ByteRange(offset: position, count: UInt64(entry.count)).intersection(range)
            position = next
            guard let piece else { continue }
            result.append(
                AllocationExtent(
                    count: piece.count, isHole: entry.flags & 1 != 0, readsAsZeros: entry.flags & 2 != 0))
        }
        // A server must tell of one extent at least; of one that does not nothing is known.
        guard !result.isEmpty else { throw StoreError(.io, errno: EPROTO) }
        return result
    }
}
