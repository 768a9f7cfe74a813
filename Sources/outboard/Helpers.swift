import Blocks
import Foundation

/// Runs what blocks on a thread of its own, so that the cooperative pool stays free.
func onBlockingThread<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
    await withCheckedContinuation { continuation in
        let run: @Sendable () -> Void = { continuation.resume(returning: body()) }
        if !BlockingThread.start(stackSize: 1 << 20, run) { run() }
    }
}

/// The same for what may fail.
func onBlockingThread<Result: Sendable>(
    _ body: @escaping @Sendable () throws -> Result
) async throws -> Result {
    try await onBlockingThread { Swift.Result(catching: body) }.get()
}

/// Ends the process at once, with nothing more done.
func hardExit(_ status: ExitStatus) -> Never { _exit(status.rawValue) }
