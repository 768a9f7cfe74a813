import Glibc
import TableOfContents

/// Gives a restored file what the table of contents knows of it, as far as the user may: owner and group, extended
/// attributes, mode, access control lists, times; in this order, because each may change what was set before it.
struct FileMetadata {
    var node: FileNode
    var attributes: [ExtendedAttribute]

    /// What could not be kept.
    struct Losses: OptionSet, Hashable {
        let rawValue: Int
        static let owner = Losses(rawValue: 1)
        static let mode = Losses(rawValue: 2)
        static let attributes = Losses(rawValue: 4)
        static let times = Losses(rawValue: 8)
        /// Set-user-ID and set-group-ID were left out, because the owner could not be set.
        static let setID = Losses(rawValue: 16)
    }

    /// Of the process; asking for it changes it for a moment.
    private static let mask: mode_t = {
        let mask = umask(0o077)
        umask(mask)
        return mask
    }()

    private static let accessList = "system.posix_acl_access"
    private static let defaultList = "system.posix_acl_default"
    private static let foreign = "osx."

    /// - Parameter descriptor: of a file or directory, opened to be read.
    func apply(to descriptor: Int32) -> Losses {
        var losses = setOwner { fchown(descriptor, $0, $1) }
        let isOwned = !losses.contains(.owner)
        for attribute in attributes where !Self.isList(attribute) {
            guard isOwned || !Self.needsOwner(attribute) else {
                losses.insert(.setID)
                continue
            }
            if !set(attribute, { FileCalls.setAttribute(descriptor, $0, $1) }) { losses.insert(.attributes) }
        }
        if let mode = mode(isOwned, &losses), fchmod(descriptor, mode) != 0 { losses.insert(.mode) }
        // A list that was inherited from the directory here is not the file's.
        for name in [Self.accessList, Self.defaultList]
        where !attributes.contains(where: { $0.name.elementsEqual(name.utf8) }) {
            _ = FileCalls.removeAttribute(descriptor, name)
        }
        for attribute in attributes where Self.isList(attribute) {
            if !set(attribute, { FileCalls.setAttribute(descriptor, $0, $1) }) { losses.insert(.attributes) }
        }
        let times = times
        if futimens(descriptor, times) != 0 { losses.insert(.times) }
        return losses
    }

    /// For what cannot be opened: symbolic links, devices, fifos.
    func apply(to name: [CChar], in directory: Int32) -> Losses {
        let isLink = node.kind == .symbolicLink
        let descriptor = openat(directory, name, FileCalls.pathOnly | O_NOFOLLOW | O_CLOEXEC)
        guard descriptor >= 0 else { return [.owner, .times] }
        defer { close(descriptor) }
        var losses = setOwner { fchownat(descriptor, "", $0, $1, FileCalls.emptyPath) }
        let isOwned = !losses.contains(.owner)
        if !isLink, let mode = mode(isOwned, &losses), chmod("/proc/self/fd/\(descriptor)", mode) != 0 {
            losses.insert(.mode)
        }
        let shown = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        for attribute in attributes {
            let path = "/proc/self/fd/\(directory)/\(shown)"
            if !set(attribute, { FileCalls.setAttribute(path: path, $0, $1) }) { losses.insert(.attributes) }
        }
        if utimensat(directory, name, times, AT_SYMLINK_NOFOLLOW) != 0 { losses.insert(.times) }
        return losses
    }

    private var times: [timespec] {
        [node.accessed, node.modified].map { time in
            guard let time else { return timespec(tv_sec: 0, tv_nsec: FileCalls.omitTime) }
            return timespec(tv_sec: Int(time.seconds), tv_nsec: Int(time.nanoseconds))
        }
    }

    private func setOwner(_ change: (uid_t, gid_t) -> Int32) -> Losses {
        guard let owner = node.owner, let group = node.group, owner != .max, group != .max else {
            return node.owner == nil && node.group == nil ? [] : .owner
        }
        if change(owner, group) == 0 { return [] }
        // A group of one's own may be given.
        _ = change(.max, group)
        return .owner
    }

    private func mode(_ isOwned: Bool, _ losses: inout Losses) -> mode_t? {
        guard var permissions = node.permissions.map({ mode_t($0) & 0o7777 }) else {
            return (node.kind == .directory ? 0o777 : 0o666) & ~Self.mask
        }
        if !isOwned, permissions & 0o6000 != 0, node.kind != .directory {
            permissions &= ~0o6000
            losses.insert(.setID)
        }
        return permissions
    }

    private static func isList(_ attribute: ExtendedAttribute) -> Bool {
        attribute.name.elementsEqual(accessList.utf8) || attribute.name.elementsEqual(defaultList.utf8)
    }

    private static func needsOwner(_ attribute: ExtendedAttribute) -> Bool {
        attribute.name.elementsEqual("security.capability".utf8)
    }

    /// Linux has a namespace for what HFS+ has in none, and no other file system takes that.
    private func set(_ attribute: ExtendedAttribute, _ call: ([CChar], [UInt8]) -> Int32) -> Bool {
        if call(attribute.name.cString, attribute.value) == 0 { return true }
        guard attribute.name.starts(with: Self.foreign.utf8) else { return false }
        let name = Array("user.".utf8) + attribute.name.dropFirst(Self.foreign.utf8.count)
        return call(name.cString, attribute.value) == 0
    }
}
