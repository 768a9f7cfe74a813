import HostControl

/// Whether file systems can stand still while the instant is made. A host whose source or cache lies on one of them
/// would wait for the thaw, and the thaw, which comes after the host's answer, for the host.
struct FreezeCheck {
    let members: [CopyMember]
    /// The number of the file system that something lies on.
    let fileSystem: (String) throws(AgentError) -> UInt64

    /// Nothing is stopped yet.
    /// - Throws: 64 when one carries what a copy needs, 66 when one is not there.
    func run(_ mountPoints: [String]) throws(AgentError) {
        for mountPoint in mountPoints {
            let frozen = try fileSystem(mountPoint)
            for member in members {
                for (what, path) in needed(member) where try fileSystem(path) == frozen {
                    throw AgentError(
                        .usage, doing: "freezing", to: mountPoint,
                        because:
                            "\(what) \(path) is on that file system, and must be written while it is frozen",
                        advice: "move that to another file system, or leave out --freeze")
                }
            }
        }
    }

    private func needed(_ member: CopyMember) -> [(what: String, path: String)] {
        let destination = member.draft.destination
        let slash = destination.lastIndex(of: "/") ?? destination.startIndex
        let parent = destination[..<slash].isEmpty ? "/" : String(destination[..<slash])
        return [
            ("the source", member.status.source), ("the original image cache", member.status.cache),
            ("the host's control socket", member.line.path), ("the copy's directory", parent),
        ]
    }
}
