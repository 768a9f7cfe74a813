import Foundation

/// What the fuzzer may be pointed at; `OUTBOARD_FUZZ_TARGET` says which.
enum FuzzTarget: String, CaseIterable {
    /// Bytes on a connection: PDUs before, in and after login.
    case pdu
    /// Text of login requests.
    case login
    /// CDBs with their data, to a device of several units.
    case cdb
    /// EXTENDED COPY parameter lists.
    case copy
    /// Patches of an XFS, read for its table of contents.
    case xfs
    /// The same of ext file systems, as far as that is ours.
    case ext
    /// Of an ISO 9660.
    case iso
    /// Of an HFS+.
    case hfs
    /// Of partition tables.
    case layout
    /// An original image cache.
    case log
    /// A copy's manifest.
    case manifest
    /// A table of contents, as a file.
    case toc
    /// Lines of a host's control socket.
    case control
    /// A backup's stream.
    case stream
    /// Bytes of an NBD client.
    case nbd

    static let chosen: FuzzTarget = {
        let name = ProcessInfo.processInfo.environment["OUTBOARD_FUZZ_TARGET"] ?? ""
        guard let target = FuzzTarget(rawValue: name) else {
            let names = allCases.map(\.rawValue).joined(separator: ", ")
            FileHandle.standardError.write(Data("OUTBOARD_FUZZ_TARGET is none of: \(names)\n".utf8))
            exit(64)
        }
        return target
    }()

    func run(_ input: [UInt8]) {
        switch self {
        case .pdu: fuzzPDUs(input)
        case .login: fuzzLogin(input)
        case .cdb: fuzzCommands(input)
        case .copy: fuzzCopy(input)
        case .xfs: fuzzXFS(input)
        case .ext: fuzzExt(input)
        case .iso: fuzzISO(input)
        case .hfs: fuzzHFS(input)
        case .layout: fuzzLayout(input)
        case .log: fuzzLog(input)
        case .manifest: fuzzManifest(input)
        case .toc: fuzzToc(input)
        case .control: fuzzControl(input)
        case .stream: fuzzStream(input)
        case .nbd: fuzzNBD(input)
        }
    }
}

/// libFuzzer's entry: it calls this for every input. What is wrong traps.
@_cdecl("LLVMFuzzerTestOneInput")
public func testOneInput(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    FuzzTarget.chosen.run(Array(UnsafeBufferPointer(start: bytes, count: count)))
    return 0
}

/// An input taken apart from its front; zeros behind its end.
struct FuzzInput {
    private var rest: ArraySlice<UInt8>

    init(_ bytes: [UInt8]) { rest = bytes[...] }

    var isEmpty: Bool { rest.isEmpty }
    mutating func byte() -> UInt8 { rest.popFirst() ?? 0 }
    mutating func half() -> Int { Int(byte()) << 8 | Int(byte()) }

    /// At most `count` bytes: as many as there are.
    mutating func bytes(_ count: Int) -> [UInt8] {
        defer { rest = rest.dropFirst(count) }
        return Array(rest.prefix(count))
    }

    mutating func all() -> [UInt8] { bytes(rest.count) }
}
