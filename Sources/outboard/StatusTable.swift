import Blocks
import Bridge
import HostControl

extension StatusReport {
    /// For people: a table for each kind that there is.
    var lines: [String] {
        if hosts.isEmpty, bridges.isEmpty, copies.isEmpty { return ["nothing runs"] }
        var tables: [[String]] = []
        if !hosts.isEmpty {
            tables.append(
                Self.table(
                    ["HOST", "SOURCE", "EPOCH", "CACHE", "FULL IN", "CLIENTS", "NOTES"], hosts.map(\.row)))
        }
        if !bridges.isEmpty {
            tables.append(
                Self.table(
                    ["BRIDGE", "PORTALS", "SESSIONS", "COPIES", "ERRORS", "NOTES"], bridges.map(\.row)))
        }
        let running = bridges.flatMap { bridge in (bridge.status?.copies ?? []).map { bridge.row(of: $0) } }
        if !running.isEmpty {
            tables.append(
                Self.table(["BRIDGE COPY", "INITIATOR", "UNITS", "DONE", "RATE", "IN FLIGHT"], running))
        }
        if !copies.isEmpty {
            tables.append(
                Self.table(["COPY", "PHASE", "DONE", "RATE", "LEFT", "CACHE", "NOTES"], copies.map(\.row)))
        }
        return Array(tables.joined(separator: [""]))
    }

    /// Columns as wide as their widest cell; the last one is not filled up.
    static func table(_ head: [String], _ rows: [[String]]) -> [String] {
        let all = [head] + rows.map { row in row.map { $0.isEmpty ? "-" : Self.printable($0) } }
        let widths = head.indices.map { column in all.map { $0[column].count }.max() ?? 0 }
        return all.map { row in
            zip(row, widths).enumerated().map { index, cell in
                index == head.count - 1
                    ? cell.0 : cell.0 + String(repeating: " ", count: cell.1 - cell.0.count + 2)
            }.joined()
        }
    }

    /// What other processes told, as it can stand in a line of a terminal.
    private static func printable(_ text: String) -> String {
        String(
            String.UnicodeScalarView(
                text.unicodeScalars.map { scalar in
                    switch scalar.properties.generalCategory {
                    case .control, .format, .lineSeparator, .paragraphSeparator: "?"
                    default: scalar
                    }
                }))
    }

    fileprivate static func percent(_ part: Double) -> String { "\(Int(min(max(part, 0), 1) * 100))%" }

    /// Bytes a second; what others tell may be any number.
    private static let greatestRate = 1e18

    fileprivate static func rate(_ bytes: Double?) -> String {
        bytes.map { ByteCount(UInt64(min(max($0, 0), greatestRate))).rounded + "/s" } ?? ""
    }
}

extension StatusReport.Host {
    fileprivate var row: [String] {
        guard let status else { return [control, "", "", "", "", "", failure ?? ""] }
        var notes: [String] = []
        if status.isFrozen { notes.append("frozen") }
        if let why = status.flushFailure { notes.append("FLUSH FAILED: \(why)") }
        if let why = status.epoch?.voidReason { notes.append("void: \(why)") }
        let fill =
            status.cacheCapacity == 0 ? 0 : Double(status.cacheUsed) / Double(status.cacheCapacity)
        return [
            control, status.source,
            status.epoch.map { "\($0.number) \($0.state.rawValue)\($0.isHeld ? ", held" : "")" } ?? "none",
            "\(StatusReport.percent(fill)) of \(ByteCount(status.cacheCapacity).rounded)",
            status.secondsToFull.map(ProgressBar.duration) ?? "", status.clients.map(String.init) ?? "",
            notes.joined(separator: "; "),
        ]
    }
}

extension StatusReport.Bridge {
    fileprivate var row: [String] {
        guard let status else { return [target, "", "", "", "", failure ?? ""] }
        let errors = status.units.reduce(0) { $0 &+ $1.counters.errors.values.reduce(0, &+) }
        return [
            target, status.portals.joined(separator: ","), "\(status.sessions)",
            "\(status.copies.count) running, \(status.copiesDone) done, \(status.copiesFailed) failed",
            "\(errors)", status.copiesAborted == 0 ? "" : "\(status.copiesAborted) copies aborted",
        ]
    }

    fileprivate func row(of copy: BridgeCopySummary) -> [String] {
        func list(_ units: [Int]) -> String { units.map(String.init).joined(separator: ",") }
        return [
            target, copy.initiator, "\(list(copy.sources)) to \(list(copy.targets))",
            "\(ByteCount(copy.bytes).rounded) of \(ByteCount(copy.totalBytes).rounded)",
            StatusReport.rate(copy.seconds > 0.5 ? Double(copy.bytes) / copy.seconds : nil),
            "\(copy.requestsInFlight)",
        ]
    }
}

extension StatusReport.Copy {
    fileprivate var row: [String] {
        guard let status else { return [to, "", "", "", "", "", failure ?? ""] }
        let done =
            status.total > 0
            ? "\(StatusReport.percent(Double(status.done) / Double(status.total))) of "
                + ByteCount(status.total).rounded
            : status.done > 0 ? ByteCount(status.done).rounded : ""
        return [
            status.to, status.phase, done, StatusReport.rate(status.rate),
            status.secondsLeft.map { ProgressBar.duration($0.rounded(.up)) } ?? "",
            (status.cacheFill.map(StatusReport.percent) ?? "")
                + (status.secondsToFull.map { ", full in \(ProgressBar.duration($0))" } ?? ""),
            "for \(ProgressBar.duration(status.seconds))",
        ]
    }
}
