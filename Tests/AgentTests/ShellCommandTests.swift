import Blocks
import Foundation
import Glibc
import TestSupport
import Testing

@testable import Agent

@Suite struct ShellCommandTests {
    @Test func aCancelledCommandIsEndedWithItsChildren() async throws {
        let world = LocalWorld()
        let (begun, ended) = (world.path("begun"), world.path("ended"))
        #expect(mkfifo(begun, 0o600) == 0)
        let token = CancellationToken()
        precondition(
            BlockingThread.start {
                // Opening waits for the command to open its end.
                close(open(begun, O_RDONLY))
                token.cancel()
            })
        let command =
            "(trap 'echo > \(ended); exit 1' TERM; : > \(begun); while :; do sleep 0.01; done); exit 3"
        let error = await #expect(throws: AgentError.self) {
            try await onThread { try ShellCommand.run(command, token) }
        }
        #expect(error == CancellationToken.interrupted)
        #expect(FileManager.default.fileExists(atPath: ended))
        await #expect(throws: AgentError.self) { try await onThread { try ShellCommand.run("exit 3", nil) } }
        try await onThread { try ShellCommand.run("true", CancellationToken()) }
    }

    @Test func theProcessEndsOnlyWhenNothingStandsStill() {
        let token = CancellationToken()
        let calls = Monitor(0)
        #expect(token.whenNothingStandsStill { calls.withLock { $0 += 1 } })
        token.beginStandstill()
        token.beginStandstill()
        #expect(!token.whenNothingStandsStill { calls.withLock { $0 += 10 } })
        token.endStandstill()
        #expect(calls.withLock { $0 } == 1)
        token.endStandstill()
        #expect(calls.withLock { $0 } == 11)
    }

    @Test func aGroupsStandstillIsGuarded() async throws {
        let world = LocalWorld()
        _ = try world.addVolume("a", size: 1 << 20, seed: 1)
        let token = CancellationToken()
        let endedEarly = Monitor(false)
        world.state.withLock { state in
            state.before["thaw /x"] = {
                token.cancel()
                token.whenNothingStandsStill { endedEarly.withLock { $0 = !world.log.contains("run post") } }
            }
        }
        var request = CopyRequest(members: [.init(control: "a.ctl", destination: world.path("copy"))])
        request.freeze = ["/x"]
        request.postThaw = "post"
        await #expect(throws: AgentError.self) { try await world.copy(request, cancellation: token) }
        #expect(world.log.contains("run post") && !endedEarly.withLock { $0 })
        #expect(world.state.withLock { $0.dismissals } == 1)
    }

    @Test("A private bridge's warnings reach the user")
    func warningsAreTold() async throws {
        let world = LocalWorld()
        let script = world.path("bridge")
        let text = """
            #!/bin/sh
            echo 'outboard bridge: warning: no direct I/O' >&2
            echo 'ready 127.0.0.1:1 iqn.2026-01.net.example:x'
            read line
            echo 'outboard bridge: error: more' >&2
            """
        // By another process: a file that this one has open for writing while another test starts a child is busy.
        let made = try runProgram(
            "sh", ["-c", #"printf '%s\n' "$1" > "$2" && chmod 700 "$2""#, "sh", text, script])
        #expect(made.isSuccess, "\(made)")
        let notices = Monitor<[String]>([])
        // Nobody listens there.
        let error = await #expect(throws: AgentError.self) {
            try await onThread {
                _ = try BridgeProcess(
                    executable: script, units: [], cancellation: CancellationToken(),
                    notice: { text in notices.withLock { $0.append(text) } })
            }
        }
        #expect(
            notices.withLock { $0 } == ["the private bridge: warning: no direct I/O"],
            "\(String(describing: error))")
    }
}
