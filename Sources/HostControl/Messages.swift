import Foundation

/// An error of the control protocol, as JSON-RPC 2.0 carries it.
public struct ControlError: Error, Codable, Hashable, Sendable, CustomStringConvertible {
    /// JSON-RPC's own codes, and the host's (−32000 and below).
    public enum Code: Int, Codable, Sendable {
        case parseError = -32700
        case invalidRequest = -32600
        case methodNotFound = -32601
        case invalidParameters = -32602
        case internalError = -32603
        case lineTooLong = -32000
        /// An epoch is open already.
        case epochOpen = -32001
        /// The cache of an ended or void epoch is still retained.
        case cacheRetained = -32002
        /// No epoch of that UUID is there.
        case noSuchEpoch = -32003
        /// The epoch is void: its originals are not complete.
        case epochVoid = -32004
        /// The source or the cache failed.
        case io = -32005
        /// The volume is frozen already, or by another connection.
        case frozen = -32006
        /// The peer may not use the control socket.
        case notPermitted = -32007
        /// Writes in flight, or the flush, took longer than applications may be held up for. May be tried again.
        case timedOut = -32008
        /// The host is shutting down.
        case ending = -32009
        /// Somebody holds the epoch.
        case epochHeld = -32010
    }

    public var code: Code
    public var message: String

    public init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }

    public var description: String { message }
}

/// A request as it stands on one line.
public struct ControlRequest<Parameters: Codable & Sendable>: Codable, Sendable {
    public var jsonrpc = "2.0"
    public var id: Int
    public var method: String
    public var params: Parameters

    public init(id: Int, method: String, params: Parameters) {
        self.id = id
        self.method = method
        self.params = params
    }
}

/// A request's id: what the client chose, given back as it came (JSON-RPC 2.0 §4).
public enum ControlRequestID: Codable, Hashable, Sendable {
    case integer(Int64)
    /// Any other number; JSON-RPC advises against fractions and does not forbid them.
    case number(Decimal)
    /// At most ``Limits/idBytes`` in UTF-8.
    case string(String)
    case null

    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let integer = try? container.decode(Int64.self) {
            self = .integer(integer)
        } else if let number = try? container.decode(Decimal.self), number.isFinite {
            self = .number(number)
        } else {
            let text = try container.decode(String.self)
            guard text.utf8.count <= Limits.idBytes else {
                throw DecodingError.dataCorruptedError(
                    in: container, debugDescription: "an id is longer than \(Limits.idBytes) bytes")
            }
            self = .string(text)
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .integer(let integer): try container.encode(integer)
        case .number(let number): try container.encode(number)
        case .string(let text): try container.encode(text)
        case .null: try container.encodeNil()
        }
    }
}

/// What is known of a request before its parameters are read.
public struct ControlRequestHead: Decodable, Sendable {
    public var jsonrpc: String
    /// Nil: a notification, which gets no answer. `null` is an id as any other.
    public var id: ControlRequestID?
    public var method: String

    private enum CodingKeys: String, CodingKey { case jsonrpc, id, method }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        jsonrpc = try container.decode(String.self, forKey: .jsonrpc)
        id = container.contains(.id) ? try container.decode(ControlRequestID.self, forKey: .id) : nil
        method = try container.decode(String.self, forKey: .method)
    }
}

/// A response as it stands on one line: a result or an error.
public struct ControlResponse<Result: Codable & Sendable>: Codable, Sendable {
    public var jsonrpc = "2.0"
    /// Of the request; `null` where that is not known.
    public var id: ControlRequestID
    public var result: Result?
    public var error: ControlError?

    public init(id: ControlRequestID, result: Result) {
        self.id = id
        self.result = result
    }

    public init(id: ControlRequestID, error: ControlError) {
        self.id = id
        self.error = error
    }
}
