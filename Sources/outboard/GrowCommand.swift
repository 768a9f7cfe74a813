import Agent
import ArgumentParser
import Blocks
import HostControl

struct GrowCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "grow", abstract: "Let a host's original image cache take more, also while a copy runs.",
        discussion: """
            A cache that is a file is made longer, sparse; a device must have the bytes: enlarge it first. It cannot \
            be made smaller. Writes that wait for a full cache (--on-cache-full block) go on. It lasts for the copy \
            that is running and until the host ends: give the new --cache-size at its next start, too.

            A bridge of your own that has the cache as a unit opened it with the size that it had: start it anew \
            before the copy needs what lies beyond. With --json it prints one object.

            EXAMPLE:
                outboard grow --host /run/outboard/data.ctl --to 40GiB

            EXIT STATUS: 0 done; 64 usage, less than it may take already, or more than its device has; 69 host \
            unreachable; 74 the cache's file cannot be made longer; 77 not permitted.
            """)

    @Option(help: ArgumentHelp("The host's control socket.", valueName: "ctl.sock"))
    var host: String

    @Option(help: ArgumentHelp("Bytes in all, what is taken already included.", valueName: "size"))
    var to: ByteCount

    @Flag(help: "Print one JSON object.")
    var json = false

    func run() throws {
        let line = try HostClient(path: host)
        defer { line.close() }
        let result: CacheGrowMethod.Result
        do throws(AgentError) {
            result = try line.call(CacheGrowMethod.self, .init(capacity: to.bytes))
        } catch {
            guard error.cause == .control(.invalidParameters) else { throw error }
            throw Failure(.usage, "cannot let the cache of \(host) take \(to): \(error.reason)")
        }
        if json { return try Console.print(json: result) }
        Console.print("the original image cache may take \(ByteCount(result.capacity)) now")
    }
}
