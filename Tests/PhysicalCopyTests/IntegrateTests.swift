import Blocks
import Foundation
import Glibc
import TestSupport
import Testing

@testable import PhysicalCopy

@Suite struct IntegrateTests {
    private func expectIntegrated(_ sample: SampleCopy) throws {
        let copy = try PhysicalCopy(sample.directory)
        #expect(copy.manifest.state == .integrated && copy.manifest.isConsistentAsItStands)
        let bytes = try Data(contentsOf: URL(fileURLWithPath: sample.directory + "/data.img"))
        #expect(Array(bytes) == sample.instant)
        #expect(try copy.verify(SampleCopy.open).isClean)
        let volume = try copy.openVolume(SampleCopy.open)
        #expect(try volume.bytes(at: 0, count: sample.instant.count) == sample.instant)
        // And nothing else is left.
        var members = ["data.img", "manifest.json"]
        if case .file(let description) = copy.manifest.data.checksums { members.append(description.name) }
        #expect(try Files().names(in: sample.directory, "").sorted() == members.sorted())
    }

    @Test(arguments: [1, 2]) func atOnce(version: Int) throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 21, version: version)
        do { try PhysicalCopy(sample.directory, for: .changing).integrate(SampleCopy.open) }
        try expectIntegrated(sample)
        do { try PhysicalCopy(sample.directory, for: .changing).integrate(SampleCopy.open) }
        try expectIntegrated(sample)
    }

    /// Stops at the `stop`th report, with a power cut; readers must see the instant all along.
    /// - Returns: false when integrate was through before.
    private func interrupt(
        _ sample: SampleCopy, at stop: Int, _ random: inout SeededGenerator
    ) throws -> Bool {
        var opened: CrashableFile?
        var reports = 0
        do throws(CopyError) {
            let copy = try PhysicalCopy(sample.directory, for: .changing)
            try copy.integrate { location, writable throws(CopyError) in
                guard case .path(let path) = location else { preconditionFailure() }
                let file = try CrashableFile(path, writable: writable)
                opened = file
                return file
            } progress: { _ throws(CopyError) in
                reports += 1
                if reports == stop { throw CopyError(.cancelled, "integrate", "the test says so") }
            }
            return false
        } catch {
            guard error.kind == .cancelled else { throw error }
        }
        opened?.cutPower(&random)
        return true
    }

    @Test("Killed at any step, with a power cut, it can be run again", arguments: [31, 32], [1, 2])
    func killedAnywhere(seed: UInt64, version: Int) throws {
        let parent = TemporaryDirectory()
        var random = SeededGenerator(seed: seed)
        var stop = 1
        while true {
            let sample = try SampleCopy(in: parent.path, seed: seed, size: 70_000, version: version)
            guard try interrupt(sample, at: stop, &random) else { break }
            let seen = try PhysicalCopy(sample.directory).openVolume(SampleCopy.open)
            #expect(try seen.bytes(at: 0, count: sample.instant.count) == sample.instant, "at \(stop)")
            // Once more, somewhere, then to the end.
            _ = try interrupt(sample, at: Int.random(in: 1...20, using: &random), &random)
            do { try PhysicalCopy(sample.directory, for: .changing).integrate(SampleCopy.open) }
            try expectIntegrated(sample)
            try FileManager.default.removeItem(atPath: sample.directory)
            stop += 1
        }
        #expect(stop > 10)
    }

    @Test func aFailedWriteLeavesARunnableCopy() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 41)
        #expect(throws: CopyError.self) {
            let copy = try PhysicalCopy(sample.directory, for: .changing)
            try copy.integrate { location, writable throws(CopyError) in
                let file = try SampleCopy.open(location, writable) as! CrashableFile
                file.state.withLock { $0.failAtWrite = 4 }
                return file
            }
        }
        #expect(try PhysicalCopy(sample.directory).manifest.state == .integrating)
        #expect(try !PhysicalCopy(sample.directory).verify(SampleCopy.open).isClean)
        do {
            // What lies under originals may have changed; as a volume the copy is whole.
            let copy = try PhysicalCopy(sample.directory)
            try copy.requireWhole(in: copy.openData(SampleCopy.open))
        }
        do { try PhysicalCopy(sample.directory, for: .changing).integrate(SampleCopy.open) }
        try expectIntegrated(sample)
    }

    @Test("Damage is found before anything is changed")
    func damaged() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 42)
        let image = URL(fileURLWithPath: sample.directory + "/data.img")
        let bytes = try Data(contentsOf: image)
        for place in [17, Int(sample.manifest.originals!.offset) + 8192 + 4096 + 1] {
            var damaged = bytes
            damaged[place] ^= 1
            try damaged.write(to: image)
            #expect(throws: CopyError.self) {
                try PhysicalCopy(sample.directory, for: .changing).integrate(SampleCopy.open)
            }
            #expect(try Data(contentsOf: image) == damaged)
            #expect(try PhysicalCopy(sample.directory).manifest.state == .complete)
        }
    }

    /// A byte that no original lies over, in a slice that is summed up anew.
    private func rawByte(of sample: SampleCopy) throws -> Int {
        let copy = try PhysicalCopy(sample.directory)
        let index = try copy.logReader(in: copy.openData(SampleCopy.open)).index()
        let chunk = try #require((0..<UInt64(18)).first { index[$0] == nil })
        return Int(chunk * SampleCopy.chunkSize) + 5
    }

    private func flip(_ place: Int, of sample: SampleCopy) throws {
        let image = URL(fileURLWithPath: sample.directory + "/data.img")
        var bytes = try Data(contentsOf: image)
        bytes[place] ^= 1
        let file = try FileHandle(forUpdating: image)
        try file.seek(toOffset: UInt64(place))
        try file.write(contentsOf: bytes[place...place])
        try file.close()
    }

    @Test(
        "What is damaged after it was verified gets no checksum that fits it",
        arguments: [IntegrateStep.marking, .replaying, .flushing], [true, false])
    func damagedMeanwhile(step: IntegrateStep, isKilled: Bool) throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 51, size: 70_000)
        let place = try rawByte(of: sample)
        var isDamaged = false
        let error = #expect(throws: CopyError.self) {
            let copy = try PhysicalCopy(sample.directory, for: .changing)
            try copy.integrate(SampleCopy.open) { progress throws(CopyError) in
                guard !isDamaged, progress.step == step else { return }
                isDamaged = true
                do { try self.flip(place, of: sample) } catch { Issue.record(error) }
                if isKilled, step != .marking { throw CopyError(.cancelled, "integrate", "killed") }
            }
        }
        if isKilled, step != .marking {
            #expect(error?.kind == .cancelled)
            // A reader that must have a whole copy sees it, too.
            do {
                let copy = try PhysicalCopy(sample.directory)
                let seen = #expect(throws: CopyError.self) {
                    try copy.requireWhole(in: copy.openData(SampleCopy.open))
                }
                #expect(seen?.kind == .damaged)
                let report = try copy.verify(SampleCopy.open)
                #expect(report.findings.contains { $0.problem.contains("CRC-32C") })
            }
            let again = #expect(throws: CopyError.self) {
                try PhysicalCopy(sample.directory, for: .changing).integrate(SampleCopy.open)
            }
            #expect(again?.kind == .damaged)
        } else {
            #expect(error?.kind == .damaged)
        }
        // The original images are kept, and once the damage is mended all is well.
        #expect(try PhysicalCopy(sample.directory).manifest.state == .integrating)
        try flip(place, of: sample)
        do { try PhysicalCopy(sample.directory, for: .changing).integrate(SampleCopy.open) }
        try expectIntegrated(sample)
    }
}
