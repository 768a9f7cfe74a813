import Blocks
import Glibc

/// Where a backup is read from, in one pass: a file, a device, a pipe. Sums up what passes.
public final class BackupInput {
    private enum Kind {
        case file
        /// It may go on behind the backup.
        case blockDevice
        /// One record at a time, as a tape has them.
        case characterDevice
        case stream
    }

    /// For people.
    public let name: String
    private let descriptor: Int32
    private let ownsDescriptor: Bool
    private let kind: Kind
    private let memory: ZeroedMemory
    /// The block that was read last: where it stands in the stream, and its bytes.
    private(set) var blockStart: UInt64 = 0
    private var blockCount = 0
    private var checksums = StreamChecksums()
    /// Bytes of the block that are summed up.
    private var summed = 0
    private var isSummed = true
    /// Bytes of the stream up to which reading may go on.
    private var budget = UInt64.max
    /// Why nothing more can be read, if it is another reason than the stream's end.
    private(set) var failure: CopyError?
    /// Asked again and again; throws to stop.
    private let check: () throws(CopyError) -> Void

    /// - Parameters:
    ///   - path: of a file or device.
    ///   - check: called before each read, and while a pipe is waited for; throws to stop.
    public init(_ path: String, check: @escaping () throws(CopyError) -> Void) throws(CopyError) {
        name = path
        self.check = check
        let action = "read the backup \(path)"
        descriptor = try Files().open(path, O_RDONLY, action)
        ownsDescriptor = true
        var information = stat()
        guard fstat(descriptor, &information) == 0 else { throw .system(errno, action) }
        switch information.st_mode & S_IFMT {
        case S_IFREG: kind = .file
        case S_IFBLK: kind = .blockDevice
        case S_IFCHR: kind = .characterDevice
        case S_IFIFO: kind = .stream
        default: throw CopyError(.missing, action, "it is neither a file nor a device")
        }
        memory = Self.memory(kind)
        posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL)
    }

    /// Standard input, or whatever else is open already.
    public init(
        descriptor: Int32, name: String, check: @escaping () throws(CopyError) -> Void
    ) {
        self.name = name
        self.descriptor = descriptor
        self.check = check
        ownsDescriptor = false
        kind = .stream
        memory = Self.memory(kind)
    }

    /// As people name it.
    /// - Parameter path: of a file or device; `-` is standard input.
    public convenience init(
        argument path: String, check: @escaping () throws(CopyError) -> Void
    ) throws(CopyError) {
        if path == "-" {
            self.init(descriptor: STDIN_FILENO, name: "on standard input", check: check)
        } else {
            try self.init(path, check: check)
        }
    }

    deinit { if ownsDescriptor { close(descriptor) } }

    private static func memory(_ kind: Kind) -> ZeroedMemory {
        // A tape's record must fit, whatever its size is.
        ZeroedMemory(
            count: kind == .characterDevice ? MediaLimits.recordBytes.upperBound : MediaLimits.inputBytes)
    }

    /// Bytes that have been read.
    var position: UInt64 { blockStart + UInt64(blockCount) }

    /// - Precondition: less than the smallest slice has been read.
    func sum(bySlicesOf size: UInt64) {
        precondition(position <= CopyLimits.smallestSlice)
        checksums.sliceSize = size
    }

    /// From here on so many bytes and no more may be read; nil: any number.
    func limit(_ bytes: UInt64?) { budget = bytes.map { position + $0 } ?? .max }

    /// Reads the next block. What was read before is gone then.
    /// - Returns: empty at the stream's end; nil when it failed: ``failure`` says why.
    func next() -> UnsafeRawBufferPointer? {
        guard failure == nil else { return nil }
        sumUp(to: blockCount)
        blockStart += UInt64(blockCount)
        (blockCount, summed) = (0, 0)
        do throws(CopyError) {
            guard position < budget else {
                throw CopyError(
                    .damaged, "read the backup \(name)",
                    "what stands at byte \(position) of the stream is longer than it can be")
            }
            try fill()
        } catch {
            failure = error
            return nil
        }
        return block
    }

    /// The block that was read last.
    var block: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: memory.buffer[..<blockCount]) }

    private func fill() throws(CopyError) {
        while blockCount < memory.count {
            try check()
            if kind == .stream { try waitForInput() }
            let rest = memory.buffer[blockCount...]
            let count = read(
                descriptor, UnsafeMutableRawBufferPointer(rebasing: rest).baseAddress, rest.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw .system(errno, "read the backup \(name)") }
            if count == 0 { return }
            blockCount += count
            if kind == .characterDevice { return }
        }
    }

    /// A pipe may be silent for long, and who waits for it may be asked to stop.
    private func waitForInput() throws(CopyError) {
        var wanted = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        while true {
            let count = poll(&wanted, 1, 200)
            if count > 0 { return }
            guard count == 0 || errno == EINTR else { throw .system(errno, "read the backup \(name)") }
            try check()
        }
    }

    private func sumUp(to count: Int) {
        guard isSummed, count > summed else { return }
        checksums.update(UnsafeRawBufferPointer(rebasing: block[summed..<count]))
        summed = count
    }

    /// - Parameter place: in the stream, within the block that was read last.
    /// - Returns: what everything before `place` sums to; nil when it is not within that block. What comes is not
    ///   summed up.
    func endSum(at place: UInt64) -> SliceChecksums? {
        guard place >= blockStart, place <= position else { return nil }
        sumUp(to: Int(place - blockStart))
        isSummed = false
        return checksums.finish()
    }

    /// Reads on from `place`, within the block that was read last, to `end`, and then as far as there is more, where
    /// more does not belong to something else.
    /// - Returns: where the stream ends; where the first byte is that is not zero; nil when `place` is not within that
    ///   block.
    func drain(
        from place: UInt64, to end: UInt64
    ) throws(CopyError) -> (end: UInt64, firstUnwanted: UInt64?)? {
        guard place >= blockStart, place <= position else { return nil }
        var at = place
        while true {
            var part = UnsafeRawBufferPointer(rebasing: block[Int(at - blockStart)...])
            if kind == .blockDevice || kind == .characterDevice, end < position {
                part = UnsafeRawBufferPointer(rebasing: part.prefix(Int(max(end, at) - at)))
            }
            if !part.isAllZeros, let index = part.firstIndex(where: { $0 != 0 }) {
                return (position, at + UInt64(index))
            }
            at = position
            if at >= end, kind == .blockDevice || kind == .characterDevice { return (end, nil) }
            guard let next = next() else { throw failure! }
            if next.isEmpty { return (position, nil) }
        }
    }
}
