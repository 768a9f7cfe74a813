import Foundation
import TestSupport

/// What the witness listed of a tree.
struct TreeListing {
    /// What of an entry is compared. Kind, content and target always are; so is which names are the same file, where
    /// there are links.
    struct Fields: OptionSet, Sendable {
        let rawValue: Int
        /// Mode, owner, group and device.
        static let owner = Fields(rawValue: 1)
        static let links = Fields(rawValue: 2)
        static let modified = Fields(rawValue: 4)
        static let accessed = Fields(rawValue: 8)
        /// Extended attributes, access control lists among them.
        static let attributes = Fields(rawValue: 16)
        static let posix: Fields = [.owner, .links, .modified, .accessed, .attributes]
        static let windows: Fields = [.links, .modified, .accessed]
        static let fat: Fields = [.modified]
    }

    struct Entry {
        var fields: [Substring: Substring] = [:]
        subscript(name: Substring) -> Substring { fields[name] ?? "" }
        var isDirectory: Bool { self["kind"] == "directory" }

        /// Extended attributes. Those of HFS+ that are in no namespace are the user's where they are restored to; of
        /// what the Finder keeps Linux makes up a type for every file; XFS shows its lists' own form beside the lists.
        var attributes: [String: Substring] {
            var found: [String: Substring] = [:]
            for (name, value) in fields where name.hasPrefix("xattr") {
                if name.hasSuffix("com.apple.FinderInfo") || name.hasPrefix("xattr:trusted.SGI_ACL_") {
                    continue
                }
                found[name.replacingOccurrences(of: "xattr:osx.", with: "xattr:user.")] = value
            }
            return found
        }
    }

    /// By the path, encoded as the witness does.
    private(set) var entries: [String: Entry] = [:]

    /// Lists a mounted tree.
    init(of directory: String, skipping: [String] = []) throws {
        self.init(text: try Witness.run(["list", directory] + skipping).output)
    }

    init(text: String) {
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            var entry = Entry()
            for word in words.dropFirst() {
                let pair = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
                entry.fields[pair[0]] = pair.count == 2 ? pair[1] : ""
            }
            entries[String(words[0])] = entry
        }
    }

    var count: Int { entries.count }

    /// The first differences from what it should be, none when it is.
    func differences(
        from expected: TreeListing, in fields: Fields, ignoring: (String) -> Bool = { _ in false }
    )
        -> [String]
    {
        var found: [String] = []
        for (path, entry) in expected.entries where !ignoring(path) {
            guard let mine = entries[path] else {
                found.append("\(path): missing")
                continue
            }
            for name in Self.names(of: entry, fields) where mine[name] != entry[name] {
                found.append("\(path): \(name) is '\(mine[name])' and not '\(entry[name])'")
            }
            guard fields.contains(.attributes) else { continue }
            let (mineToo, expectedToo) = (mine.attributes, entry.attributes)
            for name in Set(mineToo.keys).union(expectedToo.keys) where mineToo[name] != expectedToo[name] {
                found.append(
                    "\(path): \(name) is '\(mineToo[name] ?? "")' and not '\(expectedToo[name] ?? "")'")
            }
        }
        for path in entries.keys where expected.entries[path] == nil && !ignoring(path) {
            found.append("\(path): not expected")
        }
        return found.sorted()
    }

    private static func names(of entry: Entry, _ fields: Fields) -> [Substring] {
        var names: [Substring] = ["kind", "target", "hash"]
        if entry["kind"] == "file" || entry["kind"] == "link" { names.append("size") }
        if fields.contains(.owner) { names += ["mode", "owner", "group", "device"] }
        // What a directory's count means is the file system's own matter.
        if fields.contains(.links), !entry.isDirectory { names += ["links", "same"] }
        if fields.contains(.modified) { names.append("modified") }
        if fields.contains(.accessed) { names.append("accessed") }
        return names
    }
}

/// A list that is short enough to be read.
func brief(_ differences: [String]) -> String {
    "\(differences.count) differences:\n" + differences.prefix(20).joined(separator: "\n")
}
