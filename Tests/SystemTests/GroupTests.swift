import Agent
import Blocks
import Foundation
import PhysicalCopy
import TestSupport
import Testing

/// Several hosts in one copy have one instant.
@Suite(.serialized) struct GroupTests {
    /// Writes number n to A, then to B, then n + 1 to A …
    private final class Alternator: Sendable {
        private let state = Monitor(
            (stopping: false, done: false, failure: StoreError?.none, number: UInt64(0)))

        func start(_ a: NBDStore, _ b: NBDStore) {
            BlockingThread.start { [self] in
                var failure: StoreError?
                do throws(StoreError) {
                    while let number = next() {
                        for store in [a, b] { try store.write(Self.block(number), at: 4096) }
                    }
                } catch { failure = error }
                state.withLockAndNotify {
                    $0.done = true
                    $0.failure = failure
                }
            }
        }

        private func next() -> UInt64? {
            state.withLockAndNotify {
                $0.number += 1
                return $0.stopping ? nil : $0.number
            }
        }

        private static func block(_ number: UInt64) -> [UInt8] {
            var writer = BigEndianWriter(reserving: 512)
            for _ in 0..<64 { writer.integer(number) }
            return writer.bytes
        }

        var number: UInt64 { state.withLock { $0.number } }

        func wait(for number: UInt64) { state.wait { $0.done || $0.number >= number ? () : nil } }

        func stop() throws {
            state.withLockAndNotify { $0.stopping = true }
            if let failure = state.wait(until: { $0.done ? .some($0.failure) : nil }) { throw failure }
        }
    }

    /// The number that a copy holds; all its 64 places must agree.
    private func number(in copy: String) throws -> UInt64 {
        let block = try contents(copy + "/data.img")[4096..<4608]
        let numbers = Set(
            stride(from: block.startIndex, to: block.endIndex, by: 8).map { start in
                block[start..<start + 8].reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
            })
        guard let number = numbers.first, numbers.count == 1 else {
            throw TestFailure("\(copy) holds half a write")
        }
        return number
    }

    @Test func twoVolumesHaveOneInstant() throws {
        let scratch = try ScratchDirectory()
        for name in ["a", "b"] { try makeSparseFile(scratch(name + ".img"), size: 4 << 20) }
        let hosts = try ["a", "b"].map { try HostProcess(scratch, name: $0) }
        let stores = try hosts.map { try NBDStore(.unixSocket($0.socket, export: ""), connections: 1) }
        let writer = Alternator()
        writer.start(stores[0], stores[1])
        for round in 0..<5 {
            let before = writer.number
            writer.wait(for: before + 10)
            let group = scratch("group\(round)")
            let made = try Outboard.run([
                "copy", "--host", hosts[0].control, "--host", hosts[1].control, "--to", group, "--mode",
                round % 2 == 0 ? "overlay" : "append",
            ])
            #expect(made.status == 0, "\(made)")
            if round % 2 == 1 {
                for name in ["a", "b"] {
                    let integrated = try Outboard.run(["integrate", "\(group)/\(name)"])
                    #expect(integrated.status == 0, "\(integrated)")
                }
            }
            let instants = try ["a", "b"].map {
                try PhysicalCopy("\(group)/\($0)").manifest.epoch.institutedAt
            }
            #expect(instants[0] == instants[1])
            let a = try number(in: group + "/a")
            let b = try number(in: group + "/b")
            #expect(b <= a && a <= b + 1, "round \(round): A holds \(a), B holds \(b)")
            #expect(b > before, "round \(round)")
        }
        try writer.stop()
    }
}
