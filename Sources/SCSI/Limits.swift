/// Bounds of what the codecs of this module read, whatever the bytes say.
public enum SCSILimits {
    /// The longest CDB (SPC-4 §4.2.3: variable length, 8 bytes + 252), bytes.
    public static let cdbBytes = 260
    /// The longest sense data (SPC-4 §4.5.1), bytes.
    public static let senseBytes = 252
    /// The longest designator in a designation descriptor (a one-byte length), bytes.
    public static let designatorBytes = 255
    /// The longest designator that an identification CSCD descriptor holds (SPC-4 §6.4.5.2), bytes.
    public static let cscdDesignatorBytes = 20
    /// The greatest number of blocks in READ(6) and WRITE(6): the length 0 means it (SBC-3 §5.8).
    public static let sixByteBlocks: UInt64 = 256
}
