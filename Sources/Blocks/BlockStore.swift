/// Bytes that can be read and written at any offset: a file, a device, a volume under copy-on-write, a
/// logical snapshot, a copy. Filters wrap one store and are one (design §2; style 1).
///
/// Every operation is synchronous and may be called from many threads at once; it returns when it is done
/// (a write may then still sit in a volatile cache until ``flush()``). Ranges are in bytes, any alignment,
/// and must lie within ``size``: a range beyond it is the caller's bug and traps, so servers check foreign
/// numbers first. Operations that overlap in range and time may happen in any order, torn even; whoever
/// needs an order waits for the first to return.
///
/// An operation that throws has done nothing, all, or a part of the work.
public protocol BlockStore: AnyObject, Sendable {
    /// Bytes; does not change while the store is open, but for a ``GrowableStore`` that is asked to grow.
    var size: UInt64 { get }

    /// What the store can do; does not change while the store is open.
    var capabilities: StoreCapabilities { get }

    /// Fills `buffer` from `offset`.
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError)

    /// Writes all of `buffer` at `offset`. With `durable` it is on stable storage at return (FUA).
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError)

    /// The same for several buffers that lie one behind the other from `offset`.
    func write(
        gathering buffers: UnsafeBufferPointer<UnsafeRawBufferPointer>, at offset: UInt64, durable: Bool
    ) throws(StoreError)

    /// Writes as ``write(_:at:durable:)`` does without `durable`, but only if nothing else than the device has to
    /// be waited for: for threads that serve others, too.
    /// - Returns: false when it would have to wait; then nothing was done.
    func writePromptly(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) throws(StoreError) -> Bool

    /// Makes `range` read as zeros.
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError)

    /// Advice that the bytes of `range` are needed no more; they read afterwards as they were or as zeros.
    func trim(_ range: ByteRange, durable: Bool) throws(StoreError)

    /// At return all writes that had returned before the call are on stable storage.
    func flush() throws(StoreError)

    /// Advice that `range` will soon be read. Never fails for want of the ability.
    func prefetch(_ range: ByteRange) throws(StoreError)

    /// The state of the bytes from `range.offset`, extent after extent without gaps, as far as known cheaply:
    /// at least one extent, at most `limit`, together within `range`. A store that does not know says
    /// that all is allocated.
    func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent]

    /// False while operations may wait for something else than the device (a closed gate, a full cache): a
    /// server then keeps them off its event loop. A hint; may change at any time: writes that must not wait are
    /// for ``writePromptly(_:at:)``.
    var isPrompt: Bool { get }
}

extension BlockStore {
    public func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
        if durable { try flush() }
    }
    public func write(
        gathering buffers: UnsafeBufferPointer<UnsafeRawBufferPointer>, at offset: UInt64, durable: Bool
    ) throws(StoreError) {
        var position = offset
        for buffer in buffers {
            try write(buffer, at: position, durable: false)
            position += UInt64(buffer.count)
        }
        if durable { try flush() }
    }
    public func writePromptly(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64
    ) throws(StoreError) -> Bool {
        guard isPrompt else { return false }
        try write(buffer, at: offset, durable: false)
        return true
    }
    public func prefetch(_ range: ByteRange) throws(StoreError) {}
    public func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        [AllocationExtent(count: range.count, isHole: false, readsAsZeros: false)]
    }
    public var isPrompt: Bool { true }

    /// Traps unless `range` lies within the store: each implementation asks this first.
    public func requireWithin(_ range: ByteRange) {
        precondition(range.end <= size, "a request beyond the end of the store")
    }

    /// The same of a request that writes.
    /// - Throws: ``StoreError/Code/readOnly`` where the store is.
    public func requireWritable(_ range: ByteRange) throws(StoreError) {
        requireWithin(range)
        guard capabilities.contains(.writable) else { throw StoreError(.readOnly) }
    }

    /// For tests and small things: `count` bytes from `offset` in a new array.
    public func bytes(at offset: UInt64, count: Int) throws(StoreError) -> [UInt8] {
        var result = [UInt8](repeating: 0, count: count)
        var failure: StoreError?
        result.withUnsafeMutableBytes { buffer in
            do throws(StoreError) { try read(at: offset, into: buffer) } catch { failure = error }
        }
        if let failure { throw failure }
        return result
    }

    /// For tests and small things: writes `bytes` at `offset`.
    public func write(_ bytes: [UInt8], at offset: UInt64, durable: Bool = false) throws(StoreError) {
        var failure: StoreError?
        bytes.withUnsafeBytes { buffer in
            do throws(StoreError) { try write(buffer, at: offset, durable: durable) } catch {
                failure = error
            }
        }
        if let failure { throw failure }
    }
}

