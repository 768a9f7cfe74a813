import Blocks
import Foundation
import Glibc
import ISCSI
import Logging
import SCSI
import Synchronization
import TestSupport
import Testing

@testable import Agent

@Suite struct InitiatorTests {
    private static let targetName = "iqn.2026-01.net.example:fake"

    private func withTarget(
        _ device: FakeDevice, credentials: ISCSI.CHAPCredentials? = nil,
        _ body: @Sendable @escaping (BridgeAddress, ISCSITarget) throws -> Void
    ) async throws {
        let logger = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        let target = try await ISCSITarget.start(
            device: device,
            configuration: ISCSITargetConfiguration(
                host: "127.0.0.1", port: 0, targetName: Self.targetName, credentials: credentials),
            logger: logger)
        let address = BridgeAddress(host: "127.0.0.1", port: target.port, targetName: Self.targetName)
        let outcome = await onThread { try body(address, target) }
        await target.shutdown()
        try outcome.get()
    }

    /// The initiator blocks: off the cooperative threads with it.
    private func onThread(_ body: @Sendable @escaping () throws -> Void) async -> Result<Void, any Error> {
        await withCheckedContinuation { continuation in
            BlockingThread.start { continuation.resume(returning: Result { try body() }) }
        }
    }

    private func failure<T>(_ body: () throws(AgentError) -> T) -> AgentError? {
        do throws(AgentError) {
            _ = try body()
            return nil
        } catch { return error }
    }

    /// Vendor-specific commands are sent to nobody but bridges of ours.
    @Test func foreignTargetsAreNotAskedForChecksums() async throws {
        let keeping = ChecksumKeeping(identifier: 3, length: 1 << 20, chunkSize: 65_536)
        for (vendor, product) in [("TEST", "FAKE"), ("OUTBOARD", "FAKE"), ("TEST", "BRIDGE")] {
            let device = FakeDevice(units: [0: 2048])
            device.behaviour.withLock { ($0.vendor, $0.product) = (vendor, product) }
            try await withTarget(device) { address, _ in
                let initiator = try Initiator(address)
                let unit = try initiator.describe(lun: 0)
                let before = device.behaviour.withLock { $0.commands }
                #expect(try !initiator.keepChecksums(keeping, of: unit))
                #expect(device.behaviour.withLock { $0.commands } == before)
            }
        }
    }

    /// A bridge that says that it is ours may be older, keep other checksums by now, or say nonsense.
    @Test func whatABridgeSaysOfChecksums() async throws {
        let keeping = ChecksumKeeping(identifier: 3, length: 3 * 65_536, chunkSize: 65_536)
        let device = FakeDevice(units: [0: 2048])
        device.behaviour.withLock { ($0.vendor, $0.product) = ("OUTBOARD", "BRIDGE") }
        @Sendable func answers(_ answers: [SCSIOutcome]) {
            device.behaviour.withLock { $0.bufferAnswers = answers }
        }
        @Sendable func kept(_ first: UInt32, _ count: Int, _ keeping: ChecksumKeeping) -> SCSIOutcome {
            var kept = KeptChecksums(keeping: keeping)
            kept.first = first
            kept.entries = (0..<count).map { .known(first + UInt32($0)) }
            return SCSIOutcome(status: .good, dataIn: kept.encoded())
        }
        try await withTarget(device) { address, _ in
            let initiator = try Initiator(address)
            let unit = try initiator.describe(lun: 0)
            #expect(try !initiator.keepChecksums(keeping, of: unit))
            answers([.checkCondition(SenseData(.dataProtect, .writeProtected))])
            #expect(try !initiator.keepChecksums(keeping, of: unit))
            answers([SCSIOutcome(status: .good, dataOutUsed: ChecksumKeeping.encodedLength)])
            #expect(try initiator.keepChecksums(keeping, of: unit))
            // In parts.
            answers([kept(0, 2, keeping), kept(2, 1, keeping)])
            let table = try #require(try initiator.checksums(keeping, of: unit))
            #expect((0..<3).map { table[$0] } == [.known(0), .known(1), .known(2)])
            // Somebody else's, or none.
            var other = keeping
            other.identifier = 4
            for answer in [
                kept(0, 3, other),
                SCSIOutcome(status: .good, dataIn: KeptChecksums(keeping: nil).encoded()),
            ] {
                answers([answer])
                #expect(try initiator.checksums(keeping, of: unit) == nil)
            }
            for nonsense in [
                kept(1, 2, keeping), kept(0, 0, keeping), kept(0, 4, keeping),
                SCSIOutcome(status: .good, dataIn: [1, 2, 3]),
            ] {
                answers([nonsense])
                let error = failure { () throws(AgentError) in try initiator.checksums(keeping, of: unit) }
                #expect(error?.status == .unavailable)
            }
        }
    }

