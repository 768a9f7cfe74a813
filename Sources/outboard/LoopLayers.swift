import AsyncIO
import Foundation

/// What lies below loop devices.
enum LoopLayers {
    /// The files and devices below a loop device, or below its whole device if it is a partition, through loops upon
    /// loops.
    static func below(
        _ storage: StorageIdentity, depth: Int = 8
    ) -> [(path: String, identity: StorageIdentity)] {
        guard storage.isBlockDevice, depth > 0 else { return [] }
        let number = storage.device
        let major = number >> 8 & 0xFFF | number >> 32 & 0xFFFF_F000
        let minor = number & 0xFF | number >> 12 & 0xFFFF_FF00
        let place = "/sys/dev/block/\(major):\(minor)"
        for file in ["\(place)/loop/backing_file", "\(place)/../loop/backing_file"] {
            // What is no loop device, or has lost its file, has nothing below it that can be named.
            guard let text = try? String(contentsOfFile: file, encoding: .utf8) else { continue }
            let path = text.trimmingCharacters(in: CharacterSet.newlines)
            guard let identity = try? StorageIdentity.of(path: path) else { continue }
            return [(path, identity)] + below(identity, depth: depth - 1)
        }
        return []
    }
}
