import Blocks
import Foundation
import TestSupport

/// What an attacker puts where we work, and what must not happen to it.
extension ScratchDirectory {
    /// Somebody who is neither root nor us.
    static let somebody: uid_t = 65_534

    /// A directory of its own in which others may change names: everybody's without the sticky bit, or (as root)
    /// somebody else's.
    func open(_ name: String, ownedBySomebody: Bool = false) throws -> String {
        let path = self(name)
        guard mkdir(path, 0o755) == 0, ownedBySomebody || chmod(path, 0o777) == 0,
            !ownedBySomebody || chown(path, Self.somebody, gid_t.max) == 0
        else { throw TestFailure("cannot make \(path)") }
        return path
    }

    /// A file that nobody may touch.
    func precious(_ name: String = "precious") throws -> PreciousFile { try PreciousFile(self(name)) }
}

/// A file whose bytes and size must stay as they are.
struct PreciousFile {
    let path: String
    private let bytes: [UInt8]

    init(_ path: String) throws {
        self.path = path
        try makePatternFile(path, count: 3 << 20, seed: 99)
        bytes = try contents(path)
    }

    var isUntouched: Bool { (try? contents(path)) == bytes }
}

/// What a path itself is, links not followed.
func fileKind(_ path: String) -> mode_t? {
    var status = stat()
    return lstat(path, &status) == 0 ? status.st_mode & S_IFMT : nil
}

func permissions(_ path: String) -> mode_t? {
    var status = stat()
    return lstat(path, &status) == 0 ? status.st_mode & 0o7777 : nil
}

/// Rewrites a copy's manifest as an attacker can: with a checksum that fits.
func forgeManifest(_ copy: String, _ change: (inout [String: Any]) throws -> Void) throws {
    let url = URL(fileURLWithPath: copy + "/manifest.json")
    let object = try JSONSerialization.jsonObject(with: Data(contentsOf: url))
    guard var manifest = object as? [String: Any] else { throw TestFailure("no manifest in \(copy)") }
    try change(&manifest)
    manifest["crc32c"] = "00000000"
    var data = try JSONSerialization.data(
        withJSONObject: manifest, options: [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes])
    guard let place = data.firstRange(of: Data(#""crc32c" : ""#.utf8)) else {
        throw TestFailure("no checksum in the manifest")
    }
    let digits = String(CRC32C.checksum(Array(data)), radix: 16)
    let sum = String(repeating: "0", count: 8 - digits.count) + digits
    data.replaceSubrange(place.upperBound..<place.upperBound + 8, with: Data(sum.utf8))
    try data.write(to: url)
}
