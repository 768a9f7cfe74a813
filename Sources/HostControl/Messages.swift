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

/// What is known of a request before its parameters are read.
public struct ControlRequestHead: Decodable, Sendable {
    public var jsonrpc: String
    public var id: Int?
    public var method: String
}

/// A response as it stands on one line: a result or an error.
public struct ControlResponse<Result: Codable & Sendable>: Codable, Sendable {
    public var jsonrpc = "2.0"
    public var id: Int?
    public var result: Result?
    public var error: ControlError?

    public init(id: Int?, result: Result) {
        self.id = id
        self.result = result
    }

    public init(id: Int?, error: ControlError) {
        self.id = id
        self.error = error
    }
}
