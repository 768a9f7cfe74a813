import TestSupport

/// Certificates for the host on TCP.
enum TestCertificates {
    /// Two authorities; of the first a server and a client, of the second a client: directories as libnbd looks for.
    static func make(in scratch: ScratchDirectory) throws {
        let script = """
            set -e
            cd '\(scratch.path)'
            authority() {
                mkdir $1
                openssl req -x509 -newkey rsa:2048 -nodes -keyout $1/ca-key.pem -out $1/ca-cert.pem -days 2 \
                    -subj "/CN=Outboard test authority $1" -addext basicConstraints=critical,CA:TRUE \
                    -addext keyUsage=critical,keyCertSign
            }
            sign() {
                openssl req -newkey rsa:2048 -nodes -keyout $1/$2-key.pem -out $1/$2.csr -subj "/CN=$3"
                printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nkeyUsage=digitalSignature,keyEncipherment\\nextendedKeyUsage=%s\\n' $4 > $1/$2.ext
                openssl x509 -req -in $1/$2.csr -CA $1/ca-cert.pem -CAkey $1/ca-key.pem -CAcreateserial -days 2 \
                    -extfile $1/$2.ext -out $1/$2-cert.pem
            }
            authority ours
            sign ours server localhost serverAuth
            sign ours client tester clientAuth
            authority theirs
            sign theirs client stranger clientAuth
            # A stranger who trusts the server, and one without any certificate.
            cp ours/ca-cert.pem theirs/ca-cert.pem
            mkdir nobody
            cp ours/ca-cert.pem nobody/
            """
        let result = try runProgram("sh", ["-c", script])
        guard result.isSuccess else { throw TestFailure("\(result)") }
    }

    /// The host's options that serve on a free port for the first authority's clients.
    static func hostOptions(in scratch: ScratchDirectory) -> [String] {
        [
            "--listen", "127.0.0.1:0", "--tls-certificate", scratch("ours/server-cert.pem"), "--tls-key",
            scratch("ours/server-key.pem"), "--tls-ca", scratch("ours/ca-cert.pem"),
        ]
    }
}
