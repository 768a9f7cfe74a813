import Foundation
import Yams

/// `bridge.yaml`: read strictly, because what is misspelt or misunderstood here lets somebody write what he must not.
/// Every complaint tells the line.
struct BridgeFile {
    private let path: String

    /// Sets in `settings` what the file at `path` says. Relative paths in it are relative to it.
    static func read(_ path: String, into settings: inout BridgeSettings) throws {
        let text = try SecretFile.read(path, for: "the configuration", nobodyElseMay: .write)
        let file = BridgeFile(path: path)
        let root: Node?
        do { root = try compose(yaml: text) } catch { throw file.wrong(Self.words(for: error)) }
        guard let root else { throw file.wrong("it is empty") }
        try file.settings(root, &settings)
    }

    /// Without the text itself, in which somebody may have written a secret.
    private static func words(for error: any Error) -> String {
        switch error as? YamlError {
        case .scanner(_, let problem, let mark, _), .parser(_, let problem, let mark, _),
            .composer(_, let problem, let mark, _):
            "line \(mark.line): \(problem)"
        case .reader(let problem, _, _, _): problem
        case .duplicatedKeysInMapping: "a key stands there twice"
        default: "it is not YAML"
        }
    }

    private func wrong(_ why: String, at node: Node? = nil) -> Failure {
        let place = node?.mark.map { "line \($0.line): " } ?? ""
        return Failure(
            .usage, "cannot use the configuration \(path): \(place)\(why); see outboard bridge --help")
    }

    private func settings(_ root: Node, _ settings: inout BridgeSettings) throws {
        var map = try Fields(
            root, of: "the file",
            ["portal", "portals", "target", "chap_file", "initiators", "units", "state"],
            self)
        if let one = map.node("portal") {
            if map.node("portals") != nil {
                throw wrong("'portal' and 'portals' say the same; leave one out", at: one)
            }
            settings.portals = [try portal(one)]
        }
        if let several = map.node("portals") {
            settings.portals = try list(several, "portals").map(portal)
            if settings.portals.isEmpty { throw wrong("'portals' names none", at: several) }
        }
        if let target = try map.string("target") { settings.target = target }
        settings.chapFile = try map.string("chap_file").map(resolved)
        settings.stateDirectory = try map.string("state").map(resolved)
        if let node = map.node("initiators") {
            if settings.chapFile != nil {
                throw wrong(
                    "with 'initiators' each has its own chap_file; leave the common one out", at: node)
            }
            settings.initiators = try list(node, "initiators").map(initiator)
            var seen: Set<String> = []
            for (index, one) in (settings.initiators ?? []).enumerated() {
                guard seen.insert(one.name.lowercased()).inserted else {
                    throw wrong("initiator \(one.name) stands there twice", at: node.sequence?[index])
                }
            }
        }
        if let node = map.node("units") {
            settings.units = try list(node, "units").map { try unit($0, settings.initiators) }
        }
    }

    private func portal(_ node: Node) throws -> Endpoint {
        guard let text = node.scalar?.string, let portal = Endpoint(argument: text) else {
            throw wrong("portal '\(node.scalar?.string ?? "")' is not ADDRESS:PORT", at: node)
        }
        return portal
    }

    private func initiator(_ node: Node) throws -> BridgeSettings.Initiator {
        var map = try Fields(node, of: "an initiator", ["name", "chap_file"], self)
        guard let name = try map.string("name") else { throw wrong("an initiator without a name", at: node) }
        return BridgeSettings.Initiator(name: name, chapFile: try map.string("chap_file").map(resolved))
    }

    private func unit(_ node: Node, _ known: [BridgeSettings.Initiator]?) throws -> UnitArgument {
        var map = try Fields(
            node, of: "a unit",
            ["number", "path", "block_size", "physical_block_size", "read_only", "thin", "initiators"], self)
        guard let number = try map.integer("number") else { throw wrong("a unit without a number", at: node) }
        guard let path = try map.string("path") else { throw wrong("a unit without a path", at: node) }
        var unit = UnitArgument(
            number: number, path: resolved(path), readOnly: try map.boolean("read_only") ?? false)
        if let size = try bytes("block_size", &map) { unit.blockSize = size }
        unit.physicalBlockSize = try bytes("physical_block_size", &map)
        unit.isThin = try map.boolean("thin")
        if unit.readOnly, unit.isThin == true {
            throw wrong("a read-only unit gives nothing back; leave 'thin' out", at: map.node("thin"))
        }
        if let names = map.node("initiators") {
            unit.initiators = try list(names, "initiators").map { name in
                guard let text = name.scalar?.string,
                    let known = known?.first(where: { $0.name.lowercased() == text.lowercased() })
                else {
                    throw wrong(
                        "'\(name.scalar?.string ?? "")' is not among the initiators of the file", at: name)
                }
                return known.name
            }
        }
        return unit
    }

    private func bytes(_ key: String, _ map: inout Fields) throws -> UInt32? {
        guard let size = try map.integer(key) else { return nil }
        guard let size = UInt32(exactly: size), size > 0 else {
            throw wrong("\(key) \(size) is out of range", at: map.node(key))
        }
        return size
    }

    private func list(_ node: Node, _ name: String) throws -> [Node] {
        guard let sequence = node.sequence else { throw wrong("'\(name)' is not a list", at: node) }
        return Array(sequence)
    }

    private func resolved(_ path: String) -> String {
        let base = URL(fileURLWithPath: absolutePath(self.path)).deletingLastPathComponent()
        return URL(fileURLWithPath: path, relativeTo: base).path
    }

    /// A mapping of which every key is known.
    private struct Fields {
        let file: BridgeFile
        private var values: [String: Node] = [:]

        init(_ node: Node, of what: String, _ known: Set<String>, _ file: BridgeFile) throws {
            self.file = file
            guard let mapping = node.mapping else {
                throw file.wrong("\(what) is not made of `key: value`", at: node)
            }
            for (key, value) in mapping {
                guard let name = key.scalar?.string, known.contains(name) else {
                    throw file.wrong(
                        "\(what) has an unknown key '\(key.scalar?.string ?? "")' (known: "
                            + known.sorted().joined(separator: ", ") + ")", at: key)
                }
                values[name] = value
            }
        }

        func node(_ key: String) -> Node? { values[key] }

        mutating func string(_ key: String) throws -> String? {
            guard let node = values[key] else { return nil }
            guard let text = node.scalar?.string, !text.isEmpty, node.null == nil else {
                throw file.wrong("'\(key)' is not a text", at: node)
            }
            return text
        }

        mutating func integer(_ key: String) throws -> Int? {
            guard let node = values[key] else { return nil }
            guard let number = node.int else { throw file.wrong("'\(key)' is not a number", at: node) }
            return number
        }

        mutating func boolean(_ key: String) throws -> Bool? {
            guard let node = values[key] else { return nil }
            guard let value = node.bool else {
                throw file.wrong("'\(key)' is neither true nor false", at: node)
            }
            return value
        }
    }
}
