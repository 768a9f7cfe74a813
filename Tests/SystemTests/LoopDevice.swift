import Foundation
import TestSupport

/// A loop device over a file.
final class LoopDevice: Sendable {
    let path: String

    init(over file: String) throws {
        let made = try LoopMount.succeed("losetup", ["--find", "--show", file])
        path = made.output.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    deinit {
        // Who still has it open keeps it until it has closed it.
        _ = try? runProgram("losetup", ["--detach", path], seconds: 10)
    }
}