/// A store that can be made longer while it is used. That is its owner's doing: whoever is given a store as a
/// ``BlockStore`` may go on to take its size for what it was.
public protocol GrowableStore: BlockStore {
    /// Makes ``BlockStore/size`` at least `size` bytes, on stable storage at return; the new ones read as zeros if the
    /// store makes them. What has that many already is left as it is. Operations may be under way meanwhile.
    /// - Throws: ``StoreError/Code/noSpace`` where there are not so many; ``StoreError/Code/notSupported`` where
    ///   this store cannot grow.
    func grow(to size: UInt64) throws(StoreError)
}

/// A store that remembers that a flush lost data, and fails every later flush for it.
public protocol RenewableStore: BlockStore {
    /// The contents begin anew, and nobody wants any more what was lost: from now on flushes tell of what is written from
    /// now on. Nobody writes or flushes meanwhile.
    /// - Throws: when data cannot be flushed now either.
    func forgetLostData() throws(StoreError)
}

/// A store that is never written, whoever asks.
public protocol ReadOnlyStore: BlockStore {}

extension ReadOnlyStore {
    public func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    public func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    public func trim(_ range: ByteRange, durable: Bool) throws(StoreError) { throw StoreError(.readOnly) }
    public func flush() throws(StoreError) { throw StoreError(.readOnly) }
}

/// What a store can do beyond being read.
public struct StoreCapabilities: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Can be written, zeroed, flushed. Without it those throw ``StoreError/Code/readOnly``.
    public static let writable = StoreCapabilities(rawValue: 1 << 0)
    /// `trim` may free space.
    public static let trims = StoreCapabilities(rawValue: 1 << 1)
    /// `writeZeroes` with ``ZeroOptions/onlyIfFast`` can succeed.
    public static let zeroesFast = StoreCapabilities(rawValue: 1 << 2)
    /// `writeZeroes` gives the space of whole pages back unless it is to be kept; what was given back reads as zeros.
    public static let unmaps = StoreCapabilities(rawValue: 1 << 4)
    /// `allocation` knows holes from data.
    public static let knowsAllocation = StoreCapabilities(rawValue: 1 << 3)
}

public struct ZeroOptions: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// On stable storage at return (FUA).
    public static let durable = ZeroOptions(rawValue: 1 << 0)
    /// The space must stay allocated (NBD_CMD_FLAG_NO_HOLE).
    public static let keepAllocated = ZeroOptions(rawValue: 1 << 1)
    /// Throw ``StoreError/Code/notSupported``, having done nothing, unless it is faster than writing zeros
    /// (NBD_CMD_FLAG_FAST_ZERO).
    public static let onlyIfFast = ZeroOptions(rawValue: 1 << 2)
}

/// One answer of ``BlockStore/allocation(of:limit:)``.
public struct AllocationExtent: Hashable, Sendable {
    /// Bytes, more than 0.
    public var count: UInt64
    public var isHole: Bool
    public var readsAsZeros: Bool

    public init(count: UInt64, isHole: Bool, readsAsZeros: Bool) {
        self.count = count
        self.isHole = isHole
        self.readsAsZeros = readsAsZeros
    }
}

/// Why a store's operation failed. A plain value, so that throwing it allocates nothing.
public struct StoreError: Error, Hashable, Sendable {
    public enum Code: Hashable, Sendable {
        /// The device or file failed (`EIO` and whatever else the system says).
        case io
        /// No space left on the device or file system.
        case noSpace
        /// The store cannot be written.
        case readOnly
        /// The store cannot do this (fast) operation; nothing was done.
        case notSupported
        /// The store was closed or taken away (an ended snapshot, a lost connection).
        case gone
        /// The data that are there are not what was stored (a checksum does not fit).
        case corrupt
    }

    public var code: Code
    /// The system's error number where there was one, else 0.
    public var errno: Int32

    public init(_ code: Code, errno: Int32 = 0) {
        self.code = code
        self.errno = errno
    }
}
