import Blocks
import Glibc
import PhysicalCopy

/// A simulated file as a store: what a bridge or an opener of data makes of it.
package final class SimulatedFileStore: BlockStore {
    private let calls: FileSystemCalls
    private let descriptor: Int32
    package let size: UInt64
    package let capabilities: StoreCapabilities

    package init(_ path: String, writable: Bool, _ calls: FileSystemCalls) throws(StoreError) {
        self.calls = calls
        do throws(Errno) {
            descriptor = try calls.openat(
                FileSystemCalls.noDirectory, path, writable ? O_RDWR : O_RDONLY, 0
            ).get()
        } catch { throw Self.failure(error) }
        do throws(Errno) { size = UInt64(try calls.fstat(descriptor).get().st_size) } catch {
            calls.close(descriptor)
            throw Self.failure(error)
        }
        capabilities = writable ? .writable : []
    }

    deinit { calls.close(descriptor) }

    private static func failure(_ error: Errno) -> StoreError {
        StoreError(error.code == ENOSPC ? .noSpace : .io, errno: error.code)
    }

    package func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        do throws(Errno) {
            guard try calls.pread(descriptor, buffer, offset).get() == buffer.count else {
                throw Errno(EIO)
            }
        } catch { throw Self.failure(error) }
    }

    package func write(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool
    ) throws(StoreError) {
        try requireWritable(ByteRange(offset: offset, count: UInt64(buffer.count)))
        do throws(Errno) { _ = try calls.pwrite(descriptor, buffer, offset).get() } catch {
            throw Self.failure(error)
        }
        if durable { try flush() }
    }

    package func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        let zeros = [UInt8](repeating: 0, count: Int(range.count))
        try write(zeros, at: range.offset, durable: options.contains(.durable))
    }

    package func flush() throws(StoreError) {
        do throws(Errno) { try calls.fsync(descriptor).get() } catch { throw Self.failure(error) }
    }
}
