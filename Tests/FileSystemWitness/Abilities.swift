/// What a file system can hold. The builder makes all that is named here, and fails when it cannot.
struct Abilities {
    enum Names: String {
        /// Any byte but `/`.
        case bytes
        /// Any character but `/`.
        case characters
        /// What Windows allows.
        case windows
    }

    var names = Names.windows
    /// Of a name, in bytes or (where names are characters) UTF-16 units.
    var longestName = 255
    var symbolicLinks = false
    var hardLinks = false
    var devices = false
    var owners = false
    /// Size of the largest sparse file; 0: there are none.
    var sparse = 0
    /// fallocate(2): extents without data.
    var unwritten = false
    /// Bytes of the largest extended attribute; 0: there are none.
    var attributeBytes = 0
    var accessLists = false
    /// NTFS, by ntfs-3g with its streams as extended attributes.
    var streams = false
    /// Entries of the largest directory.
    var entries = 1000
    var depth = 200
    var earliest = 315_532_800
    var latest = 2_147_483_647

    /// `NAME` or `NAME=VALUE`, separated by commas.
    init(_ text: String) throws {
        for word in text.split(separator: ",") {
            let pair = word.split(separator: "=", maxSplits: 1)
            let value = pair.count == 2 ? String(pair[1]) : ""
            let number = Int(value) ?? 0
            switch pair[0] {
            case "names":
                guard let names = Names(rawValue: value) else {
                    throw Failure("names", Array(value.utf8), 22)
                }
                self.names = names
            case "longest-name": longestName = number
            case "symbolic-links": symbolicLinks = true
            case "hard-links": hardLinks = true
            case "devices": devices = true
            case "owners": owners = true
            case "sparse": sparse = number
            case "unwritten": unwritten = true
            case "attributes": attributeBytes = number
            case "access-lists": accessLists = true
            case "streams": streams = true
            case "entries": entries = number
            case "depth": depth = number
            case "earliest": earliest = number
            case "latest": latest = number
            default: throw Failure("ability", Array(pair[0].utf8), 22)
            }
        }
    }
}
