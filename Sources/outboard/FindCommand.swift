import ArgumentParser
import TableOfContents

struct FindCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "find", abstract: "Find files of a copy by their names.",
        discussion: """
            Looks names up in the search index of the copy's table of contents. A pattern with *, ? or […] describes \
            the whole name; any other is looked for anywhere in names. Upper and lower case count. Matches are \
            printed in no particular order, as paths that `ls`, `cat` and `restore file` take; what \\xHH means \
            in them says outboard ls --help.

            EXAMPLES:
                outboard find /backup/monday '*.log'
                outboard find /backup/monday fstab --json

            EXIT STATUS: 0 done, whether something was found or not; 64 usage; 65 the manifest or the table of \
            contents is damaged; 66 no such copy, or no table of contents (outboard toc builds one); 73 the copy is \
            being changed; 75 it was abandoned; 77 not permitted.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String

    @Argument(help: "What to look for.")
    var pattern: String

    @Flag(help: "Print the paths' bytes as they are, a zero byte behind each.")
    var print0 = false

    @Flag(help: "Print one JSON object; its member `entries` has one for each match.")
    var json = false

    private struct Head: Encodable {
        var copy: String
        var pattern: String
    }
    private struct Tail: Encodable {
        var matches: Int
        var notices: [String]
    }

    func validate() throws {
        if json, print0 { throw ValidationError("give --json or --print0") }
        if pattern.isEmpty || pattern.utf8.count > TocLimits.patternBytes {
            throw ValidationError("a pattern has 1 to \(TocLimits.patternBytes) bytes")
        }
        if pattern.contains("/") {
            throw ValidationError(
                "a pattern describes a name, not a path: leave out what is before the last /")
        }
    }

    func run() throws {
        let source = try CopyToc(copy)
        let output = ResultWriter()
        var matches = 0
        var list =
            try json
            ? JSONListWriter(Head(copy: source.copy.directory, pattern: pattern), list: "entries", to: output)
            : nil
        let unreachable = try source.toc.find(pattern) { match in
            matches += 1
            if list != nil {
                let streams = try source.streams(of: match.entry)
                try list?.put(EntryOutput(match.entry, path: match.path, streams: streams))
            } else if print0 {
                for name in match.path {
                    try output.put([UInt8(ascii: "/")])
                    try output.put(name)
                }
                try output.put([0])
            } else {
                try output.line(TocPath.escaped(match.path))
            }
        }
        var notices = try source.notices()
        if unreachable > 0 { notices.append("to \(unreachable) names that fit no path leads from a root") }
        if let list { return try list.finish(Tail(matches: matches, notices: notices)) }
        try output.flush()
        for notice in notices { Console.logger("find").notice("\(notice)") }
    }
}
