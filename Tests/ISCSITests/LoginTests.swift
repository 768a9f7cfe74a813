import Testing

@testable import ISCSI

@Suite struct LoginTests {
    static let securityToOperational: UInt8 = 0x81
    static let security: UInt8 = 0x00

    static func keys(_ pdu: PDU) throws -> [String: String] {
        Dictionary(try TextKeys.parse(pdu.data).map { ($0.key, $0.value) }, uniquingKeysWith: { a, _ in a })
    }

    static func status(_ pdu: PDU?) -> UInt16? { pdu.map { $0[half: 36] } }

    @Test func everyOperationalKeyIsAnswered() throws {
        var peer = Peer()
        peer.logIn([
            TextKey("HeaderDigest", "CRC32C,None"), TextKey("DataDigest", "None"),
            TextKey("MaxConnections", "8"), TextKey("InitialR2T", "No"), TextKey("ImmediateData", "Yes"),
            TextKey("MaxRecvDataSegmentLength", "1024"), TextKey("MaxBurstLength", "16776192"),
            TextKey("FirstBurstLength", "0x40000"), TextKey("DefaultTime2Wait", "2"),
            TextKey("DefaultTime2Retain", "20"), TextKey("MaxOutstandingR2T", "4"),
            TextKey("DataPDUInOrder", "No"), TextKey("DataSequenceInOrder", "No"),
            TextKey("ErrorRecoveryLevel", "2"), TextKey("IFMarker", "Yes"), TextKey("OFMarker", "No"),
            TextKey("iSCSIProtocolLevel", "2"), TextKey("X-com.example", "1"), TextKey("Unheard", "1"),
            TextKey("InitiatorAlias", "me"),
        ])
        let response = try #require(peer.take().first)
        #expect(response.opcode == Opcode.loginResponse && response.flags == 0x87)
        #expect(response[half: 14] == 7 && Self.status(response) == 0)
        #expect(
            try Self.keys(response) == [
                "TargetPortalGroupTag": "1", "MaxRecvDataSegmentLength": "262144", "HeaderDigest": "CRC32C",
                "DataDigest": "None", "MaxConnections": "1", "InitialR2T": "No", "ImmediateData": "Yes",
                "MaxBurstLength": "1048576", "FirstBurstLength": "65536", "DefaultTime2Wait": "2",
                "DefaultTime2Retain": "0", "MaxOutstandingR2T": "1", "DataPDUInOrder": "Yes",
                "DataSequenceInOrder": "Yes", "ErrorRecoveryLevel": "0", "IFMarker": "No", "OFMarker": "No",
                "iSCSIProtocolLevel": "1", "X-com.example": "NotUnderstood", "Unheard": "NotUnderstood",
            ])
        #expect(peer.connection.parameters.digests == Digests(header: true, data: false))
        #expect(peer.connection.parameters.initiatorReceiveSegment == 1024)
    }

    @Test func valuesOutOfRangeAreRejectedAndTheDefaultsHold() throws {
        var peer = Peer()
        peer.logIn([
            TextKey("MaxBurstLength", "511"), TextKey("FirstBurstLength", "16777216"),
            TextKey("ImmediateData", "yes"), TextKey("HeaderDigest", "MD5"),
            TextKey("ErrorRecoveryLevel", "3"),
        ])
        let answers = try Self.keys(try #require(peer.take().first))
        for key in [
            "MaxBurstLength", "FirstBurstLength", "ImmediateData", "HeaderDigest", "ErrorRecoveryLevel",
        ] {
            #expect(answers[key] == "Reject", "\(key)")
        }
        #expect(peer.connection.parameters == NegotiatedParameters())
    }

    @Test func dripFed() {
        let pdu = Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull)
        for step in [1, 5, 48, 49] {
            var peer = Peer()
            peer.send(pdu, step: step)
            #expect(peer.connection.isLoggedIn)
        }
    }

    @Test func textOverSeveralRequests() throws {
        var peer = Peer()
        let text = TextKeys.encode(Peer.keys)
        peer.send(Peer.loginRequest([], flags: 0x44, text: Array(text[..<20])))
        #expect(peer.take().map(\.flags) == [0x04])
        peer.send(Peer.loginRequest([], flags: 0x87, text: Array(text[20...])))
        #expect(peer.connection.isLoggedIn)
        var endless = Peer()
        for _ in 0..<4 where endless.closed == nil {
            endless.send(Peer.loginRequest([], flags: 0x44, text: [UInt8](repeating: 65, count: 8192)))
        }
        #expect(endless.closed != nil && Self.status(endless.received.last) == 0x0200)
    }

    @Test func wrongLoginsAreAnsweredAndClosed() {
        let name = TextKey("InitiatorName", "iqn.2026-01.net.example:peer")
        let short = TextKey("MaxRecvDataSegmentLength", "511")
        let cases: [(String, PDU, UInt16)] = [
            ("no name", Peer.loginRequest([], flags: 0x87), 0x0207),
            ("no target", Peer.loginRequest([name], flags: 0x87), 0x0207),
            ("other target", Peer.loginRequest([name, TextKey("TargetName", "iqn.x")], flags: 0x87), 0x0203),
            ("session type", Peer.loginRequest([name, TextKey("SessionType", "Odd")], flags: 0x87), 0x0209),
            ("T and C", Peer.loginRequest(Peer.keys, flags: 0xC7), 0x020B),
            ("stage 2", Peer.loginRequest(Peer.keys, flags: 0x08), 0x020B),
            ("full to full", Peer.loginRequest(Peer.keys, flags: 0x8F), 0x020B),
            ("backwards", Peer.loginRequest(Peer.keys, flags: 0x84), 0x020B),
            ("same stage", Peer.loginRequest(Peer.keys, flags: 0x85), 0x020B),
            ("a declaration out of range", Peer.loginRequest(Peer.keys + [short], flags: 0x87), 0x0200),
            ("no text", Peer.loginRequest([], flags: 0x87, text: [1, 2, 3]), 0x0200),
            (
                "operational key in security",
                Peer.loginRequest(Peer.keys + [TextKey("MaxBurstLength", "512")], flags: 0x81),
                0x0200
            ),
            (
                "a name that forges a line of the log",
                Peer.loginRequest(
                    [TextKey("InitiatorName", "iqn.x\nuser=root"), TextKey("TargetName", Peer.name)],
                    flags: 0x87
                ),
                0x0200
            ),
            ("not a login", PDU(Opcode.scsiCommand), 0x020B),
        ]
        for (what, pdu, status) in cases {
            var peer = Peer()
            peer.send(pdu)
            #expect(Self.status(peer.received.last) == status, "\(what)")
            #expect(peer.closed != nil && !peer.connection.isLoggedIn, "\(what)")
        }
        var version = Peer.loginRequest(Peer.keys, flags: 0x87)
        version[byte: 3] = 1
        var peer = Peer()
        peer.send(version)
        #expect(Self.status(peer.received.last) == 0x0205 && peer.closed != nil)
    }

    /// Keys nobody knows are answered in every stage; the alias may come in any, and takes no answer.
    @Test func keysOfTheSecurityStage() throws {
        var peer = Peer()
        peer.send(
            Peer.loginRequest(
                Peer.keys + [
                    TextKey("InitiatorAlias", "me"), TextKey("AuthMethod", "CHAP,None"), TextKey("What", "1"),
                    TextKey("X-com.example", "1"),
                ], flags: Self.securityToOperational))
        let first = try #require(peer.take().first)
        #expect(first.flags == 0x81)
        #expect(
            try Self.keys(first) == [
                "TargetPortalGroupTag": "1", "AuthMethod": "None", "What": "NotUnderstood",
                "X-com.example": "NotUnderstood",
            ])
        peer.send(
            Peer.loginRequest([TextKey("InitiatorAlias", "still me")], flags: Peer.operationalToFull))
        #expect(peer.connection.isLoggedIn)
        // Names are told once.
        var twice = Peer()
        twice.send(Peer.loginRequest(Peer.keys, flags: Self.securityToOperational))
        twice.send(Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull))
        #expect(Self.status(twice.received.last) == 0x0200 && twice.closed != nil)
    }

    /// What only a target declares would stand twice in the answer.
    @Test(arguments: ["TargetPortalGroupTag", "TargetAlias", "TargetAddress"])
    func keysOfATargetFromAnInitiator(key: String) {
        var peer = Peer()
        peer.logIn([TextKey(key, "1")])
        #expect(Self.status(peer.received.last) == 0x0200 && peer.closed != nil)
    }

    /// From the security stage straight to full feature phase, and without a security stage.
    @Test func everyWayThroughTheStages() {
        for steps: [UInt8] in [
            [0x87], [0x83], [0x81, 0x87], [0x00, 0x81, 0x87], [0x04, 0x87], [0x00, 0x83],
        ] {
            var peer = Peer()
            for (index, flags) in steps.enumerated() {
                peer.send(Peer.loginRequest(index == 0 ? Peer.keys : [], flags: flags))
                #expect(peer.received.last?.flags == flags && Self.status(peer.received.last) == 0)
            }
            #expect(peer.connection.isLoggedIn, "\(steps)")
            // Each response took a StatSN, from the one that the initiator began with.
            #expect(peer.received.map(\.statSN) == peer.received.indices.map(UInt32.init))
            #expect(peer.received.map { $0[half: 14] } == steps.indices.map { $0 == steps.count - 1 ? 7 : 0 })
        }
    }

    @Test func aLoginThatNeverEndsDoes() {
        var peer = Peer()
        for _ in 0...ISCSILimits.loginRequests where peer.closed == nil {
            peer.send(Peer.loginRequest(peer.received.isEmpty ? Peer.keys : [], flags: 0x04))
        }
        #expect(peer.closed != nil)
    }
}

