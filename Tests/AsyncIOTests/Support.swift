import Blocks
import Foundation
import Glibc
import Testing

@testable import AsyncIO

/// A directory of its own, removed with the object.
final class ScratchDirectory {
    let path: String
    init(under parent: String = NSTemporaryDirectory()) {
        var template = Array("\(parent)/outboard-test-XXXXXX".utf8CString)
        precondition(mkdtemp(&template) != nil)
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
    deinit {
        // Losing the error is right: what is left is a temporary directory.
        try? FileManager.default.removeItem(atPath: path)
    }

    func file(_ name: String, size: Int, seed: UInt64? = nil) -> String {
        let file = "\(path)/\(name)"
        var bytes = [UInt8](repeating: 0, count: size)
        if let seed {
            var random = SplitMix(seed)
            bytes = random.bytes(size)
        }
        precondition(FileManager.default.createFile(atPath: file, contents: Data(bytes)))
        return file
    }

    static func contents(_ path: String) throws -> [UInt8] {
        [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    }
}

/// A generator whose seed is printed with each failure.
struct SplitMix: RandomNumberGenerator {
    private var state: UInt64
    init(_ seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
    mutating func bytes(_ count: Int) -> [UInt8] {
        var result = [UInt8]()
        result.reserveCapacity(count + 8)
        while result.count < count { withUnsafeBytes(of: next()) { result.append(contentsOf: $0) } }
        result.removeLast(result.count - count)
        return result
    }
}

/// Where the tests' files lie: the disk, and a tmpfs where there is one.
let scratchParents = [NSTemporaryDirectory(), "/dev/shm"].filter {
    FileManager.default.isWritableFile(atPath: $0)
}
