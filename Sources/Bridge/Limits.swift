import SCSI

/// The bounds of the copy manager and of the units (style 8). What RECEIVE COPY RESULTS and the VPD pages
/// report is made from these, and these are what is enforced.
public enum BridgeLimits {
    /// Logical unit numbers (flat space addressing, SAM-5 §4.7).
    public static let unitNumbers = 0...16383
    /// Bytes of a logical block.
    public static let blockSizes: [UInt32] = [512, 4096]

    /// Logical blocks of a physical block, a power of two of which READ CAPACITY (16) tells the exponent in 4 bits.
    static let physicalBlockRatios: ClosedRange<UInt32> = 1...(1 << 15)

    /// CSCD descriptors of one EXTENDED COPY. With one more they still fit the list's 16-bit length.
    public static let cscdDescriptors = 1024
    /// Segment descriptors of one EXTENDED COPY.
    public static let segmentDescriptors = 4096
    /// CSCD and segment descriptors of one EXTENDED COPY together, bytes: both limits at once fit.
    public static let descriptorListBytes = cscdDescriptors * 32 + segmentDescriptors * 32
    /// Bytes of one segment; 0Ah has a field of 32 bits.
    public static let segmentBytes = UInt32.max
    /// EXTENDED COPY commands that run at once, of all nexuses together.
    public static let concurrentCopies = 64
    /// Those of one nexus: so many that the transport has threads left for COPY STATUS and for what aborts them.
    public static let concurrentCopiesOfNexus = SCSITargetLimits.nexusThreads - 8
    /// Seconds for which the results of a copy operation are held after its end: what became of it, and a ROD token.
    /// Those of EXTENDED COPY (LID1) are discarded earlier, when they have been told.
    public static let resultsHeldSeconds: UInt64 = 600
    /// Operations of one nexus that run or whose results are held; with one more, the results that are held longest
    /// are discarded. More than LID1 has identifiers.
    public static let heldResults = 1024
    /// Milliseconds after which it is worth asking again for the status of a running operation.
    static let statusUpdateMilliseconds: UInt32 = 500
    /// ROD tokens that live at once, and those of one initiator, whatever its sessions; one more is refused,
    /// INSUFFICIENT RESOURCES TO CREATE ROD TOKEN.
    public static let tokens = 1024
    public static let tokensOfInitiator = 256
    /// ROD tokens that have ended and whose bearers are still told why.
    static let endedTokens = 1024
    /// Block device range descriptors of one POPULATE TOKEN or WRITE USING TOKEN.
    public static let tokenRanges = 1024
    /// Bytes of their parameter lists.
    static let populateTokenListBytes = PopulateTokenList.headerLength + tokenRanges * BlockDeviceRange.length
    static let writeUsingTokenListBytes =
        WriteUsingTokenList.headerLength + tokenRanges * BlockDeviceRange.length
    /// Bytes that one ROD token represents, and that one WRITE USING TOKEN writes.
    public static let tokenBytes: UInt64 = 1 << 40
    /// The amount with which one WRITE USING TOKEN ends soon enough for initiators that wait for it.
    static let tokenBestBytes: UInt64 = 64 << 20
    /// Seconds without use after which a ROD token ends: what can be asked for, and what is given without.
    public static let tokenSeconds: ClosedRange<UInt32> = 1...3600
    public static let tokenDefaultSeconds: UInt32 = 300
    /// Bytes of one data-in or data-out of READ and WRITE.
    public static let transferBytes = min(SCSITargetLimits.dataInBytes, SCSITargetLimits.dataOutBytes)
    /// Buffers of 1 MiB that are divided by the number of copies when another begins (one each at least; those that
    /// began before keep theirs), and that idle engines may keep.
    static let engineDepth = 64
    /// Blocks of one COMPARE AND WRITE, a field of 8 bits.
    public static let compareAndWriteBlocks = UInt8.max
    /// Block descriptors of one UNMAP.
    public static let unmapDescriptors = 256
    /// Descriptors of one answer to GET LBA STATUS.
    static let lbaStatusDescriptors = 256
    /// Bytes that VERIFY reads at a time; after each it looks whether it was aborted.
    static let verifyStep: UInt64 = 1 << 20
    /// Bytes that one step of WRITE SAME or UNMAP does before it looks whether it was aborted.
    static let writeSameStep: UInt64 = 64 << 20
    /// Bytes of the buffer with which WRITE SAME writes a pattern.
    static let patternBytes = 1 << 20
    /// Bytes that a copy moves at a time where the copy engine is not used.
    static let serialBuffer = 1 << 20
    /// Bytes of a chunk that has a checksum; powers of two.
    public static let checksumChunkSizes: ClosedRange<UInt64> = 64 << 10...1 << 40
    /// Chunks of one unit of which checksums are kept, 8 bytes of memory each, and of all units together; one more is
    /// refused, INSUFFICIENT RESOURCES.
    public static let checksumChunks = 1 << 22
    public static let checksumChunksInAll = 1 << 24
    /// Chunks that one READ BUFFER tells.
    static let checksumsAtOnce = 1 << 16
    /// Unit attention conditions pending at one unit for one nexus; SAM-5 lets a device drop repeated ones.
    static let unitAttentions = 8

    /// Registrations of one logical unit; one more is refused, INSUFFICIENT REGISTRATION RESOURCES.
    static let registrations = 1024

    static let copyList = CopyListLimits(
        cscdDescriptors: cscdDescriptors, segmentDescriptors: segmentDescriptors,
        descriptorListBytes: descriptorListBytes, inlineDataBytes: 0, supportsNoListIdentifier: true)
}
