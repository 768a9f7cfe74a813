import Foundation
import Glibc
import SCSI

@testable import ISCSI

/// A raw socket to an iSCSI portal: sends any PDU, whole or in part, and can vanish at any moment.
final class WireInitiator {
    static let openName = "iqn.2026-01.net.example:open"
    static let chapName = "iqn.2026-01.net.example:chap"

    let target: String
    private let handle: Int32
    private var decoder = PDUDecoder()
    private var isOpen = true
    private var cmdSN: UInt32 = 1
    private var tag: UInt32 = 0

    /// - Parameter portal: ADDRESS:PORT, IPv4.
    init(_ portal: String, target: String) throws {
        self.target = target
        let parts = portal.split(separator: ":")
        guard parts.count == 2, let port = UInt16(parts[1]) else { throw TestFailure("no portal: \(portal)") }
        handle = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        inet_pton(AF_INET, String(parts[0]), &address.sin_addr)
        let connected = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(handle, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard handle >= 0, connected == 0 else { throw TestFailure("cannot connect: errno \(errno)") }
        decoder.maximumDataSegment = 1 << 20
    }

    deinit { drop() }

    /// - Parameter resets: by RST, with what is unread lost; else by FIN.
    func drop(resets: Bool = false) {
        guard isOpen else { return }
        isOpen = false
        if resets {
            var linger = linger(l_onoff: 1, l_linger: 0)
            setsockopt(handle, SOL_SOCKET, SO_LINGER, &linger, socklen_t(MemoryLayout.size(ofValue: linger)))
        }
        close(handle)
    }

    func send(_ pdu: PDU, bytes: Int? = nil) throws {
        let encoded = Array(pdu.encoded().prefix(bytes ?? .max))
        guard Glibc.send(handle, encoded, encoded.count, Int32(MSG_NOSIGNAL)) == encoded.count else {
            throw TestFailure("cannot send: errno \(errno)")
        }
    }

    /// Sends what may not be wanted.
    /// - Returns: false when the other end takes nothing for so long, or has gone.
    func sendIfTaken(_ bytes: [UInt8], milliseconds: Int32) -> Bool {
        var rest = bytes[...]
        while !rest.isEmpty {
            var wait = pollfd(fd: handle, events: Int16(POLLOUT), revents: 0)
            guard poll(&wait, 1, milliseconds) == 1 else { return false }
            let count = rest.withUnsafeBytes {
                Glibc.send(
                    handle, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
            }
            guard count > 0 else { return false }
            rest = rest.dropFirst(count)
        }
        return true
    }

    /// The next PDU; nil at the end of the connection.
    func receive(seconds: Int32 = 60) throws -> PDU? {
        var byte: UInt8 = 0
        while true {
            var wait = pollfd(fd: handle, events: Int16(POLLIN), revents: 0)
            guard poll(&wait, 1, seconds * 1000) == 1 else { throw TestFailure("no answer in \(seconds) s") }
            guard recv(handle, &byte, 1, 0) == 1 else { return nil }
            let pdu = try withUnsafeBytes(of: &byte) { buffer -> PDU? in
                var input = buffer
                return try decoder.next(&input)
            }
            if let pdu { return pdu }
        }
    }

    /// Waits for the first byte of what comes, and takes no more.
    func awaitData() throws {
        var byte: UInt8 = 0
        guard recv(handle, &byte, 1, 0) == 1 else { throw TestFailure("the connection ended") }
    }

    func expect(_ opcode: UInt8) throws -> PDU {
        let pdu = try receive()
        guard let pdu, pdu.opcode == opcode else {
            throw TestFailure("not PDU \(opcode) but \(pdu.map { "\($0.opcode)" } ?? "the end")")
        }
        return pdu
    }

    /// - Parameter flags: T, CSG and NSG.
    func loginRequest(_ isid: UInt64, _ keys: [TextKey], flags: UInt8) -> PDU {
        var pdu = PDU(Opcode.loginRequest, flags: flags)
        pdu.isImmediate = true
        pdu.lun = isid << 16
        pdu.initiatorTaskTag = 1
        pdu.cmdSN = cmdSN
        pdu.data = TextKeys.encode(keys)[...]
        return pdu
    }

    func names(_ initiator: String = WireInitiator.openName) -> [TextKey] {
        [
            TextKey("InitiatorName", initiator), TextKey("TargetName", target),
            TextKey("SessionType", "Normal"),
        ]
    }

    /// - Returns: the response; it may refuse.
    @discardableResult
    func logIn(_ isid: UInt64) throws -> PDU {
        try send(
            loginRequest(
                isid, names() + [TextKey("InitialR2T", "No"), TextKey("ImmediateData", "Yes")], flags: 0x87))
        return try expect(Opcode.loginResponse)
    }

    func request(_ opcode: UInt8, flags: UInt8 = 0x80) -> PDU {
        tag += 1
        var pdu = PDU(opcode, flags: flags)
        pdu.initiatorTaskTag = tag
        pdu.targetTransferTag = reservedTag
        pdu.cmdSN = cmdSN
        cmdSN += 1
        return pdu
    }

    func command(
        _ command: Command, lun: Int, read: Int = 0, write: Int = 0, data: [UInt8] = [], isFinal: Bool = true
    ) -> PDU {
        var pdu = request(Opcode.scsiCommand, flags: (isFinal ? 0x81 : 0x01) | (read > 0 ? 0x40 : 0))
        if write > 0 { pdu.flags |= 0x20 }
        pdu.lun = LogicalUnitNumber(lun)?.rawValue ?? 0
        pdu.targetTransferTag = UInt32(read + write)
        for (index, byte) in command.encoded().enumerated() { pdu[byte: 32 + index] = byte }
        pdu.data = data[...]
        return pdu
    }

    func dataOut(to tag: UInt32, _ transferTag: UInt32, offset: Int, _ data: [UInt8], isFinal: Bool) -> PDU {
        var pdu = PDU(Opcode.dataOut, flags: isFinal ? 0x80 : 0)
        pdu.initiatorTaskTag = tag
        pdu.targetTransferTag = transferTag
        pdu.bufferOffset = UInt32(offset)
        pdu.data = data[...]
        return pdu
    }
}
