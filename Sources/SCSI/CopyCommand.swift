import Blocks

/// Service actions of THIRD-PARTY COPY OUT (83h) and THIRD-PARTY COPY IN (84h) whose list identifiers have
/// 32 bits. Lengths are in bytes.
public enum CopyCommand: Hashable, Sendable {
    /// EXTENDED COPY (LID4); the list identifier is in its ``CopyParameterList``.
    case extendedCopy(parameterListLength: Int)
    /// COPY OPERATION ABORT.
    case abort(listIdentifier: UInt32)
    /// RECEIVE COPY STATUS (LID4), answered by a ``CopyOperationReport``.
    case status(listIdentifier: UInt32, allocationLength: Int)

    /// Nil for a service action that is none of these.
    init?(_ code: OperationCode, _ cdb: [UInt8]) throws(CheckCondition) {
        let length = Int(cdb.bigEndian(at: 10, as: UInt32.self))
        switch (code, cdb[1] & 0x1F) {
        case (.extendedCopy, ServiceAction.extendedCopyLID4):
            self = .extendedCopy(parameterListLength: length)
        case (.extendedCopy, ServiceAction.copyOperationAbort):
            self = .abort(listIdentifier: cdb.bigEndian(at: 2))
        case (.receiveCopyResults, CopyResultsServiceAction.copyStatusLID4.rawValue):
            self = .status(listIdentifier: cdb.bigEndian(at: 2), allocationLength: length)
        default: return nil
        }
    }

    func encoded() -> [UInt8] {
        switch self {
        case .extendedCopy(let length):
            Command.cdb(.extendedCopy) {
                $0.set(ServiceAction.extendedCopyLID4, at: 1)
                $0.set(UInt32(length), at: 10)
            }
        case .abort(let identifier):
            Command.cdb(.extendedCopy) {
                $0.set(ServiceAction.copyOperationAbort, at: 1)
                $0.set(identifier, at: 2)
            }
        case .status(let identifier, let length):
            Command.cdb(.receiveCopyResults) {
                $0.set(CopyResultsServiceAction.copyStatusLID4.rawValue, at: 1)
                $0.set(identifier, at: 2)
                $0.set(UInt32(length), at: 10)
            }
        }
    }
}
