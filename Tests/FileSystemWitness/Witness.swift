import Glibc

/// Fills, uses and lists mounted file systems, here and in the virtual machine, by system calls alone. It shares no
/// code with Outboard.
///
///     FileSystemWitness fill DIRECTORY ABILITIES
///     FileSystemWitness busy DIRECTORY STEPS [gentle]
///     FileSystemWitness list DIRECTORY [SKIPPED…]
@main
enum Witness {
    static func main() {
        do {
            try run(Array(CommandLine.arguments.dropFirst()))
        } catch {
            let text = Array("witness: \(error)\n".utf8)
            _ = Glibc.write(2, text, text.count)
            exit(1)
        }
        fflush(nil)
    }

    private static func run(_ arguments: [String]) throws {
        umask(0o022)
        guard arguments.count >= 2 else { exit(64) }
        switch arguments[0] {
        case "fill":
            try TreeBuilder(
                abilities: Abilities(arguments.count > 2 ? arguments[2] : ""),
                root: Directory(path: arguments[1])
            ).build()
        case "busy":
            try BusyWriter(root: Directory(path: arguments[1]), isGentle: arguments.contains("gentle"))
                .run(limit: arguments.count > 2 ? Int(arguments[2]) ?? .max : .max)
        case "list":
            var listing = Listing(skipping: Set(arguments.dropFirst(2)))
            try listing.list(arguments[1])
        default: exit(64)
        }
    }
}
