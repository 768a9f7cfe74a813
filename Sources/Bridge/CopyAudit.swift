import Blocks
import Logging
import SCSI

/// The one line of audit that every copy command leaves, refused ones included: who, from what, to what, how much, with what result.
struct CopyAudit: Sendable {
    /// The line's message.
    enum Command: String, Sendable {
        case extendedCopy = "EXTENDED COPY"
        case populateToken = "POPULATE TOKEN"
        case writeUsingToken = "WRITE USING TOKEN"
        case abort = "COPY OPERATION ABORT"
    }
    static let reservationConflict = "reservation conflict"

    let command: Command
    let nexus: Nexus
    /// The unit that the command was addressed to.
    let unit: Int
    /// Nil where there is none, or while it is not known.
    var listIdentifier: UInt32?
    /// Segment descriptors or block ranges; nil while it is not known whether the list makes sense.
    var segments: Int?
    /// A designator that made the command fail, as it came.
    var refused: [UInt8]?
    private let start = MonotonicClock.now

    init(_ command: Command, _ nexus: Nexus, _ unit: LogicalUnit) {
        self.command = command
        self.nexus = nexus
        self.unit = unit.number
    }

    /// Of a command whose parameter list is not looked at; nil for one that leaves no line.
    init?(_ command: SCSI.Command, _ nexus: Nexus, _ unit: LogicalUnit) {
        let (name, identifier): (Command, UInt32?)
        switch command {
        case .extendedCopy, .copy(.extendedCopy): (name, identifier) = (.extendedCopy, nil)
        case .copy(.abort(let list)): (name, identifier) = (.abort, list)
        case .token(.populate(let list, _)): (name, identifier) = (.populateToken, list)
        case .token(.write(let list, _)): (name, identifier) = (.writeUsingToken, list)
        default: return nil
        }
        self.init(name, nexus, unit)
        listIdentifier = identifier
    }

    static func describe(_ sense: SenseData) -> String {
        let code = String(sense.code.rawValue, radix: 16, uppercase: true)
        let padded = String(repeating: "0", count: 4 - code.count) + code
        var text = "\(sense.key) \(padded)h"
        if sense.key == .copyAborted, let segment = sense.commandSpecificInformation {
            text += " in segment \(segment)"
        }
        switch sense.specific {
        case .segmentPointer(_, let byte, _)?, .fieldPointer(_, let byte, _)?: text += ", byte \(byte)"
        default: break
        }
        return text
    }

    /// - Parameter plan: nil where it never came to one.
    func log(
        _ result: String, _ logger: Logger, _ plan: CopyPlan? = nil, _ record: CopyRecord? = nil
    ) {
        logger.notice(
            "\(command.rawValue)",
            metadata: [
                "initiator": "\(nexus.initiatorName)",
                "session": "\(String(nexus.sessionIdentifier, radix: 16))",
                "user": "\(nexus.authenticatedName ?? "-")",
                "unit": .stringConvertible(unit), "list": "\(listIdentifier.map { String($0) } ?? "-")",
                "from": "\(Self.describe(plan?.sources))", "to": "\(Self.describe(plan?.targets))",
                "segments": "\(segments.map { String($0) } ?? "-")",
                "bytes": .stringConvertible(record?.bytesWritten ?? 0),
                "of": "\(plan.map { String($0.totalBytes) } ?? "-")",
                "ms": .stringConvertible((MonotonicClock.now - start) / 1_000_000),
                "refused": "\(refused.map(Self.hexadecimal) ?? "-")", "result": "\(result)",
            ])
    }

    /// A CSCD descriptor has space for 20 bytes of designator.
    private static func hexadecimal(_ designator: [UInt8]) -> String {
        designator.prefix(20).map { $0 < 16 ? "0\(String($0, radix: 16))" : String($0, radix: 16) }.joined()
    }

    private static func describe(_ units: Set<Int>?) -> String {
        guard let units, !units.isEmpty else { return "-" }
        return units.sorted().map(String.init).joined(separator: ",")
    }
}
