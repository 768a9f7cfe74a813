import Blocks
import Glibc

/// A client that sends whatever it is told to, over a blocking unix socket.
public final class RawNBDClient: Sendable {
    public struct Failure: Error {
        public var errno: Int32
    }

    public struct Reply: Equatable, Sendable {
        public var cookie: UInt64
        public var error: UInt32 = 0
        /// nil: a simple reply.
        public var chunk: UInt16?
        public var data: [UInt8] = []

        public init(cookie: UInt64, error: UInt32 = 0, chunk: UInt16? = nil, data: [UInt8] = []) {
            (self.cookie, self.error, self.chunk, self.data) = (cookie, error, chunk, data)
        }
    }

    public let descriptor: Int32
    private let closed = Monitor(false)

    public init(_ path: String) throws {
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(descriptor, $0, size) }
        }
        guard result == 0 else {
            // Closed by `deinit`, which runs since all is set.
            throw Failure(errno: errno)
        }
    }

    deinit { close() }

    public func close() {
        closed.withLock { closed in
            if !closed { Glibc.close(descriptor) }
            closed = true
        }
    }

    public func send(_ bytes: [UInt8]) throws {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { throw Failure(errno: errno) }
            sent += count
        }
    }

    /// Nil at the end of the stream.
    public func receive(_ count: Int) throws -> [UInt8]? {
        var result = [UInt8](repeating: 0, count: count)
        var got = 0
        while got < count {
            let more = result.withUnsafeMutableBytes {
                recv(descriptor, $0.baseAddress! + got, count - got, 0)
            }
            if more == 0 { return nil }
            guard more > 0 else { throw Failure(errno: errno) }
            got += more
        }
        return result
    }

    /// Goes into transmission; with structured replies `base:allocation` is selected, too.
    public func negotiate(export: String = "", structured: Bool = true) throws {
        _ = try receive(18)
        var options: [(UInt32, [UInt8])] = []
        let name = Self.bytes { $0.integer(UInt32(export.utf8.count)) } + Array(export.utf8)
        if structured {
            options.append((8, []))
            let query = Array("base:allocation".utf8)
            options.append(
                (10, name + [0, 0, 0, 1] + Self.bytes { $0.integer(UInt32(query.count)) } + query))
        }
        options.append((7, name + [0, 0]))
        try send(
            Self.bytes { writer in
                writer.integer(UInt32(3))
                for (number, data) in options {
                    writer.integer(UInt64(0x4948_4156_454f_5054))
                    writer.integer(number)
                    writer.integer(UInt32(data.count))
                    writer.append(data)
                }
            })
        while true {
            guard let head = try receive(20) else { throw Failure(errno: EPIPE) }
            let (option, type, count) = head.withUnsafeBytes {
                (
                    $0.bigEndian(at: 8, as: UInt32.self), $0.bigEndian(at: 12, as: UInt32.self),
                    $0.bigEndian(at: 16, as: UInt32.self)
                )
            }
            _ = try receive(Int(count))
            if type >= 0x8000_0000 { throw Failure(errno: ENOENT) }
            if option == 7 && type == 1 { return }
        }
    }

    /// The next reply; `reading` bytes follow a simple one without error. Nil at the end of the stream.
    public func reply(reading: Int = 0) throws -> Reply? {
        guard let head = try receive(16) else { return nil }
        let (magic, word, cookie) = head.withUnsafeBytes {
            (
                $0.bigEndian(at: 0, as: UInt32.self), $0.bigEndian(at: 4, as: UInt32.self),
                $0.bigEndian(at: 8, as: UInt64.self)
            )
        }
        if magic == 0x6744_6698 {
            let data = word == 0 ? try receive(reading) ?? [] : []
            return Reply(cookie: cookie, error: word, data: data)
        }
        guard magic == 0x668e_33ef, word >> 16 == 1 else { throw Failure(errno: EPROTO) }
        let count = try receive(4)!.withUnsafeBytes { $0.bigEndian(at: 0, as: UInt32.self) }
        var reply = Reply(cookie: cookie, chunk: UInt16(word & 0xffff), data: try receive(Int(count)) ?? [])
        if reply.chunk == 0x8001 { reply.error = reply.data.withUnsafeBytes { $0.bigEndian(at: 0) } }
        return reply
    }

    private static func bytes(_ fill: (inout BigEndianWriter) -> Void) -> [UInt8] {
        var writer = BigEndianWriter()
        fill(&writer)
        return writer.bytes
    }

    /// A request's header. Types: 0 read, 1 write, 3 flush, 4 trim, 6 write zeroes.
    public static func request(
        _ type: UInt16, flags: UInt16 = 0, cookie: UInt64 = 1, offset: UInt64 = 0, length: UInt32 = 0,
        magic: UInt32 = 0x2560_9513
    ) -> [UInt8] {
        bytes {
            $0.integer(magic)
            $0.integer(flags)
            $0.integer(type)
            $0.integer(cookie)
            $0.integer(offset)
            $0.integer(length)
        }
    }
}
