import Blocks
import Logging
import SCSI

/// The one line of audit that every copy command leaves: who, from what, to what, how much, with what result.
struct CopyAudit: Sendable {
    /// The command's name, which is the line's message.
    let command: String
    let nexus: Nexus
    /// Nil where there is none, or while it is not known.
    var listIdentifier: UInt32?
    /// Segment descriptors or block ranges; nil while it is not known whether the list makes sense.
    var segments: Int?
    private let start = MonotonicClock.now

    init(_ command: String, _ nexus: Nexus) {
        self.command = command
        self.nexus = nexus
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
            "\(command)",
            metadata: [
                "initiator": "\(nexus.initiatorName)",
                "session": "\(String(nexus.sessionIdentifier, radix: 16))",
                "user": "\(nexus.authenticatedName ?? "-")",
                "list": "\(listIdentifier.map { String($0) } ?? "-")",
                "from": "\(Self.describe(plan?.sources))", "to": "\(Self.describe(plan?.targets))",
                "segments": "\(segments.map { String($0) } ?? "-")", "bytes": "\(record?.bytesWritten ?? 0)",
                "of": "\(plan.map { String($0.totalBytes) } ?? "-")",
                "ms": "\((MonotonicClock.now - start) / 1_000_000)", "result": "\(result)",
            ])
    }

    private static func describe(_ units: Set<Int>?) -> String {
        guard let units, !units.isEmpty else { return "-" }
        return units.sorted().map(String.init).joined(separator: ",")
    }
}
