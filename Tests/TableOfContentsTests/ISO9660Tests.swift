import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// ISO 9660 images by xorriso, held against the tree they were made of.
struct ISO9660Tests {
    @Test func rockRidgeIsReadAsXorrisoWroteIt() throws {
        let scratch = try ScratchDirectory()
        let tree = scratch("tree")
        try makeTree(tree)
        let target = String(repeating: "component/", count: 60) + "../end"
        try run(
            "bash",
            [
                "-ec",
                """
                cd "$1"; ln -s small.txt link; ln -s "$2" longlink; ln -s /absolute/../path absolute
                mkdir -p 1/2/3/4/5/6/7/8/9/10; echo deep > 1/2/3/4/5/6/7/8/9/10/file
                touch -d '2030-02-03 04:05:06 UTC' empty; chmod 4751 empty
                """, "-", tree, target,
            ])
        for deep in ["on", "off"] {
            let path = scratch("ridge-\(deep).iso")
            try run(
                "xorriso",
                [
                    "-outdev", path, "-volid", "LABEL", "-joliet", "on", "-compliance", "deep_paths_\(deep)",
                    "-map", tree, "/",
                ])
            let listed = try ListedVolume.read(try open(path))
            #expect(listed.description?.kind == .iso9660)
            #expect(listed.description?.label == "LABEL")
            #expect(listed.description?.knowsUse == false)
            #expect(listed.problems.isEmpty, "\(listed.problems)")
            try listed.expectEqual(to: tree, leavingOut: ["/rr_moved"])
            #expect(listed.node("/longlink")?.target == Array(target.utf8))
            #expect(listed.node("/absolute")?.target == Array("/absolute/../path".utf8))
            #expect(listed.node("/empty")?.permissions == 0o4751)
            #expect(listed.node("/empty")?.modified == FileTime(seconds: 1_896_321_906))
        }
    }

    @Test func jolietIsReadWhereThereIsNoRockRidge() throws {
        let scratch = try ScratchDirectory()
        try makeTree(scratch("tree"))
        try FileManager.default.removeItem(atPath: scratch("tree/a/b"))
        try FileManager.default.createDirectory(
            atPath: scratch("tree/a/日本語"), withIntermediateDirectories: true)
        let path = scratch("joliet.iso")
        try run(
            "xorriso",
            [
                "-as", "mkisofs", "-input-charset", "UTF-8", "--norock", "-J", "-V", "Joliet", "-o", path,
                scratch("tree"),
            ])
        let listed = try ListedVolume.read(try open(path))
        #expect(listed.problems.isEmpty, "\(listed.problems)")
        #expect(listed.description?.label == "Joliet")
        try listed.expectEqual(to: scratch("tree"))
    }

    @Test func everyDamagedImageEnds() throws {
        let scratch = try ScratchDirectory()
        try makeTree(scratch("tree"))
        let path = scratch("iso")
        try run(
            "xorriso", ["-as", "mkisofs", "-input-charset", "UTF-8", "-R", "-J", "-o", path, scratch("tree")])
        let sound = try [UInt8](Data(contentsOf: URL(fileURLWithPath: path)))
        for seed in 0..<50 as Range<UInt64> {
            var generator = SeededGenerator(seed: seed)
            var bytes = sound
            // Descriptors, path tables and directories lie at the start.
            for _ in 0..<50 {
                bytes[Int.random(in: 32768..<200_000, using: &generator)] = UInt8.random(
                    in: 0...255, using: &generator)
            }
            let store = MemoryStore(bytes)
            for place in try VolumeReader.places(store) {
                try VolumeReader.read(store, place.range, [.files, .use], into: ListedVolume(store))
            }
        }
    }
}