@Suite struct CHAPTests {
    static let secret = Array("a-secret-of-many-bytes".utf8)
    static let targetSecret = Array("another-secret-here".utf8)

    static func credentials() throws -> CHAPCredentials {
        try CHAPCredentials(name: "op", secret: secret, mutual: (name: "tgt", secret: targetSecret))
    }

    /// Logs in up to the challenge.
    static func challenged(_ credentials: CHAPCredentials) throws -> (
        Peer, identifier: UInt8, challenge: [UInt8]
    ) {
        var peer = Peer(credentials: credentials)
        peer.send(Peer.loginRequest(Peer.keys + [TextKey("AuthMethod", "CHAP,None")], flags: 0x81))
        let first = try #require(peer.take().first)
        // T is not granted before the proof.
        #expect(first.flags == 0x00)
        #expect(try LoginTests.keys(first)["AuthMethod"] == "CHAP")
        peer.send(Peer.loginRequest([TextKey("CHAP_A", "7,5")], flags: 0x00))
        let keys = try LoginTests.keys(try #require(peer.take().first))
        #expect(keys["CHAP_A"] == "5")
        let challenge = try #require(TextKeys.binary(keys["CHAP_C"] ?? "", limit: 1024))
        #expect(challenge.count == ISCSILimits.chapChallenge)
        return (peer, try #require(UInt8(keys["CHAP_I"] ?? "")), challenge)
    }

    static func response(_ id: UInt8, _ challenge: [UInt8], _ secret: [UInt8] = secret) -> TextKey {
        TextKey(
            "CHAP_R",
            TextKeys.hexadecimal(CHAP.response(identifier: id, secret: secret, challenge: challenge)))
    }

    @Test func bothWays() throws {
        var (peer, id, challenge) = try Self.challenged(try Self.credentials())
        let ours = [UInt8](repeating: 3, count: 16)
        peer.send(
            Peer.loginRequest(
                [
                    TextKey("CHAP_N", "op"), Self.response(id, challenge), TextKey("CHAP_I", "9"),
                    TextKey("CHAP_C", TextKeys.hexadecimal(ours)),
                ], flags: 0x83))
        let last = try #require(peer.take().first)
        #expect(last.flags == 0x83)
        let keys = try LoginTests.keys(last)
        #expect(keys["CHAP_N"] == "tgt")
        #expect(keys["CHAP_R"] == Self.response(9, ours, Self.targetSecret).value)
        #expect(peer.connection.isLoggedIn && peer.connection.nexus?.authenticatedName == "op")
    }

    @Test func refusals() throws {
        let (start, id, challenge) = try Self.challenged(try Self.credentials())
        let right = Self.response(id, challenge)
        let name = TextKey("CHAP_N", "op")
        let cases: [([TextKey], UInt16)] = [
            ([name, Self.response(id, challenge, Self.targetSecret)], 0x0201),
            ([name, Self.response(id &+ 1, challenge)], 0x0201),
            ([TextKey("CHAP_N", "po"), right], 0x0201),
            ([name, TextKey("CHAP_R", "0x")], 0x0201),
            ([name, TextKey("CHAP_R", "0x00")], 0x0201),
            ([name], 0x0207),
            ([], 0x0207),
            // Our own challenge sent back.
            (
                [name, right, TextKey("CHAP_I", "1"), TextKey("CHAP_C", TextKeys.hexadecimal(challenge))],
                0x0201
            ),
            ([name, right, TextKey("CHAP_I", "256"), TextKey("CHAP_C", "0x01")], 0x0201),
            ([name, right, TextKey("CHAP_I", "1")], 0x0201),
        ]
        for (keys, status) in cases {
            var peer = start
            peer.send(Peer.loginRequest(keys, flags: 0x83))
            #expect(LoginTests.status(peer.received.last) == status, "\(keys)")
            #expect(peer.closed != nil && !peer.connection.isLoggedIn)
        }
        var wrong = start
        wrong.send(Peer.loginRequest([name, TextKey("CHAP_R", "0x00")], flags: 0x83))
        #expect(wrong.refusals == [["CHAP failed", "iqn.2026-01.net.example:peer"]])
        var control = start
        control.send(Peer.loginRequest([name, right], flags: 0x83))
        #expect(control.connection.isLoggedIn)
    }

    @Test func nobodyGetsAroundIt() throws {
        let credentials = try Self.credentials()
        // Straight to the operational stage; without CHAP offered; without AuthMethod at all.
        let attempts: [PDU] = [
            Peer.loginRequest(Peer.keys, flags: 0x87),
            Peer.loginRequest(Peer.keys + [TextKey("AuthMethod", "None")], flags: 0x83),
            Peer.loginRequest(Peer.keys, flags: 0x83),
            Peer.loginRequest(Peer.keys + [TextKey("AuthMethod", "CHAP")], flags: 0x83),
        ]
        for attempt in attempts {
            var peer = Peer(credentials: credentials)
            peer.send(attempt)
            #expect(!peer.connection.isLoggedIn)
            if peer.closed == nil { peer.send(Peer.loginRequest([], flags: 0x87)) }
            #expect(!peer.connection.isLoggedIn)
        }
    }

    /// Each initiator name has its own credentials: nobody gets in by another's, or by a name that is not listed.
    @Test func eachInitiatorProvesItsOwn() throws {
        let own = try Self.credentials()
        let other = try CHAPCredentials(name: "op", secret: Self.targetSecret)
        let mine = "iqn.2026-01.net.example:peer"
        let open: [String: CHAPCredentials?] = ["iqn.2026-01.net.example:other": other, mine: nil]
        var free = Peer(access: .only(open))
        free.logIn()
        #expect(free.connection.isLoggedIn && free.connection.nexus?.initiatorName == mine)

        var stranger = Peer(access: .only(["iqn.2026-01.net.example:other": other]))
        stranger.logIn()
        #expect(LoginTests.status(stranger.received.last) == 0x0202 && stranger.closed != nil)
        #expect(stranger.refusals.map { $0[1] } == [mine])

        let both = ISCSIAccess.only([mine: own, "iqn.2026-01.net.example:other": other])
        for (name, secret, fits) in [
            ("peer", Self.secret, true), ("PEER", Self.secret, true), ("peer", Self.targetSecret, false),
            ("other", Self.secret, false), ("other", Self.targetSecret, true),
        ] {
            var peer = Peer(access: both)
            let keys = [
                TextKey("InitiatorName", "iqn.2026-01.net.example:" + name), TextKey("TargetName", Peer.name),
                TextKey("AuthMethod", "CHAP"),
            ]
            // Not past the challenge by the operational stage either.
            var straight = peer
            straight.send(Peer.loginRequest(Array(keys.prefix(2)), flags: Peer.operationalToFull))
            #expect(LoginTests.status(straight.received.last) == 0x0201 && !straight.connection.isLoggedIn)
            peer.send(Peer.loginRequest(keys, flags: 0x00))
            peer.send(Peer.loginRequest([TextKey("CHAP_A", "5")], flags: 0x00))
            let asked = try LoginTests.keys(try #require(peer.take().last))
            let id = try #require(UInt8(asked["CHAP_I"] ?? ""))
            let challenge = try #require(TextKeys.binary(asked["CHAP_C"] ?? "", limit: 1024))
            peer.send(
                Peer.loginRequest(
                    [TextKey("CHAP_N", "op"), Self.response(id, challenge, secret)], flags: 0x83))
            #expect(peer.connection.isLoggedIn == fits, "\(name)")
            #expect(LoginTests.status(peer.received.last) == (fits ? 0 : 0x0201), "\(name)")
        }
    }

    @Test func credentialsAreChecked() {
        #expect(throws: CHAPCredentials.Invalid.secretTooShort) {
            try CHAPCredentials(name: "op", secret: Array("elevenbytes".utf8))
        }
        #expect(throws: CHAPCredentials.Invalid.nameMissing) {
            try CHAPCredentials(name: "", secret: Self.secret)
        }
        #expect(throws: CHAPCredentials.Invalid.sameSecretBothWays) {
            try CHAPCredentials(name: "op", secret: Self.secret, mutual: (name: "t", secret: Self.secret))
        }
    }
}
