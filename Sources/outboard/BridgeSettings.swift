import Foundation
import ISCSI
import Yams

/// What a bridge is told, by options and by `bridge.yaml`.
struct BridgeSettings {
    static let defaultTarget = "iqn.2026-01.net.outboard:bridge"
    /// Bytes of a configuration or CHAP file.
    private static let fileBytes = 64 << 10

    var portal = Endpoint(host: "127.0.0.1", port: 3260)
    var target = BridgeSettings.defaultTarget
    var chapFile: String?
    var units: [UnitArgument] = []
    /// Whether it serves the agent that started it, and nobody else.
    var isPrivate = false

    init() {}

    private struct File: Decodable {
        var portal: String?
        var target: String?
        var chapFile: String?
        var units: [Unit]?

        struct Unit: Decodable {
            var number: Int
            var path: String
            var readOnly: Bool?
            enum CodingKeys: String, CodingKey, CaseIterable {
                case number, path
                case readOnly = "read_only"
            }
        }

        enum CodingKeys: String, CodingKey, CaseIterable {
            case portal, target, units
            case chapFile = "chap_file"
        }
    }

    /// Reads `bridge.yaml`. Relative paths in it are relative to it.
    init(readingFile path: String) throws {
        let text = try Self.read(path, for: "the configuration")
        let file: File
        do {
            try Self.refuseUnknownKeys(text, path)
            file = try YAMLDecoder().decode(File.self, from: text)
        } catch let failure as Failure {
            throw failure
        } catch {
            throw Failure(
                .usage, "cannot use the configuration \(path): \(error); see outboard bridge --help")
        }
        let base = URL(fileURLWithPath: absolutePath(path)).deletingLastPathComponent()
        func resolved(_ path: String) -> String { URL(fileURLWithPath: path, relativeTo: base).path }
        if let text = file.portal {
            guard let portal = Endpoint(argument: text) else {
                throw Failure(
                    .usage, "cannot use the configuration \(path): portal '\(text)' is not ADDRESS:PORT")
            }
            self.portal = portal
        }
        if let target = file.target { self.target = target }
        chapFile = file.chapFile.map(resolved)
        units = (file.units ?? []).map {
            UnitArgument(number: $0.number, path: resolved($0.path), readOnly: $0.readOnly ?? false)
        }
    }

    /// A misspelt `read_only` must not make a unit writable.
    private static func refuseUnknownKeys(_ text: String, _ path: String) throws {
        guard let root = try compose(yaml: text)?.mapping else { return }
        let top = Set(File.CodingKeys.allCases.map(\.rawValue))
        let unit = Set(File.Unit.CodingKeys.allCases.map(\.rawValue))
        let units = root["units"]?.sequence.map { Array($0) } ?? []
        let unknown =
            root.keys.compactMap(\.string).filter { !top.contains($0) }
            + units.flatMap { $0.mapping?.keys.compactMap(\.string) ?? [] }.filter { !unit.contains($0) }
        if let first = unknown.first {
            throw Failure(
                .usage,
                "cannot use the configuration \(path): it has an unknown key '\(first)'; "
                    + "see outboard bridge --help")
        }
    }

    private static func read(_ path: String, for what: String) throws -> String {
        guard let handle = FileHandle(forReadingAtPath: path) else {
            let reason = String(cString: strerror(errno))
            throw Failure(
                errno == EACCES ? .notPermitted : .missing, "cannot read \(what) \(path): \(reason)")
        }
        defer { handle.closeFile() }
        do {
            let data = try handle.read(upToCount: fileBytes + 1) ?? Data()
            guard data.count <= fileBytes else {
                throw Failure(.usage, "cannot read \(what) \(path): it has more than \(fileBytes) bytes")
            }
            return String(decoding: data, as: UTF8.self)
        } catch let failure as Failure {
            throw failure
        } catch { throw Failure(.io, "cannot read \(what) \(path): \(error)") }
    }

    /// Name and secret from the CHAP file, which must be its owner's alone.
    func credentials() throws -> CHAPCredentials? {
        guard let path = chapFile else { return nil }
        var status = stat()
        if stat(path, &status) == 0, status.st_mode & 0o077 != 0 {
            throw Failure(
                .notPermitted,
                "cannot use the CHAP file \(path): others than its owner may use it; chmod 600 \(path)")
        }
        let text = try Self.read(path, for: "the CHAP file")
        let line = text.prefix { !$0.isNewline }
        let fields = line.split(maxSplits: 1) { $0 == " " || $0 == "\t" || $0 == ":" }
        guard fields.count == 2 else {
            throw Failure(.usage, "cannot use the CHAP file \(path): its first line is not `name secret`")
        }
        let secret = fields[1].trimmingCharacters(in: .whitespaces)
        do throws(CHAPCredentials.Invalid) {
            return try CHAPCredentials(name: String(fields[0]), secret: Array(secret.utf8))
        } catch {
            let reason =
                switch error {
                case .secretTooShort: "the secret has less than \(ISCSILimits.chapSecret) bytes"
                case .nameMissing: "the name is missing"
                case .sameSecretBothWays: "both directions share a secret"
                }
            throw Failure(.usage, "cannot use the CHAP file \(path): \(reason)")
        }
    }
}
