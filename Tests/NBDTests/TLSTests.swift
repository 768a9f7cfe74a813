import Blocks
import Foundation
import Logging
import NBD
import TestSupport
import Testing

/// TLS on TCP, with certificates made by openssl and clients that others wrote.
@Suite(.serialized) struct TLSTests {
    private let size = 4 << 20

    /// An authority, a server and a client, in the files that libnbd and qemu look for.
    private func makeCertificates(in directory: String) async throws {
        let script = """
            set -e
            cd '\(directory)'
            openssl req -x509 -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca-cert.pem -days 2 \
                -subj '/CN=Outboard test authority' -addext basicConstraints=critical,CA:TRUE \
                -addext keyUsage=critical,keyCertSign
            make() {
                openssl req -newkey rsa:2048 -nodes -keyout $1-key.pem -out $1.csr -subj "/CN=$2"
                printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nkeyUsage=digitalSignature,keyEncipherment\\nextendedKeyUsage=%s\\n' $3 > $1.ext
                openssl x509 -req -in $1.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 \
                    -extfile $1.ext -out $1-cert.pem
            }
            make server localhost serverAuth
            make client tester clientAuth
            mkdir anonymous
            cp ca-cert.pem anonymous/
            """
        let result = try await runAlongside("sh", ["-c", script])
        try #require(result.status == 0, "\(result.errors)")
    }

    private func withTLSServer(
        authority: Bool,
        _ body: (_ port: Int, _ socket: String, _ certificates: String, MemoryStore) async throws -> Void
    ) async throws {
        try await withTemporaryDirectory { directory in
            try await makeCertificates(in: directory)
            let tls = NBDTLSConfiguration(
                certificateFile: directory + "/server-cert.pem", keyFile: directory + "/server-key.pem",
                authorityFile: authority ? directory + "/ca-cert.pem" : nil)
            let store = MemoryStore(pattern(size, seed: 11))
            try await withServer(TestProvider(store), tcp: true, tls: tls) { server, socket in
                let port = try #require(server.tcpPort)
                try await body(port, socket, directory, store)
            }
        }
    }

    @Test func clientsReadAndWriteThroughTLS() async throws {
        try await withTLSServer(authority: true) { port, socket, certificates, store in
            let uri = "nbds://localhost:\(port)/?tls-certificates=\(certificates)"
            let info = try await runAlongside("nbdinfo", [uri])
            #expect(info.status == 0, "\(info.errors)")
            #expect(info.output.contains("newstyle-fixed with TLS, using structured packets"))

            let file = certificates + "/data"
            let copy = try await runAlongside("nbdcopy", [uri, file])
            #expect(copy.status == 0, "\(copy.errors)")
            let copied = [UInt8](try Data(contentsOf: URL(fileURLWithPath: file)))
            let stored = try store.bytes(at: 0, count: size)
            #expect(copied == stored)

            let fresh = pattern(size, seed: 12)
            try Data(fresh).write(to: URL(fileURLWithPath: file))
            let back = try await runAlongside("nbdcopy", [file, uri])
            #expect(back.status == 0, "\(back.errors)")
            let written = try store.bytes(at: 0, count: size)
            #expect(written == fresh)

            let image = [
                "driver=nbd,server.type=inet,server.host=localhost,server.port=\(port)", "tls-creds=tls0",
            ].joined(separator: ",")
            let qemu = try await runAlongside(
                "qemu-img",
                [
                    "info", "--object", "tls-creds-x509,id=tls0,endpoint=client,dir=\(certificates)",
                    "--image-opts", image,
                ])
            #expect(qemu.status == 0 && qemu.output.contains("\(size) bytes"), "\(qemu.output)\(qemu.errors)")

            // On the unix socket TLS is there for those who want it.
            let offered = try await runAlongside(
                "nbdinfo", ["nbds+unix://localhost/?socket=\(socket)&tls-certificates=\(certificates)"])
            #expect(offered.status == 0, "\(offered.errors)")
            #expect(try await runAlongside("nbdinfo", ["nbd+unix:///?socket=\(socket)"]).status == 0)
        }
    }

    @Test func clientsWithoutTLSOrCertificateAreRefused() async throws {
        try await withTLSServer(authority: true) { port, _, certificates, _ in
            let plain = try await runAlongside("nbdinfo", ["nbd://localhost:\(port)"])
            #expect(plain.status != 0, "\(plain.output)")
            let anonymous = try await runAlongside(
                "nbdinfo", ["nbds://localhost:\(port)/?tls-certificates=\(certificates)/anonymous"])
            #expect(anonymous.status != 0, "\(anonymous.output)")
        }
        try await withTLSServer(authority: false) { port, _, certificates, _ in
            let anonymous = try await runAlongside(
                "nbdinfo", ["nbds://localhost:\(port)/?tls-certificates=\(certificates)/anonymous"])
            #expect(anonymous.status == 0, "\(anonymous.errors)")
        }
    }

    @Test func badCertificatesAreNamed() async throws {
        let tls = NBDTLSConfiguration(
            certificateFile: "/absent.pem", keyFile: "/absent.key", authorityFile: nil)
        let error = await #expect(throws: NBDServerError.self) {
            try await withServer(TestProvider(MemoryStore(size: 1)), tcp: true, tls: tls) { _, _ in }
        }
        #expect(error?.description.contains("/absent.pem") == true)
    }
}
