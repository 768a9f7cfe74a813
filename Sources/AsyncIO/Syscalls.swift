import Blocks
import CLibAIO
import Glibc

/// A libaio request and its completion, under names that spare other files the import.
package typealias ControlBlock = iocb
package typealias CompletionEvent = io_event
package typealias AIOContext = io_context_t

/// Every system call that moves or measures data, one entry each, so that tests can put failures, short
/// transfers and interruptions in their place (style 5). The entries do nothing but the call; retrying is
/// the callers' work.
package struct SystemCalls: Sendable {
    package typealias Vectors = UnsafeBufferPointer<iovec>

    package var pread: @Sendable (Int32, UnsafeMutableRawBufferPointer, UInt64) -> Result<Int, Errno> = {
        fd, buffer, offset in
        SystemCalls.result { Glibc.pread(fd, buffer.baseAddress, buffer.count, off_t(offset)) }
    }
    package var pwrite: @Sendable (Int32, UnsafeRawBufferPointer, UInt64) -> Result<Int, Errno> = {
        fd, buffer, offset in
        SystemCalls.result { Glibc.pwrite(fd, buffer.baseAddress, buffer.count, off_t(offset)) }
    }
    /// The last argument asks for RWF_DSYNC.
    package var pwritev: @Sendable (Int32, Vectors, UInt64, Bool) -> Result<Int, Errno> = {
        fd, vectors, offset, durable in
        SystemCalls.result {
            CLibAIO.pwritev2(
                fd, vectors.baseAddress, Int32(vectors.count), off_t(offset),
                durable ? Int32(OUTBOARD_RWF_DSYNC) : 0)
        }
    }
    package var fdatasync: @Sendable (Int32) -> Result<Int, Errno> = { fd in
        SystemCalls.result { Int(Glibc.fdatasync(fd)) }
    }
    package var fsync: @Sendable (Int32) -> Result<Int, Errno> = { fd in
        SystemCalls.result { Int(Glibc.fsync(fd)) }
    }
    package var truncate: @Sendable (Int32, UInt64) -> Result<Int, Errno> = { fd, size in
        SystemCalls.result { Int(Glibc.ftruncate(fd, off_t(size))) }
    }
    package var fallocate: @Sendable (Int32, FallocateMode, UInt64, UInt64) -> Result<Int, Errno> = {
        fd, mode, offset, count in
        SystemCalls.result { Int(CLibAIO.fallocate(fd, mode.rawValue, off_t(offset), off_t(count))) }
    }
    /// BLKZEROOUT or BLKDISCARD of a byte range.
    package var deviceRange: @Sendable (Int32, DeviceRangeRequest, UInt64, UInt64) -> Result<Int, Errno> = {
        fd, request, offset, count in
        var range = (offset, count)
        let code = request == .zeroOut ? OUTBOARD_BLKZEROOUT : OUTBOARD_BLKDISCARD
        return SystemCalls.result { Int(ioctl(fd, code, &range)) }
    }
    /// SEEK_DATA or SEEK_HOLE.
    package var seek: @Sendable (Int32, UInt64, SeekTarget) -> Result<Int, Errno> = { fd, offset, target in
        SystemCalls.result { lseek(fd, off_t(offset), target.rawValue) }
    }

    /// Whether memory begins where direct I/O takes it. No call, but what a simulation must decide, too: where memory lies
    /// differs from run to run.
    package var isAligned: @Sendable (UnsafeRawPointer?, Int) -> Bool = {
        UInt(bitPattern: $0) & UInt($1 - 1) == 0
    }

    package var ioSetup: @Sendable (Int, UnsafeMutablePointer<AIOContext?>) -> Result<Int, Errno> = {
        count, context in
        SystemCalls.aioResult(Int(io_setup(Int32(count), context)))
    }
    package var ioDestroy: @Sendable (AIOContext) -> Void = { context in _ = io_destroy(context) }
    package var ioSubmit:
        @Sendable (AIOContext, Int, UnsafeMutablePointer<UnsafeMutablePointer<ControlBlock>?>) -> Result<
            Int, Errno
        > = {
            context, count, blocks in
            SystemCalls.aioResult(Int(io_submit(context, count, blocks)))
        }
    /// At least one event, unless the time (milliseconds) is over.
    package var ioGetEvents:
        @Sendable (AIOContext, UnsafeMutableBufferPointer<CompletionEvent>, Int) -> Result<Int, Errno> = {
            context, events, milliseconds in
            var time = timespec(tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000)
            return SystemCalls.aioResult(
                Int(io_getevents(context, 1, events.count, events.baseAddress, &time)))
        }

    package init() {}

    static let live = SystemCalls()

    private static func result(_ call: () -> Int) -> Result<Int, Errno> {
        let value = call()
        return value < 0 ? .failure(Errno(Glibc.errno)) : .success(value)
    }

    /// libaio returns the negated error number and leaves `errno` alone.
    private static func aioResult(_ value: Int) -> Result<Int, Errno> {
        value < 0 ? .failure(Errno(Int32(-value))) : .success(value)
    }
}

