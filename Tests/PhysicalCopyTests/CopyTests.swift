import Blocks
import Foundation
import Glibc
import TestSupport
import Testing

@testable import PhysicalCopy

@Suite struct CopyTests {
    @Test("The merged reader gives the volume as of the instant, whatever is read", arguments: 1...8)
    func merged(seed: UInt64) throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: seed, size: 100_000 + Int(seed) * 777)
        let volume = try PhysicalCopy(sample.directory).openVolume(SampleCopy.open)
        #expect(try volume.bytes(at: 0, count: sample.instant.count) == sample.instant)
        var random = SeededGenerator(seed: seed)
        for _ in 0..<200 {
            let start = Int.random(in: 0..<sample.instant.count, using: &random)
            let count = Int.random(in: 0...min(30_000, sample.instant.count - start), using: &random)
            let read = try volume.bytes(at: UInt64(start), count: count)
            #expect(read == Array(sample.instant[start..<start + count]))
        }
    }

    @Test(arguments: [1, 2]) func verifyCleanAndDamaged(version: Int) throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 11, version: version)
        let clean = try PhysicalCopy(sample.directory).verify(SampleCopy.open)
        #expect(clean.isClean)
        #expect(clean.originals == sample.manifest.epoch.entries)
        let image = sample.directory + "/data.img"
        let bytes = try Data(contentsOf: URL(fileURLWithPath: image))
        let log = Int(sample.manifest.originals!.offset)
        // Data; what lies behind them; both superblocks; a header; an original; the last byte of all.
        for place in [
            0, 65_536, 299_999, 300_000, log - 1, log + 3, log + 4096 + 99, log + 8192 + 60,
            log + 8192 + 5000, bytes.count - 1,
        ] {
            var damaged = bytes
            damaged[place] ^= 0x10
            try damaged.write(to: URL(fileURLWithPath: image))
            let report = try PhysicalCopy(sample.directory).verify(SampleCopy.open)
            #expect(!report.isClean)
            #expect(
                report.findings.contains { $0.offset <= place && UInt64(place) < $0.offset + $0.length })
            let part: Finding.Part = place < 300_000 ? .data : place < log ? .padding : .originals
            #expect(report.findings.allSatisfy { $0.part == part && $0.file == "data.img" })
            if part == .data, version == 2 {
                #expect(report.findings.map(\.chunk) == [UInt64(place / 65_536)])
                #expect(report.findings[0].length <= 65_536)
            }
        }
        try bytes.prefix(bytes.count - 1).write(to: URL(fileURLWithPath: image))
        let report = try PhysicalCopy(sample.directory).verify(SampleCopy.open)
        #expect(report.findings.map(\.part) == [.data])
    }

    @Test func openErrors() throws {
        let parent = TemporaryDirectory()
        func kind(_ path: String) -> CopyError.Kind? {
            do throws(CopyError) { _ = try PhysicalCopy(path) } catch { return error.kind }
            return nil
        }
        #expect(kind(parent.path + "/absent") == .missing)
        #expect(kind(parent.path) == .missing)
        let sample = try SampleCopy(in: parent.path, seed: 12)
        let manifest = URL(fileURLWithPath: sample.directory + "/manifest.json")
        var bytes = try Data(contentsOf: manifest)
        bytes[100] ^= 1
        try bytes.write(to: manifest)
        #expect(kind(sample.directory) == .damaged)
        try Data().write(to: manifest)
        #expect(kind(sample.directory) == .damaged)
    }

    @Test func destinations() throws {
        let parent = TemporaryDirectory()
        func kind(_ name: String, force: Bool) -> CopyError.Kind? {
            do throws(CopyError) {
                _ = try CopyDraft(destination: parent.path + "/" + name, force: force)
            } catch {
                return error.kind
            }
            return nil
        }
        #expect(kind("new", force: false) == nil)
        #expect(kind("absent/new", force: false) == .cannotCreate)
        try FileManager.default.createDirectory(
            atPath: parent.path + "/mine", withIntermediateDirectories: false)
        try Data([1]).write(to: URL(fileURLWithPath: parent.path + "/mine/letter"))
        try Data([1]).write(to: URL(fileURLWithPath: parent.path + "/file"))
        for force in [false, true] {
            #expect(kind("mine", force: force) == .cannotCreate)
            #expect(kind("file", force: force) == .cannotCreate)
        }
        let sample = try SampleCopy(in: parent.path, seed: 13)
        #expect(kind("copy", force: false) == .cannotCreate)
        #expect(kind("copy", force: true) == nil)
        try Data([1]).write(to: URL(fileURLWithPath: sample.directory + "/letter"))
        #expect(kind("copy", force: true) == .cannotCreate)
        #expect(try Files().names(in: parent.path, "").sorted() == ["copy", "file", "mine"])
    }

    @Test func forceReplacesOnlyWhenComplete() throws {
        let parent = TemporaryDirectory()
        let old = try SampleCopy(in: parent.path, seed: 14)
        do {
            let draft = try CopyDraft(destination: old.directory, force: true)
            try Data([1]).write(to: URL(fileURLWithPath: draft.path(of: "data.img")))
            #expect(try PhysicalCopy(old.directory).manifest.uuid == old.manifest.uuid)
        }
        #expect(try Files().names(in: parent.path, "") == ["copy"])
        let draft = try CopyDraft(destination: old.directory, force: true)
        try old.copyMembers(to: draft)
        var manifest = old.manifest
        manifest.uuid = "the new one"
        do {
            let reader = try PhysicalCopy(old.directory)
            #expect(throws: CopyError.self) { try draft.commit(manifest) }
            withExtendedLifetime(reader) {}
        }
        try draft.commit(manifest)
        #expect(try Files().names(in: parent.path, "") == ["copy"])
        let copy = try PhysicalCopy(old.directory)
        #expect(copy.manifest.uuid == "the new one")
        #expect(try copy.verify(SampleCopy.open).isClean)
    }

    @Test func leftoversOfTheDeadAreCleared() throws {
        let parent = TemporaryDirectory()
        let dead = parent.path + "/.copy.partial-999999999"
        try FileManager.default.createDirectory(atPath: dead, withIntermediateDirectories: false)
        try Data([1]).write(to: URL(fileURLWithPath: dead + "/data.img"))
        let living = try DirectoryLock(parent.path, exclusive: false, "")
        _ = try CopyDraft(destination: parent.path + "/copy", force: false)
        #expect(try Files().names(in: parent.path, "").isEmpty)
        withExtendedLifetime(living) {}
    }

    /// Of one process number, as processes of two containers may be.
    @Test func whatAnotherMakesUnderTheSameNameIsLeftAlone() throws {
        let parent = TemporaryDirectory()
        let first = try CopyDraft(destination: parent.path + "/copy", force: false)
        try Data([1]).write(to: URL(fileURLWithPath: first.path(of: "data.img")))
        #expect(throws: CopyError.self) { try CopyDraft(destination: parent.path + "/copy", force: false) }
        #expect(try Files().names(in: first.directory, "") == ["data.img"])
        // It has made the directory, and another is faster to lock it.
        let locks = Monitor<[DirectoryLock]>([])
        var calls = FileSystemCalls()
        calls.getpid = { 1 }
        calls.mkdirat = { [mkdirat = calls.mkdirat, parent = parent.path] directory, path, mode in
            let outcome = mkdirat(directory, path, mode)
            let draft = parent + "/.other.partial-1"
            guard let lock = try? DirectoryLock(draft, exclusive: true, "") else { return outcome }
            locks.withLock { $0.append(lock) }
            _ = FileManager.default.createFile(atPath: draft + "/data.img", contents: nil)
            return outcome
        }
        #expect(throws: CopyError.self) {
            try CopyDraft(destination: parent.path + "/other", force: false, files: calls)
        }
        #expect(locks.withLock { $0.count } == 1)
        #expect(try Files().names(in: parent.path + "/.other.partial-1", "") == ["data.img"])
    }

    @Test("Killed while it replaces a copy without exchange: the old copy comes back")
    func theOldCopyComesBack() throws {
        let parent = TemporaryDirectory()
        let old = try SampleCopy(in: parent.path, seed: 15)
        func replacement() throws -> CopyDraft {
            let draft = try CopyDraft(destination: old.directory, force: true)
            try old.copyMembers(to: draft)
            draft.files.calls.lackFlags()
            return draft
        }
        do {
            let draft = try replacement()
            let calls = Monitor(0)
            draft.files.calls.whenRenaming { _, _ in
                calls.withLock { $0 += 1 }
                // As if it had died after the first one.
                return calls.withLock { $0 } == 1 ? nil : Errno(EIO)
            }
            #expect(throws: CopyError.self) { try draft.commit(old.manifest) }
            #expect(try Files().names(in: parent.path, "").contains(".copy.replaced"))
        }
        #expect(throws: CopyError.self) { try CopyDraft(destination: old.directory, force: false) }
        #expect(try PhysicalCopy(old.directory).verify(SampleCopy.open).isClean)
        // A failure in between is rolled back at once.
        do {
            let draft = try replacement()
            draft.files.calls.whenRenaming { [directory = draft.directory] from, _ in
                from == directory ? Errno(EIO) : nil
            }
            #expect(throws: CopyError.self) { try draft.commit(old.manifest) }
            #expect(try PhysicalCopy(old.directory).manifest.uuid == old.manifest.uuid)
        }
        var manifest = old.manifest
        manifest.uuid = "the new one"
        try replacement().commit(manifest)
        #expect(try PhysicalCopy(old.directory).manifest.uuid == "the new one")
        #expect(try Files().names(in: parent.path, "") == ["copy"])
    }

    @Test func aRestoresTemporaryFileIsNoLeftover() throws {
        let parent = TemporaryDirectory()
        try Data([1]).write(to: URL(fileURLWithPath: parent.path + "/.copy.partial-1"))
        _ = try CopyDraft(destination: parent.path + "/copy", force: false)
        #expect(try Files().names(in: parent.path, "") == [".copy.partial-1"])
    }

    @Test("A group is complete or not at all", arguments: [true, false])
    func aGroupIsAllOrNothing(canExchange: Bool) throws {
        let parents = [TemporaryDirectory(), TemporaryDirectory(), TemporaryDirectory()]
        let old = try SampleCopy(in: parents[0].path, seed: 16)
        var group: [(draft: CopyDraft, manifest: Manifest)] = []
        for parent in parents {
            let draft = try CopyDraft(destination: parent.path + "/copy", force: true)
            try old.copyMembers(to: draft)
            var manifest = old.manifest
            manifest.uuid = "the new one"
            if !canExchange { draft.files.calls.lackFlags() }
            group.append((draft, manifest))
        }
        let last = group[2].draft
        let calls = last.files.calls
        last.files.calls.renameat = { _, _, _, flags in
            .failure(Errno(flags != 0 && !canExchange ? EINVAL : EIO))
        }
        #expect(throws: CopyError.self) { try CopyDraft.commit(group) }
        #expect(try PhysicalCopy(old.directory).manifest.uuid == old.manifest.uuid)
        for parent in parents[1...] {
            #expect(!FileManager.default.fileExists(atPath: parent.path + "/copy"))
        }
        last.files.calls = calls
        try CopyDraft.commit(group)
        for parent in parents {
            #expect(try PhysicalCopy(parent.path + "/copy").manifest.uuid == "the new one")
            #expect(try Files().names(in: parent.path, "") == ["copy"])
        }
    }
}
