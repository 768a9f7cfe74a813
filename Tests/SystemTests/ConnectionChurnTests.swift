import Agent
import Blocks
import Foundation
import SCSI
import TestSupport
import Testing

@testable import ISCSI

/// Connections dropped at every stage of login and of a data transfer: what they took is given back, and another
/// session that writes, reads and compares all the time notices nothing.
@Suite(.serialized) struct ConnectionChurnTests {
    /// Of each stage.
    static let count = Tier.isFull ? 1000 : 60
    /// Open at the same time.
    private static let atOnce = 20
    /// What resident memory may be above where it was, kilobytes: fragments of the allocator's, not connections.
    private static let slack = 48 << 10

    enum Stage: String, CaseIterable {
        case connected, partOfHeader, loginUnanswered, security, challenge, partOfLogin, loggedIn, reinstated
        case dataIn, readyToTransfer, unsolicitedData, extendedCopy, text, logout, discovery
    }

    private final class Site {
        let scratch: ScratchDirectory
        let process: ChildProcess
        let portal: String
        let target: String
        /// EXTENDED COPY of all of unit 0 to unit 1.
        var copyList: [UInt8] = []
        var isid: UInt64 = 0x8000_0000_0000
        static let size = 32 << 20

        init() throws {
            scratch = try ScratchDirectory()
            try makePatternFile(scratch("unit0"), count: Self.size)
            for unit in ["unit1", "unit2"] { try makeSparseFile(scratch(unit), size: UInt64(Self.size)) }
            try "chap a-long-enough-secret\n".write(
                toFile: scratch("chap"), atomically: true, encoding: .utf8)
            chmod(scratch("chap"), 0o600)
            try """
            portals: ["127.0.0.1:0"]
            initiators:
              - {name: "\(WireInitiator.openName)"}
              - {name: "\(Initiator.name)"}
              - {name: "\(WireInitiator.chapName)", chap_file: chap}
            units:
              - {number: 0, path: unit0, read_only: true}
              - {number: 1, path: unit1}
              - {number: 2, path: unit2}
            """.write(toFile: scratch("bridge.yaml"), atomically: true, encoding: .utf8)
            process = try Outboard.start(["bridge", "--config", scratch("bridge.yaml")])
            let line = process.line { $0.hasPrefix("ready ") }
            guard let words = line?.split(separator: " "), words.count == 3 else {
                process.stop()
                throw TestFailure("the bridge did not start: \(process.errors)")
            }
            portal = String(words[1])
            target = String(words[2])
        }

        deinit { process.stop() }

        func connect() throws -> WireInitiator { try WireInitiator(portal, target: target) }

        func session() throws -> WireInitiator {
            isid += 1
            let wire = try connect()
            guard try wire.logIn(isid)[half: 36] == 0 else { throw TestFailure("login is refused") }
            return wire
        }

        var descriptors: Int { RunningProcesses.count("fd", of: process.identifier) }
        var threads: Int { RunningProcesses.count("task", of: process.identifier) }

        /// Kilobytes.
        func residentMemory() throws -> Int { try RunningProcesses.residentMemory(of: process.identifier) }
    }

    /// A session that writes, reads and compares until it is told to stop.
    private final class Witness: Sendable {
        struct State {
            var rounds = 0
            var longest: UInt64 = 0
            var failure: String?
            var isStopped = false
        }
        let state = Monitor(State())

        init(_ initiator: Initiator) {
            let started = BlockingThread.start { [state] in
                var round: UInt64 = 0
                while state.withLock({ !$0.isStopped && $0.failure == nil }) {
                    let begun = MonotonicClock.now
                    let failure = Self.round(initiator, round)
                    state.withLockAndNotify {
                        $0.rounds += 1
                        $0.longest = max($0.longest, MonotonicClock.now - begun)
                        $0.failure = failure
                    }
                    round += 1
                }
                state.withLockAndNotify { $0.rounds = .max }
            }
            precondition(started)
        }

