import Blocks
import Glibc
import PhysicalCopy

/// The directory that a group's copies lie in: made when it is not there, and taken away again when the copies fail.
struct GroupDirectory {
    private var made: String?

    /// Makes the directory that the members share, durably: after a power cut copies that were told to be complete are nowhere
    /// without it. One copy alone lies beside what was there before.
    mutating func make(
        for members: [CopyRequest.Member], _ files: FileSystemCalls
    ) throws(AgentError) {
        guard members.count > 1, let slash = members[0].destination.lastIndex(of: "/") else { return }
        let path = String(members[0].destination[..<slash])
        guard !path.isEmpty else { return }
        switch files.mkdirat(FileSystemCalls.noDirectory, path, 0o755) {
        case .success: made = path
        case .failure(Errno(EEXIST)): break
        case .failure(let error):
            throw AgentError.system(
                error.code, doing: "making the directory of the copies", to: path, otherwise: .cannotCreate)
        }
        // Also of one that was there: who made it may have died before this.
        try onCopy { () throws(CopyError) in try files.synchronizeDirectory(Self.parent(of: path)) }
    }

    private static func parent(of path: String) -> String {
        let names = path.split(separator: "/")
        let parent = names.dropLast().joined(separator: "/")
        return path.hasPrefix("/") ? "/" + parent : parent.isEmpty ? "." : parent
    }

    /// Only an empty one goes: what else came into it meanwhile is somebody's.
    func removeIfMade(_ files: FileSystemCalls) {
        if let made { _ = files.unlinkat(FileSystemCalls.noDirectory, made, AT_REMOVEDIR) }
    }
}