    @Test func describesUnits() async throws {
        try await withTarget(FakeDevice(units: [0: 100, 3: 2048, 300: 8])) { address, _ in
            let initiator = try Initiator(address)
            #expect(try initiator.reportLUNs() == [0, 3, 300])
            let unit = try initiator.describe(lun: 3)
            #expect(unit.size == 1 << 20 && unit.capacity.blockLength == 512)
            #expect(!unit.isWriteProtected && unit.supportsFUA && unit.limits == nil)
            let naa = DesignationDescriptor.naaRegisteredExtended(
                company: 0x1234, vendor: 5, extensionValue: 3)
            #expect(unit.copyDesignator == naa)
            #expect(try initiator.describe(lun: 300).size == 4096)
            let missing = failure { () throws(AgentError) in try initiator.describe(lun: 7) }
            #expect(missing?.status == .inputMissing && missing?.reason == "there is no such unit")
            let other = failure { () throws(AgentError) in try initiator.testUnitReady(lun: 7) }
            #expect(other?.status == .inputMissing)
        }
    }

    @Test func unitAttentionAndBusyAreTriedAgain() async throws {
        let device = FakeDevice(units: [0: 8])
        try await withTarget(device) { address, _ in
            let initiator = try Initiator(address)
            device.behaviour.withLock { $0.unitAttentions = 3 }
            try initiator.testUnitReady(lun: 0)
            device.behaviour.withLock { $0.busy = 2 }
            try initiator.testUnitReady(lun: 0)
            device.behaviour.withLock { $0.unitAttentions = 1000 }
            let error = failure { () throws(AgentError) in try initiator.testUnitReady(lun: 0) }
            #expect(error?.cause == .sense(SenseData(.unitAttention, .powerOnOrReset)))
        }
    }

    @Test func flushesAndZeroesTakeWhatTheyTake() async throws {
        let device = FakeDevice(units: [0: 64])
        try await withTarget(device) { address, _ in
            let initiator = try Initiator(address)
            let cancelled = Monitor(false)
            let store = try ISCSIStore(
                initiator, lun: 0,
                patience: Initiator.Patience(seconds: 1) { cancelled.withLock { $0 } })
            device.behaviour.withLock { $0.slowNanoseconds = 1_500_000_000 }
            try store.flush()
            try store.writeZeroes(ByteRange(offset: 0, count: 4096), options: [])
            #expect(initiator.isConnected)
            // Until the caller wants no more.
            device.behaviour.withLock { $0.slowNanoseconds = 100_000_000_000 }
            BlockingThread.start {
                device.behaviour.wait { $0.flushes == 2 ? () : nil }
                cancelled.withLock { $0 = true }
            }
            #expect(throws: StoreError(.gone)) { try store.flush() }
        }
    }

    @Test func anInterruptionIsCalledOne() {
        let text = "interrupted: it was asked to stop; nothing half made was left; run it again"
        let interrupted = CancellationToken.interrupted
        #expect(AgentError(interrupted.copyError).description == text)
        #expect(Initiator.error(.interrupted, doing: "copying by", "unit 2").description == text)
        #expect(interrupted.doing("copying", to: "a").description == text)
    }

