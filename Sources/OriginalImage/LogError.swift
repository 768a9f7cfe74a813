import Blocks
import FoundationEssentials

/// Why a log cannot be used, read or written.
public enum LogError: Error, Hashable, Sendable {
    /// Neither superblock is valid.
    case noValidSuperblock
    /// The cache holds something that is not an original image log.
    case foreignContents
    case unsupportedVersion(UInt32)
    /// The log belongs to another volume.
    case otherVolume(found: UUID, expected: UUID)
    /// An open epoch of the log cannot go on with these settings; the text says which differ.
    case otherGeometry(String)
    /// Bytes needed and bytes there.
    case tooSmall(needed: UInt64, available: UInt64)
    /// Bytes that do not verify; the text says which and where.
    case corrupt(String)
    /// The log has no room for the originals.
    case full
    /// The operation does not fit the epoch's state.
    case wrongState(LogState?)
    /// The store below failed.
    case store(StoreError)
}

extension LogError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .noValidSuperblock: "it is not an original image log, or both of its superblocks are damaged"
        case .foreignContents: "it is not blank and holds no original image log"
        case .unsupportedVersion(let version): "its format version \(version) is not known to this program"
        case .otherVolume(let found, let expected):
            "it belongs to another volume (\(found); this one is \(expected))"
        case .otherGeometry(let what): "it holds an open epoch with \(what)"
        case .tooSmall(let needed, let available):
            "it is too small: \(ByteCount(available)), at least \(ByteCount(needed)) is needed"
        case .corrupt(let what): "it does not verify: \(what)"
        case .full: "the original image cache is full"
        case .wrongState(let state): "the epoch is not in the right state (\(state?.description ?? "none"))"
        case .store(let error) where error.code == .noSpace: "no space left under it"
        case .store(let error): "input or output failed (\(error.code), errno \(error.errno))"
        }
    }
}

/// Runs an operation of a store; its errors become the log's.
func onStore<Result>(_ body: () throws(StoreError) -> Result) throws(LogError) -> Result {
    do throws(StoreError) { return try body() } catch { throw .store(error) }
}
