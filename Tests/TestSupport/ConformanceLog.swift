/// What libiscsi's `iscsi-test-cu -d -V` wrote, test by test. Its own sum counts a skip as a pass.
///
/// A test begins with `  Test: NAME ...` and ends with a line that begins with `passed` or `FAILED`. Between
/// the two, `[SKIPPED]` stands where all of a test or a part of it was left out, and some tests only say
/// `Skipping …`. After FAILED come the assertions that did not hold; after passed, nothing of that test (the
/// suites look for reservations left behind).
public struct ConformanceLog: Sendable {
    public enum Outcome: Equatable, Sendable {
        case passed
        /// With the first line that says so.
        case skipped(String)
        /// With the end of what the test wrote.
        case failed(String)
        /// The log ends, or the next test begins, without a result.
        case unfinished
    }

    public struct Test: Equatable, Sendable {
        /// `SUITE.NAME`.
        public let name: String
        public let outcome: Outcome

        public init(name: String, outcome: Outcome) {
            self.name = name
            self.outcome = outcome
        }
    }

    public let tests: [Test]

    public var passed: [String] { tests.filter { $0.outcome == .passed }.map(\.name) }

    public var skipped: [String] {
        tests.filter { if case .skipped = $0.outcome { true } else { false } }.map(\.name)
    }

    /// Failed or unfinished.
    public var failed: [Test] {
        tests.filter {
            switch $0.outcome {
            case .failed, .unfinished: true
            case .passed, .skipped: false
            }
        }
    }

    public init(_ text: String) {
        var reader = Reader()
        for line in text.utf8.split(separator: UInt8(ascii: "\n")) { reader.take(Substring(line)) }
        tests = reader.finished()
    }

    private struct Reader {
        /// Those that write nothing when all is well. Any other that wrote nothing did nothing.
        private static let silent: Set = ["iSCSITMF.LUNResetSimpleAsync"]
        private static let linesKept = 40

        private var tests: [Test] = []
        private var suite: Substring = ""
        private var name: String?
        private var lines: [Substring] = []
        private var isFailing = false

        mutating func take(_ line: Substring) {
            if line.hasPrefix("Suite: ") {
                end(.unfinished)
                suite = line.dropFirst(7).prefix { $0 != " " }
            } else if line.hasPrefix("  Test: ") {
                end(.unfinished)
                let words = line.dropFirst(8)
                let test = words.prefix { $0 != " " }
                name = "\(suite).\(test)"
                // What the test writes first, or its result, may stand in the same line.
                let rest = words.dropFirst(test.count).drop { $0 == " " || $0 == "." }
                if !rest.isEmpty { take(within: rest) }
            } else if name != nil {
                take(within: line)
            }
        }

        private mutating func take(within line: Substring) {
            if isFailing {
                if line.hasPrefix("    "), line.contains(".c:") {
                    lines.append(line)
                } else {
                    end(.unfinished)
                }
            } else if line.hasPrefix("passed") {
                let skip = lines.first { $0.contains("[SKIPPED]") || $0.contains("Skipping") }
                if let skip {
                    end(.skipped(String(skip.drop { $0 == " " })))
                } else if lines.isEmpty, let name, !Self.silent.contains(name) {
                    end(.skipped("it wrote nothing"))
                } else {
                    end(.passed)
                }
            } else {
                lines.append(line)
                isFailing = line.hasPrefix("FAILED")
            }
        }

        private mutating func end(_ outcome: Outcome) {
            guard let name else { return }
            let text = lines.suffix(Self.linesKept).joined(separator: "\n")
            tests.append(Test(name: name, outcome: isFailing ? .failed(text) : outcome))
            self.name = nil
            lines = []
            isFailing = false
        }

        mutating func finished() -> [Test] {
            end(.unfinished)
            return tests
        }
    }
}

/// The skips that are allowed: lines of `UNITS SUITE.NAME REASON`, UNITS being kinds of unit with commas between
/// them, or `all`. Lines that begin with `#` are comments.
public struct AllowedSkips: Sendable {
    public struct MalformedLine: Error, CustomStringConvertible {
        public let description: String
    }

    private let names: [String: Set<String>]

    /// - Parameter kinds: of unit, that the lines may name.
    public init(_ text: String, kinds: [String]) throws {
        var names = Dictionary(uniqueKeysWithValues: kinds.map { ($0, Set<String>()) })
        for line in text.split(separator: "\n") where !line.hasPrefix("#") {
            let words = line.split(separator: " ", maxSplits: 2, omittingEmptySubsequences: true)
            guard words.count == 3 else { throw MalformedLine(description: "no reason in '\(line)'") }
            let units = words[0] == "all" ? kinds : words[0].split(separator: ",").map(String.init)
            for unit in units {
                guard names[unit]?.insert(String(words[1])).inserted == true else {
                    throw MalformedLine(description: "unknown kind of unit, or twice: '\(line)'")
                }
            }
        }
        self.names = names
    }

    public subscript(kind: String) -> Set<String> { names[kind] ?? [] }
}
