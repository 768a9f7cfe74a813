import Foundation
import TestSupport
import Testing

/// Real processes of another user, wherever he can reach what is ours.
@Suite(.serialized, .enabled(if: Machine.isRoot, "LEFT OUT: acting as another user needs root"))
struct SecondUserTests {
    let scratch: ScratchDirectory
    /// What he may neither change nor read.
    let precious: PreciousFile

    init() throws {
        scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 2 << 20)
        precious = try scratch.precious()
        guard chmod(precious.path, 0o600) == 0, chmod(scratch.path, 0o755) == 0 else {
            throw TestFailure("chmod")
        }
    }

    /// Runs a shell script as somebody who is neither root nor us, without groups or capabilities.
    private func asSomebody(_ script: String, _ arguments: String...) throws -> ProgramResult {
        let user = "\(ScratchDirectory.somebody)"
        return try runProgram(
            "setpriv",
            ["--reuid", user, "--regid", user, "--clear-groups", "--inh-caps=-all", "--no-new-privs"]
                + ["sh", "-c", script, "sh"] + arguments)
    }

    /// Where everybody may write, and everybody's names are his own: as /tmp is.
    private func sticky() throws -> String {
        let place = scratch("sticky")
        guard mkdir(place, 0o700) == 0, chmod(place, 0o1777) == 0 else { throw TestFailure("no \(place)") }
        return place
    }

    // MARK: Sockets

    @Test func theSocketsOfAHostAreForItsUser() throws {
        let host = try HostProcess(scratch)
        for path in [host.control, host.socket] {
            let result = try asSomebody(#"exec socat -u OPEN:/dev/null "UNIX-CONNECT:$1""#, path)
            #expect(!result.isSuccess && result.errors.contains("Permission denied"), "\(result)")
        }
        // A mode that lets everybody in does not: the kernel says who he is.
        #expect(chmod(host.control, 0o666) == 0)
        let told = try asSomebody(#"exec socat -u "UNIX-CONNECT:$1" -"#, host.control)
        #expect(told.output.contains("for the host's user and root"), "\(told)")
        for (method, parameters) in [
            ("volume.status", "{}"), ("volume.freeze", #"{"timeout":300}"#),
            ("snapshot.begin", #"{"durability":"process"}"#), ("host.shutdown", "{}"),
        ] {
            let line = #"{"jsonrpc":"2.0","id":1,"method":"\#(method)","params":\#(parameters)}"#
            // Turned away at once, he may find nobody any more to send the line to.
            let result = try asSomebody(#"echo "$1" | socat -t 60 - "UNIX-CONNECT:$2""#, line, host.control)
            #expect(!result.output.contains(#""result""#), "\(result)")
        }
        try waitUntil("the host tells of it") {
            host.process.errors.contains("a process of another user was turned away")
        }
        // Neither frozen nor stopped, and nothing was begun.
        #expect(try host.status().epoch == nil)
        let written = try runProgram(
            "qemu-io", ["-f", "raw", "-c", "write -P 7 0 64k", "-c", "flush", host.uri])
        #expect(written.isSuccess, "\(written)")
        #expect(host.stop() == .exit(0))
    }

    // MARK: Names

    /// Links, files and a socket that serves, in the places that a host is told to use.
    @Test func aHostUsesNothingThatHePlanted() throws {
        let place = try sticky()
        let plants = try asSomebody(
            """
            set -e; cd "$1"
            ln -s "$2" link; ln -s "$1/nowhere" dangling; mkfifo pipe; mkdir directory; head -c 16M /dev/zero >file
            socat UNIX-LISTEN:dead /dev/null & dead=$!
            while [ ! -S dead ]; do sleep 0.05; done; kill -9 $dead
            """, place, precious.path)
        try #require(plants.isSuccess, "\(plants)")
        let names = ["link", "dangling", "pipe", "directory", "file", "dead"]
        for name in names {
            let planted = place + "/" + name
            let kind = fileKind(planted)
            for option in ["--cache", "--socket", "--control", "--source"] {
                var places = [
                    "--source": scratch("volume.img"), "--cache": scratch("c"), "--socket": scratch("s"),
                    "--control": scratch("t"),
                ]
                places[option] = planted
                let result = try Outboard.run(["host"] + places.flatMap { [$0.key, $0.value] }, seconds: 30)
                #expect(result.status == 77, "\(option) \(name): \(result)")
                #expect(result.errors.contains("belongs to user 65534"), "\(option) \(name): \(result)")
            }
            #expect(fileKind(planted) == kind)
        }
        #expect(precious.isUntouched && fileKind(place + "/nowhere") == nil)
        #expect(Set(try FileManager.default.contentsOfDirectory(atPath: place)) == Set(names))
        #expect(fileKind(scratch("c")) == nil && fileKind(scratch("s")) == nil)
    }

    /// The same where copies, backups and restored volumes shall be made: with --force, too.
    @Test func nothingIsMadeOverWhatHePlanted() throws {
        let host = try HostProcess(scratch)
        let copy = scratch("copy")
        let first = try Outboard.run(["copy", "--host", host.control, "--to", copy, "--no-toc"])
        try #require(first.isSuccess, "\(first)")
        let place = try sticky()
        let plants = try asSomebody(
            """
            set -e; cd "$1"
            ln -s "$2" link; ln -s "$1/nowhere" dangling; mkdir directory; : >file; chmod 666 file
            # He reads what is written to it.
            mkfifo -m 666 pipe
            """, place, precious.path)
        try #require(plants.isSuccess, "\(plants)")
        let names = ["link", "dangling", "directory", "file", "pipe"]
        for name in names {
            let planted = place + "/" + name
            let kind = fileKind(planted)
            for command in [
                ["copy", "--host", host.control, "--no-toc", "--to", planted],
                ["restore", "volume", copy, "--to", planted],
                ["restore", "extents", copy, "--range", "0+4KiB", "--to", planted],
                ["backup", copy, "--to", planted],
            ] {
                for force in [[], ["--force"]] where command[1] != "extents" || force.isEmpty {
                    let result = try Outboard.run(command + force, seconds: 30)
                    #expect(result.status == 77, "\(name): \(result)")
                    #expect(result.errors.contains("belongs to user 65534"), "\(name): \(result)")
                }
            }
            #expect(fileKind(planted) == kind)
        }
        #expect(precious.isUntouched && fileKind(place + "/nowhere") == nil)
        #expect(try contents(place + "/file").isEmpty)
        #expect(Set(try FileManager.default.contentsOfDirectory(atPath: place)) == Set(names))
        #expect(try host.isIdle())
    }

    // MARK: Copies

    /// A copy whose directory he may write, in which he puts links to what only root may read or change.
    @Test func aCopyThatHeMayWriteIsNoWayToAnythingElse() throws {
        let host = try HostProcess(scratch)
        let copy = scratch("copy")
        let overwrite = "qemu-io -f raw -c 'write -P 7 0 128k' '\(host.uri)'"
        let made = try Outboard.run([
            "copy", "--host", host.control, "--to", copy, "--no-toc", "--mode", "append", "--post-thaw",
            overwrite,
        ])
        try #require(made.isSuccess, "\(made)")
        #expect(chmod(copy, 0o777) == 0)
        // The data, then the manifest, then what integrate writes beside it: the copy itself is whole then.
        for (plant, isReadable) in [
            (#"mv data.img kept.img; ln -s "$2" data.img"#, false),
            (#"mv -f kept.img data.img; mv manifest.json kept.json; ln -s "$2" manifest.json"#, false),
            (#"mv -f kept.json manifest.json; ln -s "$2" .manifest.json.new"#, true),
        ] {
            let planted = try asSomebody(#"set -e; cd "$1"; \#(plant)"#, copy, precious.path)
            try #require(planted.isSuccess, "\(planted)")
            for command in [
                ["integrate", copy], ["toc", copy], ["verify", copy],
                ["restore", "volume", copy, "--to", scratch("restored")],
                ["backup", copy, "--to", scratch("backup")],
            ] {
                let result = try Outboard.run(command, seconds: 60)
                let isChange = ["integrate", "toc"].contains(command[0])
                let statuses: [Int32] = isReadable ? [isChange ? 77 : 0] : [65, 66, 77]
                #expect(statuses.contains(result.status), "\(plant): \(result)")
            }
            for output in [scratch("restored"), scratch("backup")] {
                #expect((fileKind(output) != nil) == isReadable)
            }
            #expect(precious.isUntouched)
        }
    }
}