    @Test func senseIsReadable() async throws {
        let device = FakeDevice(units: [0: 8])
        try await withTarget(device) { address, _ in
            let initiator = try Initiator(address)
            let sense = SenseData.copyAborted(.writeError, segment: 7)
            device.behaviour.withLock { $0.failing = sense }
            let error = failure { () throws(AgentError) in try initiator.synchronizeCache(lun: 0) }
            #expect(error?.cause == .sense(sense) && error?.status == .io)
            #expect(error?.reason == "COPY ABORTED, WRITE ERROR (ASC/ASCQ 0Ch/00h), segment 7")
            device.behaviour.withLock { $0.failing = SenseData(.dataProtect, .writeProtected) }
            let protected = failure { () throws(AgentError) in try initiator.synchronizeCache(lun: 0) }
            #expect(protected?.status == .notPermitted)
        }
    }

    @Test func shortAnswersAreSeen() async throws {
        let device = FakeDevice(units: [0: 8])
        try await withTarget(device) { address, _ in
            let store = try ISCSIStore(try Initiator(address), lun: 0)
            device.behaviour.withLock { $0.shortBy = 100 }
            #expect { try store.bytes(at: 0, count: 512) } throws: { ($0 as? StoreError)?.code == .io }
        }
    }

    @Test(arguments: [512, 4096])
    func storeConforms(_ blockLength: Int) async throws {
        let device = FakeDevice(units: [1: (3 << 20) / blockLength], blockLength: blockLength)
        try await withTarget(device) { address, _ in
            let store = try ISCSIStore(try Initiator(address), lun: 1)
            try BlockStoreConformance.run(store, operations: 200)
            #expect(device.behaviour.withLock { $0.durableWrites > 0 && $0.flushes > 0 })
            // Without WRITE SAME, and without FUA.
            device.behaviour.withLock {
                $0.hasWriteSame = false
                $0.supportsFUA = false
            }
            let plain = try ISCSIStore(try Initiator(address), lun: 1)
            try BlockStoreConformance.run(plain, operations: 100)
            device.behaviour.withLock { $0.isReadOnly = true }
            try BlockStoreConformance.run(try ISCSIStore(try Initiator(address), lun: 1))
        }
    }

    @Test func copyRunsWhileItsStatusIsAsked() async throws {
        let device = FakeDevice(units: [0: 8])
        try await withTarget(device) { address, _ in
            let initiator = try Initiator(address)
            let list = Self.copyList
            let ended = Monitor<AgentError??>(nil)
            BlockingThread.start {
                var failure: AgentError?
                do throws(AgentError) { try initiator.extendedCopy(lun: 0, list) } catch { failure = error }
                ended.withLockAndNotify { $0 = .some(failure) }
            }
            device.behaviour.wait { $0.copiesRunning == 1 ? () : nil }
            let status = try initiator.copyStatus(lun: 0, listIdentifier: 9)
            #expect(status.state == .inProgress && status.transferredBytes == 5 << 20)
            #expect(try initiator.copyOperatingParameters(lun: 0).maximumSegmentDescriptors == 17)
            #expect(try initiator.failedSegmentDetails(lun: 0, listIdentifier: 9) == nil)
            device.behaviour.withLockAndNotify { $0.copyMayEnd = true }
            #expect(ended.wait { $0 } == .some(nil))
            #expect(device.behaviour.withLock { $0.lists } == [list.encoded()])
        }
    }

    private static var copyList: CopyParameterList {
        let unit = CSCDDescriptor(designation: .naaLocallyAssigned(1), diskBlockLength: 512)
        return CopyParameterList(
            listIdentifier: 9, usage: .hold, cscds: [unit, unit],
            segments: [
                SegmentDescriptor(
                    source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(4),
                    amount: .blocks(2, ofDestination: false))
            ])
    }

