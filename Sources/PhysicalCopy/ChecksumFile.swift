import Blocks

/// The file with a data portion's checksums, as the manifest names it.
public struct ChecksumDescription: Codable, Hashable, Sendable {
    /// The file's name when a copy is made, and when it was integrated.
    public static let fileName = "checksums"
    public static let integratedFileName = "checksums.integrated"

    public var name = ChecksumDescription.fileName
    /// Bytes of a chunk.
    public var chunkSize: UInt64
    /// Bytes of the file.
    public var length: UInt64
    /// The file's CRC-32C, eight lower-case hexadecimal digits.
    public var checksum: String

    /// Whether these are the numbers of a file that sums up `bytes`.
    func covers(length bytes: UInt64) -> Bool {
        guard SliceChecksums.isSize(chunkSize, least: CopyLimits.smallestChunk) else { return false }
        let count = SliceChecksums.count(bytes, chunkSize)
        return count <= CopyLimits.checksumChunks
            && length == UInt64(ChecksumFile.length(chunks: Int(count), isPartial: false))
    }
}

/// The bytes of such a file (<doc:PhysicalCopyFormat>).
enum ChecksumFile {
    static let headerLength = 64
    static let magic: UInt64 = 0x4F55_5442_5355_4D53  // OUTBSUMS
    static let version: UInt32 = 1
    private static let isPartial: UInt32 = 1
    private static let arraySum = 56
    private static let headerSum = 60

    /// Bytes of a file.
    static func length(chunks: Int, isPartial: Bool) -> Int {
        headerLength + 4 * chunks + (isPartial ? statesLength(chunks) : 0)
    }

    private static func statesLength(_ chunks: Int) -> Int { (chunks + 3) / 4 * 4 }

    /// - Parameters:
    ///   - length: bytes that are summed up.
    ///   - states: of each chunk, of a table that is not complete.
    static func encode(_ sums: SliceChecksums, length: UInt64, states: [UInt8]? = nil) -> [UInt8] {
        let count = sums.values.count
        var bytes = [UInt8](repeating: 0, count: Self.length(chunks: count, isPartial: states != nil))
        bytes.withUnsafeMutableBytes { bytes in
            bytes.storeBigEndian(magic, at: 0)
            bytes.storeBigEndian(version, at: 8)
            bytes.storeBigEndian(states == nil ? 0 : isPartial, at: 12)
            bytes.storeBigEndian(length, at: 16)
            bytes.storeBigEndian(sums.sliceSize, at: 24)
            bytes.storeBigEndian(UInt64(count), at: 32)
            var place = headerLength
            if let states {
                precondition(states.count == count)
                UnsafeMutableRawBufferPointer(rebasing: bytes[place..<place + count]).copyBytes(from: states)
                place += statesLength(count)
            }
            for value in sums.values {
                bytes.storeBigEndian(value, at: place)
                place += 4
            }
            let array = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes[headerLength...]))
            bytes.storeBigEndian(array, at: arraySum)
            let header = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes[..<headerSum]))
            bytes.storeBigEndian(header, at: headerSum)
        }
        return bytes
    }

    /// What is wrong with a file, and where in it.
    struct Malformed: Error {
        var range: ByteRange
        var reason: String
    }

    /// What a file says.
    struct Content {
        var length: UInt64
        var sums: SliceChecksums
        /// Nil: all are known.
        var states: [UInt8]?
    }

    static func decode(_ bytes: [UInt8]) throws(Malformed) -> Content {
        let header = ByteRange(offset: 0, count: UInt64(headerLength))
        guard bytes.count >= headerLength else {
            throw Malformed(
                range: ByteRange(offset: 0, count: UInt64(bytes.count)),
                reason: "it is shorter than its header")
        }
        let result = bytes.withUnsafeBytes { bytes -> Result<Content, Malformed> in
            do throws(Malformed) { return .success(try decode(bytes, header)) } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    private static func decode(
        _ bytes: UnsafeRawBufferPointer, _ header: ByteRange
    ) throws(Malformed) -> Content {
        func malformed(_ reason: String) -> Malformed { Malformed(range: header, reason: reason) }
        let sum = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes[..<headerSum]))
        guard bytes.bigEndian(at: headerSum) == sum else {
            throw malformed("its header's checksum does not fit")
        }
        guard bytes.bigEndian(at: 0) == magic else { throw malformed("it is no file of checksums") }
        guard bytes.bigEndian(at: 8) == version else {
            throw malformed("its version is \(bytes.bigEndian(at: 8, as: UInt32.self))")
        }
        let flags: UInt32 = bytes.bigEndian(at: 12)
        let (length, size): (UInt64, UInt64) = (bytes.bigEndian(at: 16), bytes.bigEndian(at: 24))
        let count: UInt64 = bytes.bigEndian(at: 32)
        guard flags & ~isPartial == 0, (1...CopyLimits.volumeBytes).contains(length),
            SliceChecksums.isSize(size, least: CopyLimits.smallestChunk), count <= CopyLimits.checksumChunks,
            count == SliceChecksums.count(length, size)
        else { throw malformed("its header's numbers cannot be") }
        let chunks = Int(count)
        let isPartial = flags & isPartial != 0
        let array = ByteRange(offset: header.end, count: UInt64(bytes.count) - header.end)
        guard bytes.count == Self.length(chunks: chunks, isPartial: isPartial) else {
            throw Malformed(range: array, reason: "it is not as long as its header says")
        }
        let found = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes[headerLength...]))
        guard bytes.bigEndian(at: arraySum) == found else {
            throw Malformed(range: array, reason: "the checksum of its checksums does not fit")
        }
        var place = headerLength
        var states: [UInt8]?
        if isPartial {
            let known = Array(bytes[place..<place + chunks])
            guard known.allSatisfy({ $0 <= 2 }) else {
                throw Malformed(range: array, reason: "it says of a chunk what cannot be")
            }
            states = known
            place += statesLength(chunks)
        }
        let values = (0..<chunks).map { bytes.bigEndian(at: place + 4 * $0, as: UInt32.self) }
        return Content(length: length, sums: SliceChecksums(sliceSize: size, values: values), states: states)
    }

    /// The description of a file of these bytes.
    static func describe(_ bytes: [UInt8], _ sums: SliceChecksums, name: String) -> ChecksumDescription {
        ChecksumDescription(
            name: name, chunkSize: sums.sliceSize, length: UInt64(bytes.count),
            checksum: hexadecimal(CRC32C.checksum(bytes)))
    }

    /// Reads the file that a manifest names.
    /// - Parameter length: of the data portion.
    static func decode(
        _ bytes: [UInt8], as description: ChecksumDescription, length: UInt64
    ) throws(Malformed) -> SliceChecksums {
        let content = try decode(bytes)
        let all = ByteRange(offset: 0, count: UInt64(bytes.count))
        guard content.states == nil, content.length == length, content.sums.sliceSize == description.chunkSize
        else { throw Malformed(range: all, reason: "it is another copy's") }
        let found = hexadecimal(CRC32C.checksum(bytes))
        guard found == description.checksum else {
            throw Malformed(
                range: all, reason: "its CRC-32C is \(found), the manifest says \(description.checksum)")
        }
        return content.sums
    }
}