        private static func round(_ initiator: Initiator, _ round: UInt64) -> String? {
            let words = (0..<(64 << 10) / 8).map { UInt64($0) &* 0x9E37_79B9_7F4A_7C15 ^ round }
            let lba = LBA(round * 128 % 32768)
            do {
                try words.withUnsafeBytes { bytes in
                    try initiator.write(lun: 2, lba: lba, blocks: BlockCount(128), bytes)
                }
                var back = [UInt64](repeating: 0, count: words.count)
                try back.withUnsafeMutableBytes { bytes in
                    try initiator.read(lun: 2, lba: lba, blocks: BlockCount(128), into: bytes)
                }
                return back == words ? nil : "round \(round) read something else"
            } catch {
                return "\(error)"
            }
        }

        func awaitRounds(_ more: Int) -> State {
            let goal = state.withLock { $0.rounds } + more
            return state.wait { $0.rounds >= goal || $0.failure != nil ? $0 : nil }
        }

        func stop() { state.withLockAndNotify { $0.isStopped = true } }
    }

    /// Brings one connection to its stage, where it is to be dropped.
    private static func open(_ stage: Stage, _ site: Site) throws -> WireInitiator {
        switch stage {
        case .connected, .partOfHeader, .loginUnanswered, .security, .challenge, .partOfLogin, .discovery:
            return try openLogin(stage, site)
        case .loggedIn: return try site.session()
        case .reinstated:
            let wire = try site.connect()
            try wire.send(wire.loginRequest(0x8000_0000_0001, wire.names(), flags: 0x87))
            return wire
        case .dataIn:
            let wire = try site.session()
            for lba: UInt64 in [0, 8192] {
                let transfer = BlockTransfer(.sixteen, lba: LBA(lba), count: BlockCount(4096))
                try wire.send(wire.command(.read(transfer), lun: 0, read: 2 << 20))
            }
            try wire.awaitData()
            return wire
        case .readyToTransfer, .unsolicitedData: return try openWrite(stage, site)
        case .extendedCopy:
            let wire = try site.session()
            try wire.send(
                wire.command(
                    .extendedCopy(parameterListLength: site.copyList.count), lun: 1,
                    write: site.copyList.count, data: site.copyList))
            // Commands have their turn in order: with this answer the copy has begun, if it is not over.
            try wire.send(wire.request(Opcode.nopOut))
            _ = try wire.receive()
            return wire
        case .text:
            let wire = try site.session()
            var text = wire.request(Opcode.textRequest, flags: 0x40)
            text.data = Array("SendTar".utf8)[...]
            try wire.send(text)
            _ = try wire.expect(Opcode.textResponse)
            return wire
        case .logout:
            let wire = try site.session()
            try wire.send(wire.request(Opcode.logoutRequest))
            return wire
        }
    }

    private static func openLogin(_ stage: Stage, _ site: Site) throws -> WireInitiator {
        let wire = try site.connect()
        site.isid += 1
        switch stage {
        case .connected: break
        case .partOfHeader: try wire.send(wire.loginRequest(site.isid, [], flags: 0x87), bytes: 20)
        case .loginUnanswered: try wire.send(wire.loginRequest(site.isid, wire.names(), flags: 0x04))
        case .security:
            try wire.send(wire.loginRequest(site.isid, wire.names(), flags: 0x81))
            _ = try wire.expect(Opcode.loginResponse)
        case .challenge:
            let method = [TextKey("AuthMethod", "CHAP")]
            try wire.send(
                wire.loginRequest(site.isid, wire.names(WireInitiator.chapName) + method, flags: 0x00))
            _ = try wire.expect(Opcode.loginResponse)
            try wire.send(wire.loginRequest(site.isid, [TextKey("CHAP_A", "5")], flags: 0x00))
            let challenge = try wire.expect(Opcode.loginResponse)
            guard String(decoding: challenge.data, as: UTF8.self).contains("CHAP_C=0x") else {
                throw TestFailure("no challenge")
            }
        case .partOfLogin:
            try wire.send(wire.loginRequest(site.isid, wire.names(), flags: 0x44))
            _ = try wire.expect(Opcode.loginResponse)
            try wire.send(wire.loginRequest(site.isid, wire.names(), flags: 0x87), bytes: 60)
        default:
            try wire.send(
                wire.loginRequest(
                    site.isid, [wire.names()[0], TextKey("SessionType", "Discovery")], flags: 0x87))
            _ = try wire.expect(Opcode.loginResponse)
        }
        return wire
    }

