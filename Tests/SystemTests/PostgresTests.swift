import Foundation
import HostControl
import TestSupport
import Testing

/// A database in use on the volume, by nbdfuse and a loop device: it is copied while pgbench writes and processes are
/// killed. PostgreSQL is started on each copy, recovers, and has exactly the transactions that were committed by then.
@Suite(
    .serialized,
    .enabled(
        if: LoopMount.isPossible && PostgresServer.programs != nil,
        "host tier only, with Debian's postgresql: \(LoopMount.reason)"))
struct PostgresTests {
    private static let size: UInt64 = 256 << 20
    /// Nanoseconds by which pgbench's clock, which it sets once, may be off.
    private let slack: Int64 = 1_000_000

    /// The volume with a database that is used from now on.
    private final class Site {
        let volume: LoopMount
        let scratch: ScratchDirectory
        let server: PostgresServer
        let ledger: LedgerClient
        let bench: ChildProcess
        var data: String { volume.mountPoint + "/pg" }

        init(_ kind: String) throws {
            volume = try LoopMount(
                size: kind == "xfs" ? 320 << 20 : PostgresTests.size, kind,
                options: ["--cache-size", "192MiB", "--chunk-size", "16KiB"])
            scratch = volume.host.directory
            let data = volume.mountPoint + "/pg"
            try PostgresServer.make(data, in: scratch)
            server = try PostgresServer(data, in: scratch)
            try server.query(LedgerClient.table)
            let filled = try server.bench(["--initialize", "--scale", "2", "--quiet"])
            guard filled.wait() == .exit(0) else { throw TestFailure(filled.errors) }
            ledger = try LedgerClient(server, in: scratch)
            bench = try server.bench(["--client", "4", "--jobs", "2", "--no-vacuum", "--time", "86400"])
            try waitUntil("rows are committed") { try count() > 20 }
        }

        func count() throws -> Int {
            Int(try server.query("SELECT count(*) FROM ledger").first ?? "") ?? 0
        }

        func copyArguments(_ name: String, _ options: [String]) -> [String] {
            ["copy", "--host", volume.host.control, "--to", scratch("copies/" + name)] + options
        }

        func copy(_ name: String, _ options: [String] = []) throws {
            let made = try Outboard.run(copyArguments(name, options), seconds: 300)
            guard made.isSuccess else { throw TestFailure("\(made)") }
        }
    }

    /// What the database on a volume in a file holds, after its recovery.
    /// - Returns: how many rows the ledger has, numbered from 1.
    private func expectSound(_ image: String, _ kind: String, _ scratch: ScratchDirectory) throws -> Int {
        let place = scratch("look")
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        try LoopMount.succeed("mount", ["-o", kind == "xfs" ? "loop,nouuid" : "loop", image, place])
        defer { LoopMount.unmount(place) }
        // It lives on the volume's other mount, too.
        unlink(place + "/pg/postmaster.pid")
        let server = try PostgresServer(place + "/pg", in: scratch)
        #expect(server.log.contains("automatic recovery in progress"), "\(server.log)")
        let rows = try expectSound(server)
        try server.stop()
        try PostgresServer.run("pg_checksums", ["--check", "--pgdata", place + "/pg"])
        return rows
    }

    private func expectSound(_ server: PostgresServer) throws -> Int {
        // Each of pgbench's transactions adds one sum to an account, a teller, a branch and the history.
        let sums = try server.query(
            """
            SELECT sum(abalance) FROM pgbench_accounts UNION ALL SELECT sum(tbalance) FROM pgbench_tellers
            UNION ALL SELECT sum(bbalance) FROM pgbench_branches
            UNION ALL SELECT coalesce(sum(delta), 0) FROM pgbench_history
            """)
        #expect(sums.count == 4 && Set(sums).count == 1, "\(sums)")
        #expect(try server.query("SELECT count(*) > 0 FROM pgbench_history") == ["t"])
        try server.check()
        let bounds = try server.query(
            "SELECT count(*), coalesce(min(number), 1), coalesce(max(number), 0) FROM ledger")
        let numbers = (bounds.first ?? "").split(separator: "|").compactMap { Int($0) }
        guard numbers.count == 3 else { throw TestFailure("\(bounds)") }
        #expect(numbers[1] == 1 && numbers[2] == numbers[0], "rows are missing: \(numbers)")
        return numbers[0]
    }

