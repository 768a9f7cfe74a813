import Blocks
import Foundation
import HostControl

/// A connection to a host's control socket. The epoch that it begins is held by it: a host sees by the
/// connection's end that the agent is gone. So it never reconnects, and a call that the host does not answer
/// in time ends it.
///
/// Calls block; several threads may call, one after another is served.
public final class HostClient: Sendable {
    private struct State {
        // Nil once it failed, and while a call has it.
        var socket: (any LineTransport)?
        var isBusy = false
        var failure: AgentError?
        var nextID = 1
    }
    private let state: Monitor<State>
    /// The control socket's path.
    public let path: String

    /// Connects.
    /// - Throws: 69 when nobody serves the socket, 77 when it may not be used or is served by another user
    ///   than this one or root.
    public init(path: String) throws(AgentError) {
        self.path = path
        let socket: LineSocket
        do throws(LineSocket.Failure) {
            socket = try LineSocket(path: path, lineLimit: HostControl.Limits.lineBytes)
            let server = try socket.peerUser()
            if server != geteuid(), server != 0, geteuid() != 0 {
                throw .system("the socket is served by another user", EPERM)
            }
        } catch {
            throw Self.error(error, doing: "connecting to the host at", path)
        }
        // Handed over to the monitor, which is its only owner from here.
        nonisolated(unsafe) let connected = socket
        state = Monitor(State(socket: connected))
    }

    /// Over a connection that stands already.
    package init(path: String, over transport: sending any LineTransport) {
        self.path = path
        state = Monitor(State(socket: transport))
    }

    /// Calls a method and waits for its result.
    /// - Parameter timeout: seconds; a freeze asks for more than a status.
    /// - Throws: what the host answered (75 for a void, open or retained epoch, 74 for its I/O errors, 77,
    ///   70), or 69 when it does not answer, or not as a host does.
    public func call<M: ControlMethod>(
        _ method: M.Type, _ parameters: M.Parameters, timeout: Double = ClientLimits.hostAnswerSeconds
    ) throws(AgentError) -> M.Result {
        let doing = "asking the host for \(M.name) at"
        let (socket, id) = try acquire()
        var keep: (any LineTransport)? = nil
        var failure: AgentError?
        defer { release(keep, failure) }
        let line: [UInt8]
        do throws(LineSocket.Failure) {
            let deadline = MonotonicClock.now + UInt64(timeout * 1_000_000_000)
            try socket.send(Self.encode(id: id, M.self, parameters), deadline: deadline)
            line = try socket.receiveLine(deadline: deadline)
        } catch {
            failure = Self.error(error, doing: doing, path)
            throw failure!
        }
        let answer: Answer<M.Result>
        do { answer = try JSONDecoder().decode(Answer<M.Result>.self, from: Data(line)) } catch {
            failure = Self.foreign(doing, path, "its answer is not one of this method")
            throw failure!
        }
        guard answer.id == id || (answer.id == nil && answer.error != nil) else {
            failure = Self.foreign(doing, path, "it answered another call")
            throw failure!
        }
        keep = socket
        if let refusal = answer.error { throw Self.refused(refusal, doing: doing, path) }
        guard let result = answer.result else {
            throw Self.foreign(doing, path, "its answer has neither result nor error")
        }
        if let flaw = (result as? any ForeignAnswer)?.flaw { throw Self.foreign(doing, path, flaw) }
        return result
    }

    /// Ends the connection: an epoch begun on it is then held by nobody.
    public func close() {
        state.withLockAndNotify { state in
            state.socket = nil
            state.failure =
                state.failure
                ?? AgentError(
                    .software, doing: "using the host at", to: path,
                    because: "the connection was closed here",
                    cause: .disconnected)
        }
    }

    private struct Refusal: Decodable {
        var code: Int
        var message: String
    }

    /// The answer as far as it can be believed; foreign codes are kept as numbers.
    private struct Answer<Result: Decodable>: Decodable {
        var id: Int?
        var result: Result?
        var error: Refusal?
    }

    private static func encode<M: ControlMethod>(id: Int, _: M.Type, _ parameters: M.Parameters) -> [UInt8] {
        let request = ControlRequest(id: id, method: M.name, params: parameters)
        do { return Array(try JSONEncoder().encode(request)) + [UInt8(ascii: "\n")] } catch {
            preconditionFailure("a request that is no JSON: \(error)")
        }
    }