extension CopyDraft {
    /// Writes the file of the data portion's checksums.
    /// - Parameter length: of the data portion, bytes.
    /// - Returns: what the manifest says of it.
    public func write(_ sums: SliceChecksums, length: UInt64) throws(CopyError) -> ChecksumDescription {
        let bytes = ChecksumFile.encode(sums, length: length)
        let description = ChecksumFile.describe(bytes, sums, name: ChecksumDescription.fileName)
        precondition(description.covers(length: length), "checksums of something else")
        try write(member: description.name, bytes)
        return description
    }
}

extension PhysicalCopy {
    /// What the data portion must sum to, slice by slice; read once.
    /// - Throws: `damaged` where the file with them is.
    public func dataChecksums() throws(CopyError) -> SliceChecksums {
        do throws(ChecksumFile.Malformed) { return try loadChecksums() } catch {
            throw CopyError(
                .damaged, "read the checksums of \(directory)", error.reason,
                advice: "see what `outboard verify` says; the copy cannot be trusted")
        }
    }

    func loadChecksums() throws(ChecksumFile.Malformed) -> SliceChecksums {
        switch manifest.data.checksums {
        case .slices(let slices): return slices
        case .file(let description):
            let found = readChecksums.withLock { $0?.description == description ? $0?.sums : nil }
            if let found { return found }
            let bytes: [UInt8]
            do throws(CopyError) {
                bytes = try files.read(
                    description.name, in: lock.descriptor, limit: Int(description.length),
                    "read \(description.name)")
            } catch {
                throw ChecksumFile.Malformed(
                    range: ByteRange(offset: 0, count: description.length), reason: error.reason)
            }
            let sums = try ChecksumFile.decode(bytes, as: description, length: manifest.data.length)
            readChecksums.withLock { $0 = (description, sums) }
            return sums
        }
    }
}
