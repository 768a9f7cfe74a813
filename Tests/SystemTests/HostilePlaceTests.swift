import Foundation
import TestSupport
import Testing

/// Links, pipes and wrong owners where a host keeps its files and sockets.
@Suite(.serialized) struct HostileHostPlaceTests {
    let scratch: ScratchDirectory

    init() throws {
        scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
    }

    private func start(
        source: String? = nil, cache: String? = nil, socket: String? = nil, control: String? = nil
    ) throws -> ProgramResult {
        try Outboard.run(
            [
                "host", "--source", source ?? scratch("volume.img"), "--cache", cache ?? scratch("c"),
                "--socket",
                socket ?? scratch("s"), "--control", control ?? scratch("t"),
            ], seconds: 30)
    }

    private func expectRefusal(
        _ result: ProgramResult, status: Int32 = 77, _ text: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        #expect(result.status == status, "\(result)", sourceLocation: sourceLocation)
        #expect(result.errors.contains(text), "\(result)", sourceLocation: sourceLocation)
        for socket in ["s", "t"] { #expect(fileKind(scratch(socket)) == nil, sourceLocation: sourceLocation) }
    }

    /// A log written over what a link leads to would destroy it.
    @Test func aCacheIsNoLink() throws {
        let precious = try scratch.precious()
        #expect(symlink(precious.path, scratch("link")) == 0)
        expectRefusal(try start(cache: scratch("link")), "it is a symbolic link")
        #expect(precious.isUntouched)
        try makeSparseFile(scratch("blank"), size: 16 << 20)
        #expect(symlink("blank", scratch("blank-link")) == 0)
        expectRefusal(try start(cache: scratch("blank-link")), "it is a symbolic link")
        #expect(try contents(scratch("blank")).allSatisfy { $0 == 0 })
        // Nothing is made through one that leads nowhere.
        #expect(symlink(scratch("nowhere"), scratch("dangling")) == 0)
        expectRefusal(try start(cache: scratch("dangling")), status: 73, "cannot create")
        #expect(fileKind(scratch("nowhere")) == nil && fileKind(scratch("dangling")) == S_IFLNK)
        #expect(mkfifo(scratch("pipe"), 0o600) == 0)
        expectRefusal(try start(cache: scratch("pipe")), status: 66, "it is a FIFO")
        expectRefusal(try start(source: scratch("pipe")), status: 66, "it is a FIFO")
    }

    /// It holds what was on the volume, and decides what copies will hold.
    @Test func aCacheIsForItsOwner() throws {
        try makeSparseFile(scratch("c"), size: 16 << 20)
        for mode in [mode_t(0o602), 0o620, 0o666] {
            chmod(scratch("c"), mode)
            expectRefusal(try start(), "others than its owner may write it; chmod 600")
        }
        chmod(scratch("c"), 0o644)
        let host = try HostProcess(scratch, cache: scratch("c"))
        #expect(host.process.errors.contains("others than its owner may read the cache"))
        host.stop()
        #expect(permissions(scratch("c")) == 0o644, "it is the administrator's to change")
        // A host's own is nobody else's from the start, whatever the umask is.
        let made = try runProgram(
            "sh",
            [
                "-c", "umask 0; exec \"$0\" \"$@\"", Outboard.binary, "host", "--source",
                scratch("volume.img"),
                "--cache", scratch("new"), "--socket", scratch("s"), "--control", scratch("open/t"),
            ])
        #expect(made.status != 0)
        let second = try HostProcess(scratch, cache: scratch("made"))
        for path in [second.cache, second.socket, second.control] { #expect(permissions(path) == 0o600) }
    }

    /// Whoever may change names in a directory may put another file in a name's place at any time.
    @Test func directoriesThatOthersMayChangeAreRefused() throws {
        let places =
            [try scratch.open("everybodys")]
            + (Machine.isRoot ? [try scratch.open("theirs", ownedBySomebody: true)] : [])
        for place in places {
            try makePatternFile(place + "/volume.img", count: 1 << 20)
            for result in [
                try start(source: place + "/volume.img"), try start(cache: place + "/c"),
                try start(socket: place + "/s"),
                try start(control: place + "/t"),
            ] { expectRefusal(result, "who could put something else there") }
            #expect(try FileManager.default.contentsOfDirectory(atPath: place) == ["volume.img"])
        }
        #expect(fileKind(scratch("c")) == nil)
        // As in /tmp: what is there is safe by the sticky bit.
        chmod(places[0], 0o1777)
        let host = try HostProcess(
            scratch, source: places[0] + "/volume.img", cache: places[0] + "/c", control: places[0] + "/t")
        #expect(host.stop() == .exit(0))
    }

    @Test(.enabled(if: Machine.isRoot, "LEFT OUT: giving files to another user needs root"))
    func whatBelongsToSomebodyElseIsRefused() throws {
        try makeSparseFile(scratch("c"), size: 16 << 20)
        chmod(scratch("c"), 0o600)
        chown(scratch("c"), ScratchDirectory.somebody, gid_t.max)
        expectRefusal(try start(), "it belongs to user 65534")
        // A source may be anybody's: it is his volume.
        chown(scratch("volume.img"), ScratchDirectory.somebody, gid_t.max)
        let host = try HostProcess(scratch, cache: scratch("own"))
        #expect(host.stop() == .exit(0))
    }

    /// What is in a socket's place and is no dead socket stays.
    @Test func plantedSocketsAreLeftAlone() throws {
        let precious = try scratch.precious()
        #expect(symlink(precious.path, scratch("link")) == 0)
        #expect(symlink(scratch("nowhere"), scratch("dangling")) == 0)
        #expect(mkfifo(scratch("pipe"), 0o600) == 0)
        for name in ["link", "dangling", "pipe", "precious"] {
            let kind = fileKind(scratch(name))
            expectRefusal(try start(socket: scratch(name)), status: 73, "no socket")
            expectRefusal(try start(control: scratch(name)), status: 73, "not a socket")
            #expect(fileKind(scratch(name)) == kind)
        }
        #expect(precious.isUntouched && fileKind(scratch("nowhere")) == nil)
    }

    /// Devices are named by links that last: those are followed.
    @Test func aSourceMayBeNamedByALink() throws {
        #expect(symlink("volume.img", scratch("by-name")) == 0)
        let host = try HostProcess(scratch, source: scratch("by-name"))
        #expect(try host.status().source == scratch("volume.img"))
        #expect(host.stop() == .exit(0))
    }

    /// Secrets of others, keys that others can read.
    @Test func keysAreForTheirOwners() throws {
        let tls = [
            "--listen", "127.0.0.1:0", "--tls-certificate", scratch("key"), "--tls-key", scratch("key"),
            "--tls-ca", scratch("ca"),
        ]
        try Data("a key".utf8).write(to: URL(fileURLWithPath: scratch("key")))
        try Data("a certificate".utf8).write(to: URL(fileURLWithPath: scratch("ca")))
        func run() throws -> ProgramResult {
            try Outboard.run(
                [
                    "host", "--source", scratch("volume.img"), "--cache", scratch("c"), "--socket",
                    scratch("s"),
                    "--control", scratch("t"),
                ] + tls, seconds: 30)
        }
        for mode in [mode_t(0o644), 0o660] {
            chmod(scratch("key"), mode)
            expectRefusal(try run(), "chmod 640")
        }
        chmod(scratch("key"), 0o640)
        chmod(scratch("ca"), 0o666)
        expectRefusal(try run(), "others than its owner may write it")
        chmod(scratch("ca"), 0o644)
        expectRefusal(try run(), status: 66, "holds no certificate")
        guard Machine.isRoot else { return }
        chown(scratch("key"), ScratchDirectory.somebody, gid_t.max)
        expectRefusal(try run(), "it belongs to user 65534")
    }

    /// A unit of a standing bridge is whatever its name leads to at the start.
    @Test func unitsAndSecretsOfABridgeAreOurs() throws {
        let place = try scratch.open("everybodys")
        try makePatternFile(place + "/unit", count: 1 << 20)
        for options in [
            ["--unit", "0=\(place)/unit"], ["--unit", "0=\(scratch("volume.img"))", "--state", place],
            ["--unit", "0=\(scratch("volume.img"))", "--chap-file", place + "/chap"],
            ["--config", place + "/bridge.yaml"],
        ] {
            for file in ["/chap", "/bridge.yaml"] {
                try Data("somebody twelve-bytes-and-more\n".utf8).write(
                    to: URL(fileURLWithPath: place + file))
                chmod(place + file, 0o600)
            }
            let result = try Outboard.run(["bridge", "--portal", "127.0.0.1:0"] + options, seconds: 30)
            #expect(result.status == 77, "\(result)")
            #expect(result.errors.contains("who could put something else there"), "\(result)")
        }
    }
}
