import Blocks
import Logging
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// What an initiator may not see is not there for it: not to list, not to read, and not to name in a copy.
@Suite struct VisibilityTests {
    private static let alpha = "iqn.2026-01.net.example:alpha"
    private static let beta = "iqn.2026-01.net.example:beta"
    private static let size = 64 << 10

    /// Unit 0 for all, 1 for alpha, 2 for beta, 3 for both.
    private struct World {
        let bench: Bench
        let stores: [MemoryStore]
        let alpha = World.nexus(VisibilityTests.alpha, 11)
        let beta = World.nexus(VisibilityTests.beta, 12)
        let stranger = World.nexus("iqn.2026-01.net.example:stranger", 13)

        static func nexus(_ name: String, _ session: UInt64) -> Nexus {
            Nexus(initiatorName: name, sessionIdentifier: session, authenticatedName: nil)
        }

        init(mover: any CopyMover = SerialMover()) throws {
            let stores = (0..<4).map {
                MemoryStore(pattern: VisibilityTests.size, seed: UInt64($0))
            }
            self.stores = stores
            let who: [Set<String>?] = [
                nil, [VisibilityTests.alpha], [VisibilityTests.beta.uppercased()],
                [VisibilityTests.alpha, VisibilityTests.beta],
            ]
            let units = try stores.indices.map { index in
                var unit = BridgeUnit(number: index, path: "memory\(index)")
                unit.initiators = who[index]
                return try LogicalUnit(
                    unit, store: stores[index], storage: StorageKey(device: 1, inode: UInt64(100 + index)))
            }
            bench = try Bench(units, mover: mover, settled: false)
            for nexus in [alpha, beta, stranger] {
                bench.device.openNexus(nexus)
                for unit in 0..<4 { _ = bench.send(.testUnitReady, unit, on: nexus) }
            }
        }

        func listed(_ nexus: Nexus) throws -> [Int?] {
            let outcome = bench.send(.reportLUNs(select: 2, allocationLength: 4096), on: nexus)
            return try ReportLUNs.decode(outcome.dataIn).units.map(\.number)
        }

        func copy(
            from source: CSCDDescriptor, to target: CSCDDescriptor, by nexus: Nexus, through unit: Int = 0
        ) -> SCSIOutcome {
            bench.copy(
                CopyParameterList(
                    listIdentifier: 1, usage: .hold, cscds: [source, target],
                    segments: [
                        SegmentDescriptor(
                            source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(0),
                            amount: .blocks(8, ofDestination: false))
                    ]), unit, on: nexus)
        }
    }

    @Test func reportLUNsTellsWhatIsVisible() throws {
        let world = try World()
        #expect(try world.listed(world.alpha) == [0, 1, 3])
        #expect(try world.listed(world.beta) == [0, 2, 3])
        #expect(try world.listed(world.stranger) == [0])
        // Names compare without regard to case (RFC 7143 §4.2.7.2).
        let loud = World.nexus(Self.alpha.uppercased(), 14)
        world.bench.device.openNexus(loud)
        #expect(try world.listed(loud) == [0, 1, 3])
    }