    @Test(arguments: ["ext4", "xfs"]) func everyCopyHasWhatWasCommitted(kind: String) throws {
        let site = try Site(kind)
        let scratch = site.scratch
        try FileManager.default.createDirectory(atPath: scratch("copies"), withIntermediateDirectories: false)
        let slow = ["--max-rate", "64MiB"]
        try site.copy("1", slow)
        try killInMidCopy(site) { copy in copy.process.signal(SIGKILL) }
        try site.copy("2", slow + ["--mode", "append", "--end", "after-cache-copy"])
        try killInMidCopy(site) { copy in kill(try copy.bridge(), SIGKILL) }
        try site.copy("3", slow + ["--freeze", site.volume.mountPoint])
        #expect(try site.server.query("SELECT 1") == ["1"])
        #expect(site.bench.isRunning, "\(site.bench.errors)")
        try site.server.stop()
        let rows = try site.ledger.rows()

        for name in ["1", "2", "3"] {
            let copy = scratch("copies/" + name)
            let image = scratch("image")
            try LoopMount.succeed(Outboard.binary, ["restore", "volume", copy, "--to", image, "--force"])
            let found = try expectSound(image, kind, scratch)
            let instant = try CopiedEpoch(of: copy).institutedAt
            let (answered, begun) = (
                rows.count { $0.answered < instant - slack }, rows.count { $0.begun <= instant + slack }
            )
            // The last transaction was never answered, or its client was stopped before it noted the answer.
            print(
                "PostgresTests(\(kind)), copy \(name): \(answered) rows answered, \(begun) begun, \(found) found"
            )
            #expect(answered <= found && found <= begun + 1, "copy \(name)")
            #expect(answered > 0)
        }
        // And the volume itself.
        let again = try PostgresServer(site.data, in: scratch)
        #expect(try expectSound(again) >= rows.count)
        try again.stop()
    }

    private func killInMidCopy(_ site: Site, _ kill: (CopyInProgress) throws -> Void) throws {
        let copy = try CopyInProgress(of: site.volume.host, in: site.scratch("killed"), rate: "8MiB")
        try kill(copy)
        _ = copy.process.waitForExit()
        try LoopMount.succeed("rm", ["-rf", site.scratch("killed")])
    }

    /// A host that is killed is a disk that is pulled out: nbdfuse does not connect again, the file system gets errors and
    /// the database stops. Unmounted, mounted again from the next host and started, it has all that was committed.
    @Test func aKilledHostLosesNothingCommitted() throws {
        let site = try Site("ext4")
        let scratch = site.scratch
        let copy = try CopyInProgress(of: site.volume.host, in: scratch("killed"), rate: "8MiB")
        let before = try site.count()
        try waitUntil("rows are committed in the epoch") { try site.count() > before + 20 }
        site.volume.host.process.signal(SIGKILL)
        #expect(copy.process.waitForExit() == .exit(69), "\(copy.process.errors)")
        let rows = try site.ledger.rows()
        site.server.crash()
        let begun = Date()
        try site.volume.reconnect()
        print("PostgresTests: mounted again \(Date().timeIntervalSince(begun)) s after")
        let epoch = try site.volume.host.status().epoch
        #expect(epoch?.state == .open && epoch?.isHeld == false, "\(epoch as Any)")
        let again = try PostgresServer(site.data, in: scratch)
        let found = try expectSound(again)
        #expect(found >= rows.count && found <= rows.count + 1, "\(found) of \(rows.count)")
        // The next copy is as good as any.
        try FileManager.default.createDirectory(atPath: scratch("copies"), withIntermediateDirectories: false)
        try site.copy("1")
        try again.stop()
        let image = scratch("image")
        try LoopMount.succeed(Outboard.binary, ["restore", "volume", scratch("copies/1"), "--to", image])
        #expect(try expectSound(image, "ext4", scratch) == found)
    }
}