    private func acquire() throws(AgentError) -> (any LineTransport, Int) {
        typealias Turn = Swift.Result<(any LineTransport, Int), AgentError>
        nonisolated(unsafe) var turn: Turn?
        state.wait { state -> Void? in
            if let failure = state.failure {
                turn = .failure(failure)
            } else if !state.isBusy, let socket = state.socket {
                state.isBusy = true
                state.socket = nil
                state.nextID += 1
                turn = .success((socket, state.nextID - 1))
            }
            return turn == nil ? nil : ()
        }
        return try turn!.get()
    }

    private func release(_ socket: (any LineTransport)?, _ failure: AgentError?) {
        nonisolated(unsafe) let returned = socket
        state.withLockAndNotify { state in
            state.isBusy = false
            if state.failure == nil {
                state.socket = returned
                state.failure = failure
            }
        }
    }
}

extension HostClient {
    private static func foreign(_ doing: String, _ path: String, _ reason: String) -> AgentError {
        AgentError(
            .unavailable, doing: doing, to: path, because: reason,
            advice: "check that the socket is that of an `outboard host` of this version",
            cause: .disconnected)
    }

    private static func error(_ failure: LineSocket.Failure, doing: String, _ path: String) -> AgentError {
        let start = "start `outboard host` first, or name its --control socket"
        switch failure {
        case .pathTooLong:
            return AgentError(
                .usage, doing: doing, to: path, because: "the path does not fit a socket address",
                advice: "name it by a shorter path, at most 107 bytes")
        case .system(_, ENOENT):
            return AgentError(
                .unavailable, doing: doing, to: path, because: "there is no such socket", advice: start,
                cause: .disconnected)
        case .system(_, ECONNREFUSED):
            return AgentError(
                .unavailable, doing: doing, to: path, because: "nobody serves the socket", advice: start,
                cause: .disconnected)
        case .system(_, ENOTSOCK):
            return AgentError(.usage, doing: doing, to: path, because: "it is not a socket", advice: start)
        case .system(let what, let number) where number == EACCES || number == EPERM:
            return AgentError(
                .notPermitted, doing: doing, to: path, because: "\(what): \(systemMessage(number))",
                advice: "run this as the user who runs the host")
        case .system(let what, let number):
            return AgentError(
                .unavailable, doing: doing, to: path, because: "\(what): \(systemMessage(number))",
                advice: start, cause: .disconnected)
        case .closed:
            return AgentError(
                .unavailable, doing: doing, to: path, because: "the host closed the connection",
                advice: "see the host's log", cause: .disconnected)
        case .timedOut:
            return AgentError(
                .unavailable, doing: doing, to: path, because: "the host did not answer in time",
                advice: "see the host's log; the source or the cache may be stuck", cause: .timedOut)
        case .lineTooLong: return foreign(doing, path, "it sent a line longer than the protocol allows")
        }
    }

    private static func refused(_ refusal: Refusal, doing: String, _ path: String) -> AgentError {
        let code = ControlError.Code(rawValue: refusal.code)
        let status: AgentError.ExitStatus
        var advice: String?
        switch code {
        case .epochOpen, .cacheRetained:
            status = .tryAgain
            advice = "another copy of this volume is under way: wait for its end"
        case .epochVoid:
            status = .tryAgain
            advice = "copy again, with a larger cache or while less is written"
        case .noSuchEpoch:
            status = .tryAgain
            advice = "somebody else ended or released the epoch: copy again"
        case .epochHeld:
            status = .tryAgain
            advice = "the copy that began it is still running: wait for its end"
        case .frozen:
            status = .tryAgain
            advice = "wait until whoever froze the volume thaws it"
        case .timedOut:
            status = .tryAgain
            advice = "try it again while less is written, or look at how slow the source's device is"
        case .ending:
            status = .unavailable
            advice = "start the host again first"
        case .io:
            status = .io
            advice = "look at the host's log and at the devices under source and cache"
        case .notPermitted:
            status = .notPermitted
            advice = "run this as the user who runs the host"
        case .parseError, .invalidRequest, .methodNotFound, .invalidParameters, .internalError, .lineTooLong,
            nil:
            status = .software
            advice = "check that host and agent are of the same version"
        }
        return AgentError(
            status, doing: doing, to: path, because: refusal.message, advice: advice,
            cause: code.map { .control($0) })
    }
}