    @Test func cancelledCopyIsAborted() async throws {
        let device = FakeDevice(units: [0: 8])
        try await withTarget(device) { address, _ in
            let initiator = try Initiator(address)
            let patience = Initiator.Patience.unlimited {
                device.behaviour.withLock { $0.copiesRunning == 1 }
            }
            let error = failure { () throws(AgentError) in
                try initiator.extendedCopy(lun: 0, Self.copyList, patience: patience)
            }
            #expect(error?.cause == .interrupted && error?.status == .tryAgain)
            device.behaviour.wait { $0.copiesAborted == 1 ? () : nil }
            // The session goes on.
            try initiator.testUnitReady(lun: 0)
        }
    }

    @Test func hangingCommandEndsTheSession() async throws {
        let device = FakeDevice(units: [0: 8])
        try await withTarget(device) { address, _ in
            let initiator = try Initiator(address)
            let error = failure { () throws(AgentError) in
                try initiator.extendedCopy(
                    lun: 0, Self.copyList, patience: Initiator.Patience(seconds: 0.1))
            }
            #expect(error?.cause == .timedOut && error?.status == .unavailable)
            #expect(!initiator.isConnected)
            let next = failure { () throws(AgentError) in try initiator.testUnitReady(lun: 0) }
            #expect(next?.status == .unavailable)
        }
    }

    @Test func closingEndsWhatIsInFlight() async throws {
        let device = FakeDevice(units: [0: 8])
        try await withTarget(device) { address, _ in
            let initiator = try Initiator(address)
            let ended = Monitor<AgentError?>(nil)
            BlockingThread.start {
                do throws(AgentError) { try initiator.extendedCopy(lun: 0, Self.copyList) } catch {
                    let failure = error
                    ended.withLockAndNotify { $0 = failure }
                }
            }
            device.behaviour.wait { $0.copiesRunning == 1 ? () : nil }
            initiator.close()
            #expect(ended.wait { $0 }.status == .unavailable)
        }
    }

    @Test func authentication() async throws {
        let secret = "a secret of 24 characters"
        try await withTarget(
            FakeDevice(units: [0: 8]),
            credentials: ISCSI.CHAPCredentials(name: "agent", secret: Array(secret.utf8))
        ) { address, _ in
            var address = address
            for wrong in [nil, ("agent", "another secret, also long"), ("other", secret)] {
                address.credentials = wrong.map { InitiatorCredentials(name: $0.0, secret: $0.1) }
                let copy = address
                let error = failure { () throws(AgentError) in try Initiator(copy) }
                #expect(error?.status == .notPermitted, "\(String(describing: error))")
                #expect(error?.description.contains("secret of") == false)
            }
            address.credentials = InitiatorCredentials(name: "agent", secret: secret)
            try Initiator(address).testUnitReady(lun: 0)
        }
    }

    @Test func unknownTarget() async throws {
        try await withTarget(FakeDevice(units: [0: 8])) { address, _ in
            var address = address
            address.targetName = "iqn.2026-01.net.example:other"
            let copy = address
            let error = failure { () throws(AgentError) in try Initiator(copy) }
            #expect(error?.status == .inputMissing, "\(String(describing: error))")
        }
    }

    @Test func foreignServers() async throws {
        let silent = try TCPListener(nil)
        let closing = try TCPListener { _ in }
        let garbage = try TCPListener { connection in
            let bytes = [UInt8](repeating: 0xA5, count: 4096)
            _ = send(connection, bytes, bytes.count, Int32(MSG_NOSIGNAL))
            var byte: UInt8 = 0
            while recv(connection, &byte, 1, 0) > 0 {}
        }
        let outcome = await onThread {
            for (port, timeout) in [(silent.port, 0.2), (closing.port, 10), (garbage.port, 2)] {
                let address = BridgeAddress(host: "127.0.0.1", port: port, targetName: Self.targetName)
                let error = failure { () throws(AgentError) in try Initiator(address, timeout: timeout) }
                #expect(error?.status == .unavailable, "\(String(describing: error))")
            }
            // A port that was free a moment ago.
            let gone = try TCPListener(nil).port
            let refused = failure { () throws(AgentError) in
                try Initiator(BridgeAddress(host: "127.0.0.1", port: gone, targetName: Self.targetName))
            }
            #expect(refused?.status == .unavailable, "\(String(describing: refused))")
            let cancelled = failure { () throws(AgentError) in
                try Initiator(
                    BridgeAddress(host: "127.0.0.1", port: silent.port, targetName: Self.targetName),
                    isCancelled: { true })
            }
            #expect(cancelled?.cause == .interrupted)
            withExtendedLifetime((silent, closing, garbage)) {}
        }
        try outcome.get()
    }

