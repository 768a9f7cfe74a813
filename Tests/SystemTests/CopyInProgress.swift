import Agent
import Blocks
import Foundation
import HostControl
import TestSupport

extension HostProcess {
    private struct Answer: Decodable { let result: VolumeStatus }

    func status() throws -> VolumeStatus {
        let line = try ask("volume.status")
        return try JSONDecoder().decode(Answer.self, from: Data(line.utf8)).result
    }

    /// Whether no epoch is open or retained.
    func isIdle() throws -> Bool { try status().epoch.map { $0.state == .released } ?? true }
}

/// Asks again and again until it is so.
func waitUntil(_ what: String, seconds: Double = 60, _ isSo: () throws -> Bool) throws {
    let deadline = MonotonicClock.now + UInt64(seconds * 1e9)
    while try !isSo() {
        guard MonotonicClock.now < deadline else { throw TestFailure("waited in vain: \(what)") }
        usleep(5_000)
    }
}

/// An `outboard copy` that was begun and goes slowly, in a directory where nothing else is.
final class CopyInProgress: Sendable {
    let process: ChildProcess
    let directory: String
    let destination: String

    /// Starts it and waits until an epoch is open and bytes have been copied.
    init(
        of host: HostProcess, in directory: String? = nil, rate: String = "2MiB", options: [String] = [],
        untilCopying: Bool = true
    ) throws {
        self.directory = directory ?? host.directory("copies")
        let directory = self.directory
        destination = directory + "/copy"
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        process = try Outboard.start(
            ["copy", "--host", host.control, "--to", destination, "--max-rate", rate] + options)
        guard untilCopying else { return }
        // By the clock: direct writes by libaio are no event for inotify, and a progress bar is for terminals.
        try waitUntil("bytes are copied") { [process] in
            guard process.isRunning else { throw TestFailure("the copy ended: \(process.errors)") }
            guard try host.status().epoch?.state == .open else { return false }
            return self.copiedBlocks > 0
        }
    }

    deinit { process.stop() }

    /// What is in the directory, the partial copy included.
    var names: [String] { (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? [] }

    private var copiedBlocks: Int {
        names.filter { $0.contains(".partial-") }.reduce(0) { sum, name in
            var status = stat()
            return stat("\(directory)/\(name)/data.img", &status) == 0 ? sum + Int(status.st_blocks) : sum
        }
    }

    /// The private bridge.
    func bridge() throws -> pid_t {
        guard let child = RunningProcesses.children(of: process.identifier).first else {
            throw TestFailure("the copy has no private bridge")
        }
        return child
    }
}

/// What /proc tells.
enum RunningProcesses {
    static func children(of parent: pid_t) -> [pid_t] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return names.compactMap { pid_t($0) }.filter { fields(of: $0)?.parent == parent }
    }

    /// Whether it has ended, waited for or not.
    static func hasEnded(_ process: pid_t) -> Bool { fields(of: process).map { $0.state == "Z" } ?? true }

    static func count(_ member: String, of process: pid_t) -> Int {
        (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/\(member)"))?.count ?? 0
    }

    /// Processes that were started with this variable in their environment, or by such, and run.
    static func marked(_ name: String, _ value: String) -> [pid_t] {
        let entry = Data("\(name)=\(value)\0".utf8)
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return names.compactMap { pid_t($0) }.filter { process in
            // One that ends while it is looked at, or is another user's, is none of them.
            guard let all = FileManager.default.contents(atPath: "/proc/\(process)/environ") else {
                return false
            }
            return all.range(of: entry) != nil && !hasEnded(process)
        }
    }

    /// The words of its command line; none when it has ended.
    static func command(of process: pid_t) -> [String] {
        let line = (try? String(contentsOfFile: "/proc/\(process)/cmdline", encoding: .utf8)) ?? ""
        return line.split(separator: "\0").map(String.init)
    }

    private static func fields(of process: pid_t) -> (state: Substring, parent: pid_t)? {
        guard let text = try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8),
            let end = text.lastIndex(of: ")")
        else { return nil }
        let words = text[text.index(after: end)...].split(separator: " ")
        guard words.count > 2, let parent = pid_t(words[1]) else { return nil }
        return (words[0], parent)
    }
}
