import Blocks
import Glibc
import SimulatedFiles
import TestSupport

@testable import PhysicalCopy

/// Something that a process does with the file system, and what must hold when it was cut off.
struct CrashScenario {
    /// The process at work. What it throws is of no interest: a process that is cut off says nothing.
    var act: (FileSystemCalls, SimulatedFileSystem) throws -> Void
    /// What must hold afterwards, as a process sees it that comes later; it may set right what was cut off. The flag:
    /// `act` had returned, and had not thrown.
    /// - Returns: what is wrong.
    var judge: (FileSystemCalls, SimulatedFileSystem, _ isDone: Bool) -> [String]
}

/// A seeded defect: what the product would do if something had been forgotten.
struct CrashDefect: Sendable {
    var name: String
    /// The calls as a product makes them that has it.
    var calls: @Sendable (FileSystemCalls) -> FileSystemCalls

    static let none = CrashDefect(name: "none") { $0 }

    /// No fsync of what was opened by a name that fits.
    static func unsynchronized(
        _ name: String, _ fits: @escaping @Sendable (String) -> Bool
    ) -> CrashDefect {
        CrashDefect(name: name) { calls in
            let names = Monitor([Int32: String]())
            var defective = calls
            defective.openat = { directory, path, flags, mode in
                let outcome = calls.openat(directory, path, flags, mode)
                if case .success(let descriptor) = outcome {
                    names.withLock {
                        $0[descriptor] = path.split(separator: "/").last.map(String.init)
                    }
                }
                return outcome
            }
            defective.fsync = { descriptor in
                let name = names.withLock { $0[descriptor] } ?? ""
                return fits(name) ? .success(()) : calls.fsync(descriptor)
            }
            return defective
        }
    }
}

/// Cuts scenarios off everywhere.
struct CrashLab {
    /// What a process may leave on the disk: before each call that changes something, and at its end.
    private struct Moment {
        var files: SimulatedFileSystem
        var isDone: Bool
    }

    /// How often the power fails at each moment.
    var outcomes = 12
    var defect = CrashDefect.none
    var random: SeededGenerator
    /// How many times something was cut off and judged.
    private(set) var judged = 0
    private(set) var problems: [String] = []

    init(seed: UInt64) { random = SeededGenerator(seed: seed) }

    private static let changes: Set<FileOperation.Kind> = [
        .pwrite, .ftruncate, .fsync, .mkdirat, .linkat, .unlinkat, .renameat,
    ]

    /// - Parameter body: gives whether it is done.
    private func moments(
        of files: SimulatedFileSystem, _ body: (FileSystemCalls) -> Bool
    ) -> [Moment] {
        var moments: [Moment] = []
        let user = files.makeUser(100 + Int32(judged % 100))
        files.willPerform = { operation in
            guard Self.changes.contains(operation.kind) else { return }
            moments.append(Moment(files: files.copy(), isDone: false))
        }
        let isDone = body(defect.calls(files.calls(for: user)))
        files.willPerform = nil
        moments.append(Moment(files: files.copy(), isDone: isDone))
        return moments
    }

    /// Kills the process, and has the power fail, before each change and at the end.
    /// - Parameter start: what is on the disk; copied.
    mutating func run(_ scenario: CrashScenario, from start: SimulatedFileSystem) {
        let files = start.copy()
        for (index, moment) in moments(of: files, { act(scenario, $0, files) }).enumerated() {
            judge(scenario, moment, "killed before change \(index)", isCrash: false)
            for _ in 0..<outcomes {
                judge(scenario, moment, "power cut before change \(index)", isCrash: true)
            }
        }
    }

    /// Kills the process everywhere; then has the power fail everywhere while the next one sets things right.
    mutating func runTwice(_ scenario: CrashScenario, from start: SimulatedFileSystem) {
        let files = start.copy()
        for (first, moment) in moments(of: files, { act(scenario, $0, files) }).enumerated() {
            let files = moment.files.copy()
            let later = moments(of: files) { calls in
                _ = scenario.judge(calls, files, moment.isDone)
                return moment.isDone
            }
            for (second, moment) in later.enumerated() {
                for _ in 0..<outcomes {
                    judge(
                        scenario, moment,
                        "killed before change \(first), and a power cut before change \(second) of the next",
                        isCrash: true)
                }
            }
        }
    }

    private enum Failing: String, CaseIterable {
        case once
        case thenAll = "and all that came after"
        case thenItsKind = "and all of its kind"
    }

    /// Makes each call fail, alone or with others; then has nothing happen, or the power fail.
    mutating func failEverywhere(_ scenario: CrashScenario, from start: SimulatedFileSystem, _ code: Int32) {
        for failing in Failing.allCases {
            var number = 0
            while failCall(number, failing, scenario, start.copy(), code) { number += 1 }
        }
    }

    /// - Returns: whether there were so many calls.
    private mutating func failCall(
        _ number: Int, _ failing: Failing, _ scenario: CrashScenario, _ files: SimulatedFileSystem,
        _ code: Int32
    ) -> Bool {
        var calls = 0
        var failed: FileOperation?
        files.fault = { operation in
            calls += 1
            guard let first = failed else {
                guard calls > number else { return nil }
                failed = operation
                return code
            }
            switch failing {
            case .once: return nil
            case .thenAll: return code
            case .thenItsKind: return operation.kind == first.kind ? code : nil
            }
        }
        let user = files.makeUser(100)
        let isDone = act(scenario, defect.calls(files.calls(for: user)), files)
        files.fault = nil
        guard let failed else { return false }
        let what = "\(failed.kind) \(failed.name) failed, \(failing.rawValue), \(code)"
        let left = files.openFiles(of: user)
        if !left.isEmpty { problems.append("\(what): still open: \(left)") }
        let moment = Moment(files: files.copy(), isDone: isDone)
        judge(scenario, moment, what, isCrash: false)
        // Whether a name was given, or given back, is what matters most.
        for _ in 0..<(failed.kind == .renameat ? outcomes * 2 : outcomes / 4) {
            judge(scenario, moment, what + ", and a power cut", isCrash: true)
        }
        return true
    }

    private func act(
        _ scenario: CrashScenario, _ calls: FileSystemCalls, _ files: SimulatedFileSystem
    ) -> Bool {
        do {
            try scenario.act(calls, files)
            return true
        } catch {
            return false
        }
    }

    private mutating func judge(
        _ scenario: CrashScenario, _ moment: Moment, _ what: String, isCrash: Bool
    ) {
        let files = moment.files.copy()
        if isCrash { files.crash(using: &random) }
        judged += 1
        let user = files.makeUser(7)
        for problem in scenario.judge(files.calls(for: user), files, moment.isDone) {
            problems.append("\(what): \(problem)")
        }
    }
}
