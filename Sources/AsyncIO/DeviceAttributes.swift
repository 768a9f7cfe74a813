import Foundation

/// What the kernel states of a block device in sysfs.
enum DeviceAttributes {
    /// Whether the device gives space back when it is asked for zeros with unmapping: it can discard, and it can zero
    /// by itself (the request never falls back on discarding, which may leave anything to be read).
    /// - Parameter device: the device number, of the whole device or of a partition.
    static func discardsToZeros(device: UInt64) -> Bool {
        let (major, minor) = (
            device >> 8 & 0xFFF | device >> 32 & ~0xFFF, device & 0xFF | device >> 12 & ~0xFF
        )
        let directory = "/sys/dev/block/\(major):\(UInt32(truncatingIfNeeded: minor))"
        // A partition's queue is its device's.
        return [directory + "/queue", directory + "/../queue"].contains { queue in
            number(queue + "/discard_max_bytes") > 0 && number(queue + "/write_zeroes_max_bytes") > 0
        }
    }

    /// 0 where it cannot be read: an attribute that this kernel does not have.
    private static func number(_ path: String) -> UInt64 {
        guard let text = try? String(contentsOfFile: path, encoding: .utf8) else { return 0 }
        return UInt64(text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
    }
}
