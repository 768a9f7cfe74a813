import Blocks

/// An option that is answered with an error.
struct OptionError: Error {
    var reply: OptionReply
    var message: String

    init(_ reply: OptionReply, _ message: String) {
        self.reply = reply
        self.message = message
    }

    static func invalid(_ message: String) -> OptionError { OptionError(.errorInvalid, message) }
}

/// Reads an option's data; what does not fit is NBD_REP_ERR_INVALID.
private struct OptionReader {
    private var reader: BigEndianReader

    init(_ data: UnsafeRawBufferPointer) { reader = BigEndianReader(data) }

    mutating func integer<T: FixedWidthInteger>(_: T.Type = T.self) throws(OptionError) -> T {
        do { return try reader.integer(T.self) } catch { throw .invalid("the option's data end too early") }
    }

    mutating func string() throws(OptionError) -> String {
        let count = Int(try integer(UInt32.self))
        let bytes: UnsafeRawBufferPointer
        do { bytes = try reader.bytes(count) } catch { throw .invalid("the option's data end too early") }
        return try Self.text(bytes)
    }

    func end() throws(OptionError) {
        guard reader.remaining == 0 else { throw .invalid("the option's data are longer than they say") }
    }

    static func text(_ bytes: UnsafeRawBufferPointer) throws(OptionError) -> String {
        guard bytes.count <= NBDLimits.maximumString else {
            throw OptionError(.errorTooBig, "a string has at most \(NBDLimits.maximumString) bytes")
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw .invalid("a string is not UTF-8")
        }
        return text
    }
}

extension Handshake {
    private func find(_ name: String) throws(OptionError) -> NBDExport {
        guard let export = provider.export(named: name) else {
            throw OptionError(.errorUnknown, "there is no export of this name")
        }
        return export
    }

    private func flags(_ export: NBDExport) -> UInt16 {
        TransmissionFlags(of: export.store.capabilities, structuredReplies: structuredReplies).rawValue
    }

    mutating func exportName(_ data: UnsafeRawBufferPointer) throws(OptionError) -> Action {
        let export = try find(try OptionReader.text(data))
        var writer = BigEndianWriter()
        writer.integer(export.store.size)
        writer.integer(flags(export))
        if !noZeroes { writer.zeros(124) }
        return begin(writer.bytes, export)
    }

    func list(_ data: UnsafeRawBufferPointer) throws(OptionError) -> [UInt8] {
        guard data.isEmpty else { throw .invalid("LIST takes no data") }
        var replies: [UInt8] = []
        for export in provider.exports() {
            var writer = BigEndianWriter()
            writer.integer(UInt32(export.name.utf8.count))
            writer.append(export.name.utf8)
            writer.append(export.description.utf8)
            replies += Self.reply(.list, .server, writer.bytes)
        }
        return replies + Self.reply(.list, .ack)
    }

    mutating func infoOrGo(_ option: Option, _ data: UnsafeRawBufferPointer) throws(OptionError) -> Action {
        var reader = OptionReader(data)
        let name = try reader.string()
        var wanted: Set<InfoType> = []
        for _ in 0..<(try reader.integer(UInt16.self)) {
            // Kinds of information that are not known are not given.
            if let type = InfoType(rawValue: try reader.integer()) { wanted.insert(type) }
        }
        try reader.end()
        let export = try find(name)
        var replies = info(option, .export) {
            $0.integer(export.store.size)
            $0.integer(flags(export))
        }
        if wanted.contains(.name) { replies += info(option, .name) { $0.append(export.name.utf8) } }
        if wanted.contains(.description), !export.description.isEmpty {
            replies += info(option, .description) { $0.append(export.description.utf8) }
        }
        if wanted.contains(.blockSize) {
            replies += info(option, .blockSize) {
                $0.integer(NBDLimits.minimumBlockSize)
                $0.integer(NBDLimits.preferredBlockSize)
                $0.integer(NBDLimits.maximumPayload)
            }
        }
        replies += Self.reply(option, .ack)
        return option == .go ? begin(replies, export) : .send(replies)
    }

    private func info(_ option: Option, _ type: InfoType, _ fill: (inout BigEndianWriter) -> Void) -> [UInt8]
    {
        var writer = BigEndianWriter()
        writer.integer(type.rawValue)
        fill(&writer)
        return Self.reply(option, .info, writer.bytes)
    }

    mutating func metaContext(_ option: Option, _ data: UnsafeRawBufferPointer) throws(OptionError) -> [UInt8]
    {
        if option == .setMetaContext {
            // Whatever comes of this SET, it ends what an earlier one selected.
            selectedContextExport = nil
            guard structuredReplies else { throw .invalid("negotiate structured replies first") }
        }
        var reader = OptionReader(data)
        let export = try find(try reader.string())
        let count = try reader.integer(UInt32.self)
        // No query at all lists everything but selects nothing.
        var matches = option == .listMetaContext && count == 0
        for _ in 0..<count {
            let query = try reader.string()
            matches = matches || query == AllocationState.context
            matches = matches || (option == .listMetaContext && query == "base:")
        }
        try reader.end()
        guard matches else { return Self.reply(option, .ack) }
        if option == .setMetaContext { selectedContextExport = export.name }
        var writer = BigEndianWriter()
        writer.integer(option == .setMetaContext ? AllocationState.contextID : 0)
        writer.append(AllocationState.context.utf8)
        return Self.reply(option, .metaContext, writer.bytes) + Self.reply(option, .ack)
    }
}
