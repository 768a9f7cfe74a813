import Agent
import Blocks
import Bridge
import Foundation
import Host
import Logging

/// This process among those that `outboard status` finds. That it cannot be entered is logged and costs nothing else.
final class Registered: Sendable {
    private let registration: RunDirectory.Registration
    private let socket: StatusSocket?

    private init(_ registration: RunDirectory.Registration, _ socket: StatusSocket?) {
        self.registration = registration
        self.socket = socket
    }

    /// - Parameters:
    ///   - subject: what it serves or makes.
    ///   - control: of a host.
    ///   - status: of others.
    static func enter(
        _ kind: RunDirectory.Kind, subject: String, control: String? = nil, _ logger: Logger,
        status: (@Sendable () -> any Encodable & Sendable)? = nil
    ) -> Registered? {
        guard let path = RunDirectory.usualPath else {
            logger.debug("there is no run directory, so `outboard status --all` does not show this process")
            return nil
        }
        var socket: StatusSocket?
        do {
            let directory = try RunDirectory(path, makes: true)
            let name = RunDirectory.newName(kind)
            if let status { socket = try StatusSocket("\(path)/\(name).sock", status) }
            let entry = RunDirectory.Entry(
                kind: kind, process: getpid(), startedAt: Int64(Date().timeIntervalSince1970 * 1e9),
                version: toolVersion, control: control, status: socket?.path, subject: subject)
            return Registered(try directory.enter(entry, as: name), socket)
        } catch {
            socket?.stop()
            logger.warning(
                "`outboard status --all` does not show this process", metadata: ["error": "\(error)"])
            return nil
        }
    }

    /// To be called at the end of what it tells of.
    func leave() { socket?.stop() }
}

/// What a running copy tells of itself.
struct CopyStatus: Codable, Sendable {
    /// Where the copy will be, absolute, and of which hosts, by their control sockets.
    var to: String
    var hosts: [String]
    var seconds: Double
    var phase: String
    /// Bytes of the phase; 0 in all: not known.
    var done: UInt64
    var total: UInt64
    /// Bytes a second, and seconds until the phase is over, as far as that can be said.
    var rate: Double?
    var secondsLeft: Double?
    /// Bytes that the bridge has copied in all.
    var copiedBytes: UInt64
    /// How full the host's cache is, 0 to 1, as last seen.
    var cacheFill: Double?
    /// Until it is full, where that is known.
    var secondsToFull: Double?

    init(to: String, hosts: [String], seconds: Double, _ record: SequenceRecord) {
        self.to = to
        self.hosts = hosts
        self.seconds = seconds
        let current = record.current
        phase = current.phase
        (done, total) = (current.done, current.total)
        rate = record.rate
        copiedBytes = record.copiedBytes
        cacheFill = current.cacheFill
        secondsToFull = current.secondsToFull
        if let rate, total > done { secondsLeft = Double(total - done) / rate }
    }
}

/// What a running bridge tells of itself.
struct BridgeStatus: Codable, Sendable {
    struct Unit: Codable, Sendable {
        var path: String
        var readOnly: Bool
        var counters: BridgeUnitCounters
    }

    var target: String
    /// ADDRESS:PORT.
    var portals: [String]
    var sessions: Int
    var units: [Unit]
    var copies: [BridgeCopySummary]
    var copiesDone: UInt64
    var copiesFailed: UInt64
    var copiesAborted: UInt64

    init(target: String, portals: [String], _ counters: BridgeCounters, _ units: [BridgeUnitSummary]) {
        self.target = target
        self.portals = portals
        sessions = counters.sessions
        self.units = zip(units, counters.units).map {
            Unit(path: $0.path, readOnly: $0.readOnly, counters: $1)
        }
        copies = counters.copies
        copiesDone = counters.copiesDone
        copiesFailed = counters.copiesFailed
        copiesAborted = counters.copiesAborted
    }
}
