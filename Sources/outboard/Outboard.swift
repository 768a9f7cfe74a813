import ArgumentParser

@main
struct Outboard: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Consistent duplicates of volumes in use, made outboard.")
}
