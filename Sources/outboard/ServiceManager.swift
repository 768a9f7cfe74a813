import Glibc

/// What started this process and wants to know when it serves (sd_notify(3), `Type=notify`).
enum ServiceManager {
    /// It serves now.
    /// - Parameter what: for `systemctl status`.
    static func ready(serving what: String) {
        tell("READY=1\nSTATUS=serving " + what.replacing("\n", with: "?"))
    }

    /// It ends in order.
    static func stopping() { tell("STOPPING=1\nSTATUS=finishing what was begun") }

    /// A manager that is not there, or not any more, is no reason for anything.
    private static func tell(_ state: String) {
        guard let name = getenv("NOTIFY_SOCKET").map({ String(cString: $0) }), !name.isEmpty else { return }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        var bytes = Array(name.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return }
        let start = MemoryLayout<sockaddr_un>.size - MemoryLayout.size(ofValue: address.sun_path)
        let length = socklen_t(start + bytes.count)
        // An abstract address begins with a zero byte.
        if bytes[0] == UInt8(ascii: "@") { bytes[0] = 0 }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { return }
        defer { close(descriptor) }
        withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                _ = sendto(
                    descriptor, state, state.utf8.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT), $0, length
                )
            }
        }
    }
}
