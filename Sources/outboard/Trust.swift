import AsyncIO
import Blocks

/// Names that are believed, or written by, only where nobody else can change what they lead to (``Blocks/PathTrust``).
/// The threat model says which, and why.
enum Trust {
    /// - Parameter use: what is done with the path: "use the cache".
    /// - Throws: 77.
    static func require(_ path: String, to use: String) throws {
        guard let flaw = PathTrust.flaw(of: path) else { return }
        throw Failure(
            .notPermitted,
            "refusing to \(use) \(path): \(flaw), who could put something else there; choose a place where only "
                + "root and this user may change names")
    }

    /// What an original image cache holds decides what copies hold, and it is as secret as the volume.
    /// - Returns: what an administrator should know.
    /// - Throws: 77.
    static func requireCache(_ cache: StorageFile) throws -> String? {
        func refused(_ why: String, _ advice: String) -> Failure {
            Failure(
                .notPermitted, "refusing to use the original image cache \(cache.path): \(why); \(advice)")
        }
        guard PathTrust.isTrusted(owner: cache.owner) else {
            throw refused(
                "it belongs to user \(cache.owner), who could change what copies will hold",
                "give it to the host's user, or name another --cache")
        }
        // A device's group has all devices of the machine.
        let others: UInt32 = cache.isBlockDevice ? 0o002 : 0o022
        guard cache.permissions & others == 0 else {
            throw refused("others than its owner may write it", "chmod 600 \(cache.path)")
        }
        let readers: UInt32 = cache.isBlockDevice ? 0o004 : 0o044
        guard cache.permissions & readers != 0 else { return nil }
        return
            "others than its owner may read the cache \(cache.path), and with it what was on the volume; chmod 600 it"
    }
}
