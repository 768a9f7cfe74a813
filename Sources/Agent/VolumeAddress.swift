import Foundation

/// Where processes that read file systems find a volume.
public struct VolumeAddress: Hashable, Sendable {
    /// A unix socket on which an NBD server serves it.
    public var socket: String
    /// The export's name.
    public var export: String

    public init(socket: String, export: String = "") {
        self.socket = socket
        self.export = export
    }

    /// As libnbd takes it.
    public var uri: String { "nbd+unix:///\(export.uriEncoded)?socket=\(socket.uriEncoded)" }
}

extension String {
    /// As the value of a URI's query.
    fileprivate var uriEncoded: String {
        addingPercentEncoding(
            withAllowedCharacters: .urlPathAllowed.subtracting(CharacterSet(charactersIn: "&+")))
            ?? self
    }
}
