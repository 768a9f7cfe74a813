import Blocks
import Foundation
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// Registrations and reservations that outlive the device (APTPL).
@Suite struct ReservationStateTests {
    private let directory: URL
    private var state: String { directory.path }

    init() throws {
        directory = FileManager.default.temporaryDirectory.appendingPathComponent(
            "state-\(UUID().uuidString)")
        try FileManager.default.createDirectory(
            at: directory, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
    }

    /// A device with the state in ``directory``, as after a start. Leftovers of the test do no harm.
    private func start() throws -> Bench {
        let units = try [
            Bench.unit(0, MemoryStore(size: 64 * 512)), Bench.unit(1, MemoryStore(size: 64 * 512)),
        ]
        let device = try BridgeDevice(
            opened: units, mover: SerialMover(), logger: Bench.quiet,
            state: try StateDirectory(state, isLocked: true))
        return Bench(device: device)
    }

    private func out(
        _ bench: Bench, _ action: PersistentReserveOutAction, key: UInt64 = 0, new: UInt64 = 0,
        type: ReservationType? = nil, persists: Bool = true, on nexus: Nexus? = nil
    ) -> SCSIOutcome {
        bench.send(
            .reservation(.persistentOut(PersistentReserveOut(action, type: type))),
            data: ReservationParameters(key: key, serviceActionKey: new, persists: persists).encoded(),
            on: nexus)
    }

    private func read(_ bench: Bench, _ action: PersistentReserveInAction, _ unit: Int = 0) -> [UInt8] {
        bench.send(.reservation(.persistentIn(action, allocationLength: 4096)), unit).dataIn
    }

    private func files() throws -> [String] { try FileManager.default.contentsOfDirectory(atPath: state) }

    private func write(_ bench: Bench, on nexus: Nexus) -> SCSIStatus {
        bench.send(
            .write(BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1))),
            data: [UInt8](repeating: 1, count: 512), on: nexus
        ).status
    }

    @Test func theyAreThereAfterAStart() throws {
        let other = Bench.makeNexus(2)
        do {
            let bench = try start()
            bench.device.openNexus(other)
            _ = bench.send(.testUnitReady, on: other)
            #expect(read(bench, .reportCapabilities)[2...3] == [0x01, 0x80], "PTPL_C, and nothing yet")
            #expect(out(bench, .register, new: 7).isGood && out(bench, .register, new: 9, on: other).isGood)
            #expect(read(bench, .reportCapabilities)[2...3] == [0x01, 0x81])
            #expect(out(bench, .reserve, key: 7, type: .writeExclusive).isGood)
            #expect(write(bench, on: other) == .reservationConflict)
        }
        for _ in 0..<2 {
            let bench = try start()
            bench.device.openNexus(other)
            _ = bench.send(.testUnitReady, on: other)
            let keys = read(bench, .readKeys)
            #expect(keys[..<8] == [0, 0, 0, 0, 0, 0, 0, 16], "the generation begins again")
            #expect(keys[15] == 7 && keys[23] == 9)
            let held = read(bench, .readReservation)
            #expect(held[15] == 7 && held[21] == ReservationType.writeExclusive.rawValue)
            #expect(write(bench, on: other) == .reservationConflict && write(bench, on: bench.nexus) == .good)
            #expect(read(bench, .readKeys, 1)[7] == 0, "the other unit has none")
        }
        let bench = try start()
        #expect(out(bench, .clear, key: 7).isGood)
        #expect(try files().count == 1)
        #expect(out(bench, .register, new: 1).isGood && out(bench, .register, key: 1).isGood)
    }

    /// The last registration decides for all.
    @Test func withoutAPTPLNothingIsKept() throws {
        do {
            let bench = try start()
            #expect(out(bench, .register, new: 7, persists: false).isGood)
            #expect(try files().isEmpty)
            #expect(out(bench, .registerAndIgnoreExistingKey, new: 8).isGood)
            #expect(try files().count == 1)
            #expect(out(bench, .registerAndIgnoreExistingKey, new: 9, persists: false).isGood)
            #expect(try files().isEmpty)
        }
        #expect(try read(start(), .readKeys)[7] == 0)
    }

    @Test func allThatIsSavedIsRead() throws {
        var state = UnitReservations()
        for type in ReservationType.allCases {
            state.registrations = (0..<3).map {
                UnitReservations.Registration(
                    port: InitiatorPort(name: "iqn.2000-01.org.example:\($0)", session: UInt64($0) << 40),
                    key: UInt64.max - UInt64($0))
            }
            state.reservation = UnitReservations.Reservation(type: type, holder: state.registrations[2].port)
            let file = ReservationFile(unit: 5, state)
            #expect(try ReservationFile(decoding: file.encoded()) == file)
        }
        state.reservation = nil
        let file = ReservationFile(unit: 5, state)
        #expect(try ReservationFile(decoding: file.encoded()) == file)
        // Who made it need not be registered any more where all registrants hold it.
        state.reservation = UnitReservations.Reservation(
            type: .exclusiveAccessAllRegistrants, holder: InitiatorPort(name: "gone", session: 0))
        let read = try ReservationFile(decoding: ReservationFile(unit: 5, state).encoded())
        #expect(read.reservation?.type == .exclusiveAccessAllRegistrants)
    }

    @Test func anyByteThatIsNotAsWrittenIsTold() throws {
        do { #expect(try out(start(), .register, new: 7).isGood) }
        let path = state + "/" + (try #require(files().first))
        let good = try Array(Data(contentsOf: URL(fileURLWithPath: path)))
        var damaged = good.indices.map { index in
            var bytes = good
            bytes[index] ^= 0x10
            return bytes
        }
        damaged += (0..<good.count).map { Array(good[..<$0]) } + [good + [0]]
        for bytes in damaged {
            #expect(throws: ReservationFile.Damage.self) { try ReservationFile(decoding: bytes) }
        }
        for bytes in [damaged[30], good + good, []] {
            try Data(bytes).write(to: URL(fileURLWithPath: path))
            do {
                _ = try start()
                Issue.record("a damaged file was taken")
            } catch let error as BridgeError {
                guard case .state(let cause) = error else { throw error }
                #expect(cause.kind == .damaged && "\(error)".contains(path), "\(error)")
            }
        }
    }

    /// What cannot be kept is not done.
    @Test func aFailureToSaveChangesNothing() throws {
        let bench = try start()
        #expect(out(bench, .register, new: 7).isGood)
        try FileManager.default.removeItem(at: directory)
        let failed = out(bench, .register, key: 7, new: 8)
        #expect(failed.failed(.hardwareError, .internalTargetFailure))
        #expect(read(bench, .readKeys)[15] == 7)
        #expect(
            out(bench, .reserve, key: 7, type: .writeExclusive).failed(.hardwareError, .internalTargetFailure)
        )
        #expect(read(bench, .readReservation)[7] == 0)
    }

    /// Closed twice, its descriptor would the second time be another thread's.
    @Test func aDirectoryThatIsRefusedIsClosedOnce() async {
        await #expect(processExitsWith: .success) {
            let mine = NSTemporaryDirectory() + "state-\(UUID().uuidString)"
            precondition(mkdir(mine, 0o700) == 0 && chmod(mine, 0o702) == 0)
            defer { rmdir(mine) }
            precondition(
                !closesOthersDescriptors(times: 20_000) { _ = try? StateDirectory(mine, isLocked: true) })
        }
    }

    @Test func theDirectoryIsOfOneBridgeAndOfItsOwner() throws {
        func kind() -> BridgeStateError.Kind? {
            do throws(BridgeStateError) { _ = try StateDirectory(state, isLocked: true) } catch {
                return error.kind
            }
            return nil
        }
        do {
            let first = try StateDirectory(state, isLocked: true)
            #expect(kind() == .inUse)
            _ = try StateDirectory(state, isLocked: false)
            withExtendedLifetime(first) {}
        }
        #expect(kind() == nil)
        for mode in [mode_t(0o720), 0o702] {
            chmod(state, mode)
            #expect(kind() == .notPermitted)
        }
        try FileManager.default.removeItem(at: directory)
        #expect(kind() == .missing)
    }
}
