import Glibc

/// This boot of this machine's kernel.
public enum MachineBoot {
    /// Its random identifier, 32 hexadecimal digits; nil where the kernel does not tell it. Processes that have the
    /// same share device and inode numbers, in whatever container they are.
    public static let identifier: String? = {
        let descriptor = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 64)
        let count = read(descriptor, &bytes, bytes.count)
        guard count > 0 else { return nil }
        let digits = bytes.prefix(count).filter { Character(Unicode.Scalar($0)).isHexDigit }
        return digits.count == 32 ? String(decoding: digits, as: UTF8.self) : nil
    }()
}
