import Foundation
import TestSupport
import Testing

/// The host on TCP, from the command line: TLS, for those alone whom the authority has signed.
@Suite(.serialized) struct HostTLSTests {
    @Test func clientsOfTheAuthorityAloneAreServed() throws {
        let scratch = try ScratchDirectory()
        try TestCertificates.make(in: scratch)
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch, options: TestCertificates.hostOptions(in: scratch))
        let base = try #require(host.status().uris.first { $0.hasPrefix("nbds://127.0.0.1:") })
        func uri(_ certificates: String) -> String {
            base.replacing("127.0.0.1", with: "localhost") + "/?tls-certificates=" + scratch(certificates)
        }
        let info = try runProgram("nbdinfo", [uri("ours")])
        #expect(info.isSuccess && info.output.contains("with TLS"), "\(info)")
        let copy = try runProgram("nbdcopy", [uri("ours"), scratch("read")])
        #expect(copy.isSuccess, "\(copy)")
        #expect(try haveSameContents(scratch("read"), host.source))
        for refused in [uri("theirs"), uri("nobody"), base.replacing("nbds:", with: "nbd:")] {
            let result = try runProgram("nbdinfo", [refused])
            #expect(!result.isSuccess && !result.output.contains("live volume"), "\(refused): \(result)")
        }
        // Whoever was turned away has harmed nobody.
        #expect(try runProgram("nbdinfo", [uri("ours")]).isSuccess)
        #expect(try runProgram("nbdinfo", [host.uri]).isSuccess)
        #expect(host.stop() == .exit(0), "\(host.process.errors)")
    }

    @Test func aFileThatIsOfNoUseIsNamed() throws {
        let scratch = try ScratchDirectory()
        try TestCertificates.make(in: scratch)
        try makePatternFile(scratch("volume.img"), count: 1 << 20)
        try Data("no PEM\n".utf8).write(to: URL(fileURLWithPath: scratch("text")))
        // Else it is refused as a key, before anybody looks into it.
        chmod(scratch("text"), 0o600)
        let good = ["ours/server-cert.pem", "ours/server-key.pem", "ours/ca-cert.pem"].map { scratch($0) }
        for (place, bad, text) in [
            (0, "none", "none: No such file"), (1, "none", "none: No such file"),
            (2, "none", "none: No such file"),
            (0, "text", "text holds no certificate"), (1, "text", "text holds no private key"),
            (2, "text", "text holds no certificate"), (1, "ours/client-key.pem", "do not go together"),
        ] {
            var files = good
            files[place] = scratch(bad)
            let result = try Outboard.run([
                "host", "--source", scratch("volume.img"), "--cache", scratch("c"), "--socket", scratch("s"),
                "--control", scratch("k"), "--listen", "127.0.0.1:0", "--tls-certificate", files[0],
                "--tls-key", files[1], "--tls-ca", files[2],
            ])
            #expect(result.status == 66 && result.errors.contains(text), "\(place) \(bad): \(result)")
        }
    }

    @Test func tcpIsNotServedWithoutAnAuthority() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 1 << 20)
        let host = [
            "host", "--source", scratch("volume.img"), "--cache", scratch("c"), "--socket", scratch("s"),
            "--control", scratch("k"),
        ]
        let tls = ["--tls-certificate", "cert.pem", "--tls-key", "key.pem"]
        for options in [
            ["--listen", "127.0.0.1:0"] + tls, ["--listen", "127.0.0.1:0"], tls, ["--tls-ca", "x"],
        ] {
            let result = try Outboard.run(host + options)
            #expect(result.status == 64 && result.errors.contains("--tls-ca"), "\(options): \(result)")
        }
        #expect(!FileManager.default.fileExists(atPath: scratch("c")))
    }
}
