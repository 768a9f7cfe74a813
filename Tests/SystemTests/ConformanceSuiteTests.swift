import Foundation
import TestSupport
import Testing

/// libiscsi's own suite, `iscsi-test-cu`, against a running bridge. What it may skip is listed, with the reason,
/// in `iscsi-test-cu-skips.txt`: a skip that is not in the list fails, and so does a listed one that ran.
@Suite struct ConformanceSuiteTests {
    private enum Kind: String, CaseIterable {
        /// Of 512-byte blocks, 256 of them a physical block (as of a ZFS volume): some tests need blocks that are
        /// not aligned to physical ones. With fewer, GetLBAStatus.UnmapSingle asks for block n + 1 and demands an
        /// answer that begins with the next physical block.
        case thin
        /// As thin, as it comes: logical blocks are physical blocks.
        case plain
        case thick
        case large = "4096"

        var number: Int { Self.allCases.firstIndex(of: self)! }

        var settings: String {
            switch self {
            case .thin: "thin: true, physical_block_size: 131072"
            case .plain: "thin: true"
            case .thick: "thin: false"
            case .large: "thin: true, block_size: 4096"
            }
        }
    }

    /// How many tests libiscsi 1.19 has; the families SCSI and iSCSI are all of it.
    private static let tests = ["SCSI": 215, "iSCSI": 15, "ALL": 230]
    /// Of the 215 on the thin unit, at least.
    private static let thinPasses = 183
    /// What may not be skipped for any reason.
    private static let copySuites = ["ExtendedCopy": 6, "ReceiveCopyResults": 2]
    private static let unitBytes: UInt64 = 64 << 20

    /// A bridge with one unit of each kind, each again read-only (number + 10), and two portals: two paths.
    private static func bridge(_ scratch: ScratchDirectory) throws -> BridgeProcess {
        let units = Kind.allCases.flatMap { kind in
            [
                "  - {number: \(kind.number), path: \(kind.rawValue), \(kind.settings)}",
                "  - {number: \(kind.number + 10), path: \(kind.rawValue), read_only: true}",
            ]
        }
        for kind in Kind.allCases {
            let path = scratch(kind.rawValue)
            try makeSparseFile(path, size: unitBytes)
            if kind == .thick {
                try #require(runProgram("fallocate", ["-l", "\(unitBytes)", path]).isSuccess)
            }
        }
        let settings = """
            portals: ["127.0.0.1:0", "127.0.0.2:0"]
            target: iqn.2026-01.net.example:conformance
            units:
            \(units.joined(separator: "\n"))
            """
        try settings.write(toFile: scratch("bridge.yaml"), atomically: true, encoding: .utf8)
        return try BridgeProcess(arguments: ["--config", scratch("bridge.yaml")])
    }

    private static func run(
        _ family: String, _ bridge: BridgeProcess, unit: Int
    ) async throws -> ConformanceLog {
        let paths = bridge.portals.map { "iscsi://\($0)/\(bridge.target)/\(unit)" }
        let result = try await runAlongside(
            "iscsi-test-cu",
            [
                "-i", "iqn.2026-01.net.example:one", "-I", "iqn.2026-01.net.example:two", "--dataloss", "-V",
                "-t", family,
            ] + paths, seconds: 400)
        let log = ConformanceLog(result.output)
        // Not with the log, which is ten megabytes.
        if log.failed.isEmpty, !result.isSuccess {
            Issue.record("\(result.command): status \(result.status): \(result.output.suffix(2000))")
        }
        for test in log.failed { Issue.record("\(family) on unit \(unit): \(test.name): \(test.outcome)") }
        return log
    }

    private static func allowedSkips(_ kind: Kind) throws -> Set<String> {
        let path = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("iscsi-test-cu-skips.txt")
        let list = try AllowedSkips(
            String(contentsOf: path, encoding: .utf8), kinds: Kind.allCases.map(\.rawValue))
        return list[kind.rawValue]
    }

    private static func family(_ family: String, _ kind: Kind) async throws {
        let scratch = try ScratchDirectory()
        let bridge = try bridge(scratch)
        let log = try await run(family, bridge, unit: kind.number)
        #expect(log.tests.count == tests[family])

        let ran = Set(log.tests.map(\.name))
        let skipped = Set(log.skipped)
        let allowed = try allowedSkips(kind).intersection(ran)
        for name in skipped.subtracting(allowed).sorted() {
            let test = log.tests.first { $0.name == name }
            Issue.record("\(name) was skipped, and is not in the list: \(test.map { "\($0.outcome)" } ?? "")")
        }
        for name in allowed.subtracting(skipped).sorted() {
            Issue.record("\(name) is no longer skipped: take it off the list")
        }
        if family != "iSCSI" {
            for (suite, count) in copySuites {
                #expect(log.passed.filter { $0.hasPrefix(suite + ".") }.count == count, "\(suite)")
            }
            let passes = log.passed.filter { !$0.hasPrefix("iSCSI") }.count
            if kind == .thin { #expect(passes >= thinPasses) }
        }
        #expect(bridge.process.stop() == .exit(0), "\(bridge.process.errors.suffix(4000))")
    }

    @Test func allOnAThinUnit() async throws { try await Self.family("ALL", .thin) }
    @Test func allOnAThickUnit() async throws { try await Self.family("ALL", .thick) }
    @Test func allOnAUnitOf4096ByteBlocks() async throws { try await Self.family("ALL", .large) }

    /// With it, every test that has to do with what is mapped ran on units of both kinds of physical blocks.
    @Test func blockStatusOnAPlainThinUnit() async throws {
        let scratch = try ScratchDirectory()
        let log = try await Self.run("SCSI.GetLBAStatus", Self.bridge(scratch), unit: Kind.plain.number)
        #expect(log.passed.count == 3, "\(log.tests)")
    }

    private static let more: Comment =
        "all of the suite again, by the families' names and on one more unit: full tier"

    @Test(.enabled(if: Tier.isFull, more)) func allOnAPlainThinUnit() async throws {
        try await Self.family("ALL", .plain)
    }

    @Test(.enabled(if: Tier.isFull, more), arguments: ["SCSI", "iSCSI"])
    func familyOnAThinUnit(_ family: String) async throws { try await Self.family(family, .thin) }

    @Test(.enabled(if: Tier.isFull, more), arguments: ["SCSI", "iSCSI"])
    func familyOnAThickUnit(_ family: String) async throws { try await Self.family(family, .thick) }

    @Test(.enabled(if: Tier.isFull, more), arguments: ["SCSI", "iSCSI"])
    func familyOnAUnitOf4096ByteBlocks(_ family: String) async throws {
        try await Self.family(family, .large)
    }

    /// What writes is refused on a read-only unit with the right sense: the case that the writable ones skip.
    @Test func writeProtection() async throws {
        let scratch = try ScratchDirectory()
        let bridge = try Self.bridge(scratch)
        for kind in Kind.allCases {
            let log = try await Self.run("SCSI.ReadOnly", bridge, unit: kind.number + 10)
            #expect(log.passed == ["ReadOnly.ReadOnlySBC"], "\(kind): \(log.tests)")
        }
    }
}