    @Test func targetThatGoes() async throws {
        let device = FakeDevice(units: [0: 8])
        let logger = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        let target = try await ISCSITarget.start(
            device: device,
            configuration: ISCSITargetConfiguration(
                host: "127.0.0.1", port: 0, targetName: Self.targetName), logger: logger)
        let address = BridgeAddress(host: "127.0.0.1", port: target.port, targetName: Self.targetName)
        let ended = Monitor<AgentError?>(nil)
        let opened = await onThread {
            let initiator = try Initiator(address)
            BlockingThread.start {
                do throws(AgentError) { try initiator.extendedCopy(lun: 0, Self.copyList) } catch {
                    let failure = error
                    ended.withLockAndNotify { $0 = failure }
                }
            }
            device.behaviour.wait { $0.copiesRunning == 1 ? () : nil }
        }
        try opened.get()
        await target.shutdown()
        let outcome = await onThread { #expect(ended.wait { $0 }.status == .unavailable) }
        try outcome.get()
    }
}

@Suite struct BridgeAddressTests {
    @Test(arguments: [
        ("iscsi://127.0.0.1/iqn.2026-01.a:b", "127.0.0.1", 3260, "iqn.2026-01.a:b"),
        ("iscsi://h:99/iqn.x", "h", 99, "iqn.x"), ("iscsi://[::1]:7/iqn.x", "::1", 7, "iqn.x"),
        ("iscsi://[fe80::1]/eui.x", "fe80::1", 3260, "eui.x"), ("iscsi://h/iqn.x%3Ay", "h", 3260, "iqn.x:y"),
    ])
    func parses(_ text: String, _ host: String, _ port: Int, _ target: String) throws {
        let address = try BridgeAddress(parsing: text)
        #expect(address.host == host && address.port == port && address.targetName == target)
        #expect(address.credentials == nil)
    }

    /// Not even with the right one in a file, too, and without telling it again.
    @Test(arguments: ["iscsi://u%hush@h/t", "iscsi://u%hush@%/x@h/t", "iscsi://%hush@h/t", "iscsi://u%@h/t"])
    func refusesASecret(_ text: String) {
        for credentials in [nil, InitiatorCredentials(name: "u", secret: "hush")] {
            #expect {
                try BridgeAddress(parsing: text, credentials: credentials)
            } throws: {
                let told = "\($0)"
                return ($0 as? AgentError)?.status == .usage && told.contains("--chap-file")
                    && !told.contains("hush")
            }
        }
    }

    @Test(arguments: [
        "", "iscsi:/h/t", "iscsi://h", "iscsi://h/", "iscsi:///t", "iscsi://h:0/t", "iscsi://h:65536/t",
        "iscsi://h:x/t", "iscsi://[::1/t", "iscsi://[::1]x/t", "iscsi://h/t/3", "iscsi://u@h/t", "http://h/t",
    ])
    func refuses(_ text: String) {
        #expect { try BridgeAddress(parsing: text) } throws: { ($0 as? AgentError)?.status == .usage }
    }

    @Test func aUserWithoutASecretHasItFromTheFile() throws {
        let credentials = InitiatorCredentials(name: "agent", secret: "some secret:words")
        let address = try BridgeAddress(parsing: "iscsi://agent@h/t", credentials: credentials)
        #expect(address.credentials == credentials)
        #expect(throws: AgentError.self) {
            try BridgeAddress(parsing: "iscsi://another@h/t", credentials: credentials)
        }
    }
}