    private static func openWrite(_ stage: Stage, _ site: Site) throws -> WireInitiator {
        let wire = try site.session()
        let length = 1 << 20
        let transfer = BlockTransfer(.sixteen, lba: LBA(0), count: BlockCount(UInt64(length / 512)))
        let part = [UInt8](repeating: 0x5A, count: 32 << 10)
        if stage == .readyToTransfer {
            try wire.send(wire.command(.write(transfer), lun: 1, write: length))
            let r2t = try wire.expect(Opcode.r2t)
            try wire.send(
                wire.dataOut(
                    to: r2t.initiatorTaskTag, r2t.targetTransferTag, offset: 0, part, isFinal: false))
        } else {
            let command = wire.command(.write(transfer), lun: 1, write: length, data: part, isFinal: false)
            try wire.send(command)
            let data = wire.dataOut(
                to: command.initiatorTaskTag, reservedTag, offset: part.count, part, isFinal: false)
            // Some of it is left out.
            try wire.send(data, bytes: 48 + part.count / 2)
        }
        return wire
    }

    /// - Parameter witness: of two rounds, one has begun when all of a batch were at their stage.
    private static func churn(_ stage: Stage, count: Int, _ site: Site, _ witness: Witness) throws {
        var left = count
        while left > 0 {
            let batch = try (0..<min(left, atOnce)).map { _ in try open(stage, site) }
            #expect(witness.awaitRounds(2).failure == nil, "\(stage)")
            for (number, wire) in batch.enumerated() { wire.drop(resets: number % 2 == 1) }
            left -= batch.count
        }
    }

    @Test func whatConnectionsTookIsGivenBack() throws {
        let site = try Site()
        let address = try BridgeAddress(parsing: "iscsi://\(site.portal)/\(site.target)")
        let initiator = try Initiator(address)
        defer { initiator.close() }
        let cscds = try (0...1).map { unit -> CSCDDescriptor in
            let designators = try initiator.designators(lun: unit)
            let naa = try #require(designators.first { $0.type == DesignationDescriptor.DesignatorType.naa })
            return CSCDDescriptor(designation: naa, diskBlockLength: 512)
        }
        let segments = (0..<UInt64(Site.size >> 20)).map { place in
            SegmentDescriptor(
                source: 0, sourceLBA: LBA(place * 2048), destination: 1, destinationLBA: LBA(place * 2048),
                amount: .blocks(2048, ofDestination: false))
        }
        site.copyList =
            CopyParameterList(listIdentifier: 1, usage: .discard, cscds: cscds, segments: segments).encoded()

        let witness = Witness(initiator)
        defer { witness.stop() }
        _ = witness.awaitRounds(10)
        let before = site.descriptors
        // Pools and allocators take what they are going to keep.
        for stage in Stage.allCases { try Self.churn(stage, count: 40, site, witness) }
        try waitUntil("the descriptors are back after the first round") { site.descriptors == before }
        let (memory, threads) = (try site.residentMemory(), site.threads)

        for stage in Stage.allCases {
            try Self.churn(stage, count: Self.count, site, witness)
            // By the clock: what a process gives back is no event for others.
            try waitUntil("\(stage): descriptors \(site.descriptors), were \(before)") {
                site.descriptors == before
            }
            let seen = witness.awaitRounds(2)
            #expect(seen.failure == nil, "\(stage)")
            try waitUntil("\(stage): threads \(site.threads), were \(threads)") {
                site.threads <= threads + 2
            }
            let now = try site.residentMemory()
            print(
                "churn \(stage): \(now) KiB, at first \(memory); longest round \(seen.longest / 1_000_000) ms"
            )
            #expect(now <= memory + Self.slack, "\(stage)")
        }
        witness.stop()
        _ = witness.awaitRounds(1)
        initiator.close()
        #expect(site.process.stop() == .exit(0), "\(site.process.errors)")
    }
}

extension RunningProcesses {
    /// VmRSS, kilobytes.
    static func residentMemory(of process: pid_t) throws -> Int {
        let status = try String(contentsOfFile: "/proc/\(process)/status", encoding: .utf8)
        let line = status.split(separator: "\n").first { $0.hasPrefix("VmRSS:") }
        guard let words = line?.split(whereSeparator: { $0 == " " || $0 == "\t" }), words.count == 3,
            let kilobytes = Int(words[1])
        else { throw TestFailure("no VmRSS in \(status)") }
        return kilobytes
    }
}
