import Blocks
import Foundation
import HostControl
import Logging

/// Answers the requests of the control socket, one line each; knows nothing of sockets. May block.
package struct ControlDispatcher: Sendable {
    let volume: CopyOnWriteVolume
    let place: HostDescriptor

    package init(volume: CopyOnWriteVolume, place: HostDescriptor) {
        self.volume = volume
        self.place = place
    }

    /// What ends the host; called after the answer to `host.shutdown` has gone out.
    package struct Answer {
        /// One line with its end; nil for a notification.
        package var line: [UInt8]?
        package var endsHost = false
    }

    /// The answer to one line.
    package func answer(to line: [UInt8], holder: EpochHolder) -> Answer {
        let head: ControlRequestHead
        do { head = try ControlCodec.decode(from: line) } catch {
            return Answer(line: Self.refusal(ofNoRequest: line))
        }
        guard head.jsonrpc == "2.0" else {
            return Answer(
                line: Self.failure(
                    head.id ?? .null, ControlError(.invalidRequest, "jsonrpc must be \"2.0\"")))
        }
        let begun = MonotonicClock.now
        do throws(ControlError) {
            var answer = try dispatch(head, line, holder)
            if head.id == nil { answer.line = nil }
            note(head.method, since: begun, nil)
            return answer
        } catch {
            note(head.method, since: begun, error)
            return Answer(line: head.id.map { Self.failure($0, error) })
        }
    }

    /// What changes something is worth a line; what only asks, and is done all the time, for those who look closer.
    private func note(_ method: String, since begun: UInt64, _ error: ControlError?) {
        guard let logger = volume.settings.logger else { return }
        var metadata: Logger.Metadata = [
            "method": "\(method.prefix(64))",
            "ms": .stringConvertible((MonotonicClock.now &- begun) / 1_000_000),
        ]
        if let epoch = volume.epochStatus { metadata["epoch"] = .stringConvertible(epoch.number) }
        if let error { metadata["error"] = "\(error.message)" }
        let asksOnly = method == VolumeStatusMethod.name
        logger.log(
            level: asksOnly ? .debug : .info, error == nil ? "control" : "control: refused",
            metadata: metadata)
    }

    /// What is not a request at all differs from what is not even JSON; it may have an id that can be read.
    private static func refusal(ofNoRequest line: [UInt8]) -> [UInt8] {
        guard (try? JSONSerialization.jsonObject(with: Data(line), options: .fragmentsAllowed)) != nil else {
            return failure(.null, ControlError(.parseError, "not JSON"))
        }
        let found: RequestID? = try? ControlCodec.decode(from: line)
        return failure(
            found?.id ?? .null,
            ControlError(
                .invalidRequest,
                "not a JSON-RPC request object with jsonrpc, id (a string or number) and method"))
    }

    private func dispatch(
        _ head: ControlRequestHead, _ line: [UInt8], _ holder: EpochHolder
    ) throws(ControlError) -> Answer {
        switch head.method {
        case VolumeStatusMethod.name:
            return try run(VolumeStatusMethod.self, head, line) { _ throws(ControlError) in
                volume.status(of: place)
            }
        case VolumeFreezeMethod.name:
            return try run(VolumeFreezeMethod.self, head, line) { parameters throws(ControlError) in
                try volume.freeze(
                    timeout: parameters.timeout, renew: parameters.renew ?? false, holder: holder)
                return Empty()
            }
        case VolumeThawMethod.name:
            return try run(VolumeThawMethod.self, head, line) { _ throws(ControlError) in
                VolumeThawMethod.Result(wasFrozen: try volume.thaw(by: holder))
            }
        case SnapshotBeginMethod.name:
            return try run(SnapshotBeginMethod.self, head, line) { _ throws(ControlError) in
                try volume.begin(holder: holder)
            }
        case SnapshotMarkMethod.name:
            return try run(SnapshotMarkMethod.self, head, line) { parameters throws(ControlError) in
                try volume.mark(epoch: try uuid(parameters.epoch))
            }
        case SnapshotEndMethod.name:
            return try run(SnapshotEndMethod.self, head, line) { parameters throws(ControlError) in
                try volume.end(epoch: try uuid(parameters.epoch))
            }
        case CacheReleaseMethod.name:
            return try run(CacheReleaseMethod.self, head, line) { parameters throws(ControlError) in
                try volume.release(epoch: try uuid(parameters.epoch))
                return Empty()
            }
        case HostShutdownMethod.name:
            var answer = try run(HostShutdownMethod.self, head, line) { parameters throws(ControlError) in
                try volume.endStandstills(force: parameters.force)
                return Empty()
            }
            answer.endsHost = true
            return answer
        default: return try dispatchUnderWay(head, line, holder)
        }
    }

    /// What can be done with an epoch between its beginning and its end.
    private func dispatchUnderWay(
        _ head: ControlRequestHead, _ line: [UInt8], _ holder: EpochHolder
    ) throws(ControlError) -> Answer {
        switch head.method {
        case SnapshotAdoptMethod.name:
            return try run(SnapshotAdoptMethod.self, head, line) { parameters throws(ControlError) in
                try volume.adopt(epoch: try uuid(parameters.epoch), holder: holder)
            }
        case SnapshotPassedMethod.name:
            return try run(SnapshotPassedMethod.self, head, line) { parameters throws(ControlError) in
                try volume.passed(parameters.extents, epoch: try uuid(parameters.epoch))
                return Empty()
            }
        case SnapshotChangesMethod.name:
            return try run(SnapshotChangesMethod.self, head, line) { parameters throws(ControlError) in
                try volume.changes(before: try uuid(parameters.epoch), from: parameters.from)
            }
        case CacheGrowMethod.name:
            return try run(CacheGrowMethod.self, head, line) { parameters throws(ControlError) in
                CacheGrowMethod.Result(capacity: try volume.grow(to: parameters.capacity))
            }
        default: throw ControlError(.methodNotFound, "no method \(head.method.prefix(64))")
        }
    }

    private func run<Method: ControlMethod>(
        _: Method.Type, _ head: ControlRequestHead, _ line: [UInt8],
        _ body: (Method.Parameters) throws(ControlError) -> Method.Result
    ) throws(ControlError) -> Answer {
        let parameters: Method.Parameters
        do { parameters = try Self.parameters(of: Method.self, line) } catch {
            throw ControlError(
                .invalidParameters, "wrong parameters for \(Method.name): \(Self.words(for: error))")
        }
        let result = try body(parameters)
        do {
            let line = try ControlCodec.line(of: ControlResponse(id: head.id ?? .null, result: result))
            guard line.count <= Limits.lineBytes else {
                throw ControlError(.internalError, "the result is too long")
            }
            return Answer(line: line)
        } catch { throw ControlError(.internalError, "the result cannot be encoded: \(error)") }
    }

    /// Methods without parameters may be called without `params`.
    private static func parameters<Method: ControlMethod>(
        of _: Method.Type, _ line: [UInt8]
    ) throws -> Method.Parameters {
        let found: RequestParameters<Method.Parameters> = try ControlCodec.decode(from: line)
        if let parameters = found.params { return parameters }
        return try ControlCodec.decode(from: Array("{}".utf8))
    }

    private static func words(for error: any Error) -> String {
        switch error {
        case DecodingError.keyNotFound(let key, _): "\(key.stringValue) is missing"
        case DecodingError.typeMismatch(_, let context), DecodingError.valueNotFound(_, let context),
            DecodingError.dataCorrupted(let context):
            context.debugDescription
        default: "they cannot be read"
        }
    }

    private func uuid(_ text: String) throws(ControlError) -> UUID {
        guard let uuid = UUID(uuidString: text) else {
            throw ControlError(.invalidParameters, "epoch is not a UUID")
        }
        return uuid
    }

    static func failure(_ id: ControlRequestID, _ error: ControlError) -> [UInt8] {
        do { return try ControlCodec.line(of: ControlResponse<Empty>(id: id, error: error)) } catch {
            preconditionFailure("an error message of ours cannot be encoded: \(error)")
        }
    }
}

private struct RequestID: Decodable { var id: ControlRequestID? }

private struct RequestParameters<Parameters: Decodable>: Decodable { var params: Parameters? }