package enum DeviceRangeRequest: Sendable { case zeroOut, discard }

package enum SeekTarget: Int32, Sendable {
    case data = 3
    case hole = 4
}

package struct FallocateMode: Hashable, Sendable {
    var rawValue: Int32
    package static let allocate = FallocateMode(rawValue: 0)
    package static let punchHole = FallocateMode(rawValue: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
    package static let zeroRange = FallocateMode(rawValue: FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)
}

/// What opening needs beyond Glibc's module.
enum OpenCalls {
    static let oDirect = Int32(OUTBOARD_O_DIRECT)

    static func open(_ path: String, flags: Int32, mode: mode_t = 0o600) -> Result<Int32, Errno> {
        while true {
            let fd = Glibc.open(path, flags | O_CLOEXEC, mode)
            if fd >= 0 { return .success(fd) }
            let code = errno
            if code != EINTR { return .failure(Errno(code)) }
        }
    }

    /// Bytes of a block device.
    static func deviceSize(_ fd: Int32) -> Result<UInt64, Errno> {
        var size: UInt64 = 0
        return ioctl(fd, OUTBOARD_BLKGETSIZE64, &size) == 0 ? .success(size) : .failure(Errno(errno))
    }

    /// Bytes of a block device's logical block.
    static func deviceBlockSize(_ fd: Int32) -> Int? {
        var size: Int32 = 0
        return ioctl(fd, OUTBOARD_BLKSSZGET, &size) == 0 && size > 0 ? Int(size) : nil
    }

    static func deviceIsReadOnly(_ fd: Int32) -> Bool {
        var flag: Int32 = 0
        return ioctl(fd, OUTBOARD_BLKROGET, &flag) == 0 && flag != 0
    }

    /// The greater of the alignments that the system states for direct I/O on this file: 0 where it refuses
    /// direct I/O, nil where it does not say.
    static func statedAlignment(_ fd: Int32) -> Int? {
        var result = CLibAIO.statx()
        let mask = UInt32(OUTBOARD_STATX_DIOALIGN)
        guard outboard_statx(fd, "", Int32(OUTBOARD_AT_EMPTY_PATH), mask, &result) == 0,
            result.stx_mask & mask != 0
        else { return nil }
        return Int(max(result.stx_dio_mem_align, result.stx_dio_offset_align))
    }
}

extension ControlBlock {
    /// Makes this a read or write of `buffer` that carries `tag` to its completion.
    mutating func prepare(
        isWrite: Bool, descriptor: Int32, buffer: UnsafeMutableRawBufferPointer, offset: UInt64, tag: Int
    ) {
        if isWrite {
            io_prep_pwrite(&self, descriptor, buffer.baseAddress, buffer.count, Int64(offset))
        } else {
            io_prep_pread(&self, descriptor, buffer.baseAddress, buffer.count, Int64(offset))
        }
        data = UnsafeMutableRawPointer(bitPattern: tag + 1)
    }

    /// Makes this an fdatasync that carries `tag` to its completion.
    mutating func prepareFlush(descriptor: Int32, tag: Int) {
        io_prep_fdsync(&self, descriptor)
        data = UnsafeMutableRawPointer(bitPattern: tag + 1)
    }
}

extension CompletionEvent {
    var tag: Int { Int(bitPattern: data) - 1 }

    /// Bytes transferred, or the error.
    var outcome: Result<Int, Errno> {
        let value = Int(bitPattern: res)
        return value < 0 ? .failure(Errno(Int32(truncatingIfNeeded: -value))) : .success(value)
    }
}

/// A request as whoever stands in for the system sees it.
package struct AsyncRequest {
    package enum Kind: Sendable { case read, write, flush }
    package var kind: Kind
    package var descriptor: Int32
    package var buffer: UnsafeMutableRawBufferPointer
    package var offset: UInt64
    package var tag: Int
}

extension ControlBlock {
    package var request: AsyncRequest {
        let kind: AsyncRequest.Kind =
            switch UInt32(aio_lio_opcode) {
            case IO_CMD_PREAD.rawValue: .read
            case IO_CMD_PWRITE.rawValue: .write
            default: .flush
            }
        return AsyncRequest(
            kind: kind, descriptor: Int32(aio_fildes),
            buffer: UnsafeMutableRawBufferPointer(
                start: kind == .flush ? nil : u.c.buf, count: kind == .flush ? 0 : Int(u.c.nbytes)),
            offset: kind == .flush ? 0 : UInt64(u.c.offset), tag: Int(bitPattern: data) - 1)
    }
}

extension CompletionEvent {
    /// - Parameter result: bytes, or a negated error number.
    package init(tag: Int, result: Int) {
        self.init()
        data = UnsafeMutableRawPointer(bitPattern: tag + 1)
        res = UInt(bitPattern: result)
    }
}