    @Test func anInvisibleUnitIsNotThere() throws {
        let world = try World()
        let commands: [Command] = [
            .testUnitReady, .readCapacity10, .readCapacity16(allocationLength: 32),
        ]
        for command in commands {
            #expect(
                world.bench.send(command, 2, on: world.alpha)
                    .failed(.illegalRequest, .logicalUnitNotSupported))
            #expect(world.bench.send(command, 2, on: world.beta).isGood)
        }
        // INQUIRY tells no more of it than of a number that nobody has (SPC-4 §6.6.2).
        let hidden = world.bench.send(.inquiry(page: nil, allocationLength: 96), 2, on: world.alpha)
        let absent = world.bench.send(.inquiry(page: nil, allocationLength: 96), 9, on: world.alpha)
        #expect(hidden.dataIn.first == 0x7F && hidden.dataIn == absent.dataIn)
    }

    /// CVE-2020-28374: a target that looks a designator up among all of its units, or takes a part of one for
    /// the whole, lets an initiator copy what it may not read.
    @Test func aDesignatorOfAnInvisibleUnitNamesNothing() throws {
        let world = try World()
        let bench = world.bench
        let before = try world.stores.map { try $0.all }
        for (source, target) in [(2, 1), (1, 2), (2, 2)] {
            let refused = world.copy(from: bench.cscd(source), to: bench.cscd(target), by: world.alpha)
            #expect(refused.failed(.copyAborted, .copyTargetDeviceNotReachable), "\(source) \(target)")
            // The same as for what no unit has.
            var nobody = bench.cscd(source)
            nobody.designation = .naaLocallyAssigned(0x0123_4567_89AB_CDE)
            let absent = world.copy(from: nobody, to: bench.cscd(1), by: world.alpha)
            #expect(refused.sense == absent.sense)
        }
        #expect(world.copy(from: bench.cscd(0), to: bench.cscd(3), by: world.stranger).senseData != nil)
        #expect(try world.stores.map { try $0.all } == before)

        // Who may see them may copy them.
        #expect(world.copy(from: bench.cscd(2), to: bench.cscd(3), by: world.beta).isGood)
        #expect(try world.stores[3].all.prefix(4096) == before[2].prefix(4096))
    }

    /// Who did it is told by the proven name, too, also of a copy that was refused.
    @Test func theAuditTellsTheUser() throws {
        let lines = LogLines()
        let store = MemoryStore(pattern: Self.size, seed: 1)
        let bench = try Bench(
            [Bench.unit(0, store), Bench.unit(1, MemoryStore(pattern: Self.size, seed: 2), readOnly: true)],
            logger: lines.logger)
        let nexus = Nexus(initiatorName: Self.alpha, sessionIdentifier: 0xAB, authenticatedName: "user")
        bench.device.openNexus(nexus)
        _ = bench.send(.testUnitReady, 0, on: nexus)
        for (target, bytes, result) in [(0, "1024", "done"), (1, "0", "copyAborted 2700h in segment 0")] {
            _ = bench.copy(
                CopyParameterList(
                    listIdentifier: 1, usage: .hold, cscds: [bench.cscd(0), bench.cscd(target)],
                    segments: [
                        SegmentDescriptor(
                            source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(4),
                            amount: .blocks(2, ofDestination: false))
                    ]), on: nexus)
            let line = try #require(lines.all.last)
            #expect(line["initiator"] == Self.alpha && line["user"] == "user" && line["session"] == "ab")
            #expect(line["bytes"] == bytes && line["result"] == result, "\(line)")
        }
        #expect(lines.all.count == 2 && lines.all[0]["from"] == "0" && lines.all[0]["to"] == "0")
    }

    /// Every prefix of a designator, and every change of one, names nothing, whatever the session sees.
    @Test func onlyTheWholeDesignatorNames() throws {
        let world = try World()
        let bench = world.bench
        let before = try world.stores.map { try $0.all }
        let space = 20
        for designation in bench.device.units[1].designations {
            let whole = designation.designator
            var forged: [[UInt8]] = (0..<whole.count).map { Array(whole.prefix($0)) }
            forged += whole.indices.map { index in
                var bytes = whole
                bytes[index] ^= 1
                return bytes
            }
            if whole.count < space { forged.append(whole + [0]) }
            // The longer ones cannot be told in a descriptor, only their beginnings.
            forged.removeAll { $0.count > space }
            for bytes in forged {
                var descriptor = bench.cscd(1)
                descriptor.designation = designation
                descriptor.designation.designator = bytes
                for (source, target) in [(descriptor, bench.cscd(3)), (bench.cscd(3), descriptor)] {
                    let outcome = world.copy(from: source, to: target, by: world.alpha)
                    #expect(outcome.failed(.copyAborted, .copyTargetDeviceNotReachable), "\(bytes)")
                }
            }
            guard whole.count <= space else { continue }
            var descriptor = bench.cscd(1)
            descriptor.designation = designation
            #expect(world.copy(from: descriptor, to: descriptor, by: world.alpha).isGood)
        }
        #expect(try world.stores.map { try $0.all } == before)
    }
}
