import Blocks
import Foundation
import TestSupport

/// The built program.
enum Outboard {
    /// The one that was built beside these tests.
    static let binary: String = {
        // What tests start is not among what runs on this machine.
        setenv("OUTBOARD_RUN_DIRECTORY", "/var/tmp/outboard-test-run-\(geteuid())", 0)
        return built("outboard")
    }()

    /// A program that was built beside these tests.
    static func built(_ name: String) -> String {
        var directory = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
            .deletingLastPathComponent()
        while directory.path != "/" {
            let candidate = directory.appendingPathComponent(name).path
            if FileManager.default.isExecutableFile(atPath: candidate),
                (try? URL(fileURLWithPath: candidate).resourceValues(forKeys: [.isRegularFileKey]))?
                    .isRegularFile == true
            {
                return candidate
            }
            directory.deleteLastPathComponent()
        }
        preconditionFailure("the program \(name) is not built; run swift build --build-tests")
    }

    /// Runs it to its end.
    static func run(
        _ arguments: [String], environment: [String: String] = [:], seconds: Double = 120
    ) throws -> ProgramResult {
        try runProgram(binary, arguments, environment: environment, seconds: seconds)
    }

    static func start(
        _ arguments: [String], environment: [String: String] = [:], keepsInputOpen: Bool = false
    ) throws -> ChildProcess {
        try ChildProcess(
            binary, arguments, environment: environment, keepsInputOpen: keepsInputOpen)
    }
}

struct TestFailure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}
