/// Prometheus' text format, version 0.0.4, read strictly: what is wrong in a page throws.
public struct Exposition {
    public struct Wrong: Error, CustomStringConvertible {
        public let description: String
        init(_ description: String) { self.description = description }
    }

    public struct Series: Hashable {
        public var name: String
        public var labels: [String: String]
    }

    public enum Kind: String { case counter, gauge, histogram }

    public private(set) var kinds: [String: Kind] = [:]
    public private(set) var helps: [String: String] = [:]
    public private(set) var samples: [Series: Double] = [:]
    private var current = ""
    private var isTyped = false

    public init(_ text: String) throws {
        guard text.hasSuffix("\n") else { throw Wrong("the last line has no end") }
        for line in text.dropLast().split(separator: "\n", omittingEmptySubsequences: false) {
            do { try read(line) } catch let wrong as Wrong {
                throw Wrong("\(wrong): \(line)")
            }
        }
        for name in kinds.keys where kinds[name] == .histogram { try checkHistogram(name) }
        for name in kinds.keys {
            guard samples.keys.contains(where: { family(of: $0.name) == name }) else {
                throw Wrong("the family \(name) has no sample")
            }
        }
    }

    /// The value of a series whose labels are among others these; nil unless there is exactly one.
    public func value(_ name: String, _ labels: [String: String] = [:]) -> Double? {
        let found = samples.filter { series, _ in
            series.name == name && labels.allSatisfy { series.labels[$0.key] == $0.value }
        }
        return found.count == 1 ? found.first?.value : nil
    }

    private mutating func read(_ line: Substring) throws {
        if line.hasPrefix("# HELP ") {
            let words = line.dropFirst(7).split(separator: " ", maxSplits: 1)
            guard words.count == 2, Self.isName(words[0]), helps[String(words[0])] == nil else {
                throw Wrong("a wrong or repeated HELP")
            }
            current = String(words[0])
            isTyped = false
            helps[current] = try Self.unescaped(words[1], quotes: false)
        } else if line.hasPrefix("# TYPE ") {
            let words = line.dropFirst(7).split(separator: " ")
            guard words.count == 2, words[0] == current, !isTyped, let kind = Kind(rawValue: String(words[1]))
            else { throw Wrong("a wrong TYPE, or not behind its HELP") }
            if kind == .counter, !current.hasSuffix("_total") {
                throw Wrong("a counter whose name does not end with _total")
            }
            isTyped = true
            kinds[current] = kind
        } else {
            try readSample(line)
        }
    }

    private mutating func readSample(_ line: Substring) throws {
        let name = line.prefix { $0 != "{" && $0 != " " }
        guard Self.isName(name), isTyped, family(of: String(name)) == current else {
            throw Wrong("a sample outside its family")
        }
        var rest = line.dropFirst(name.count)
        var labels: [String: String] = [:]
        if rest.hasPrefix("{") { labels = try Self.labels(&rest) }
        guard rest.hasPrefix(" "), let value = Self.number(rest.dropFirst()) else {
            throw Wrong("no value")
        }
        if kinds[current] != .gauge, !(value >= 0) { throw Wrong("a count below 0") }
        guard samples.updateValue(value, forKey: Series(name: String(name), labels: labels)) == nil else {
            throw Wrong("a series twice")
        }
    }

    /// The family that a sample's name belongs to.
    private func family(of name: String) -> String {
        for suffix in ["_bucket", "_count", "_sum"] where name.hasSuffix(suffix) {
            let base = String(name.dropLast(suffix.count))
            if kinds[base] == .histogram { return base }
        }
        return name
    }

    private func checkHistogram(_ name: String) throws {
        var buckets: [[String: String]: [(bound: Double, count: Double)]] = [:]
        for (series, value) in samples where series.name == name + "_bucket" {
            var labels = series.labels
            guard let bound = labels.removeValue(forKey: "le").flatMap({ Self.number($0[...]) }) else {
                throw Wrong("a bucket of \(name) without a bound")
            }
            buckets[labels, default: []].append((bound, value))
        }
        for (labels, unsorted) in buckets {
            let sorted = unsorted.sorted { $0.bound < $1.bound }
            guard sorted.last?.bound == .infinity,
                zip(sorted, sorted.dropFirst()).allSatisfy({ $0.count <= $1.count }),
                sorted.last?.count == samples[Series(name: name + "_count", labels: labels)]
            else { throw Wrong("the buckets of \(name) \(labels) are not cumulative") }
        }
        let counts = samples.keys.filter { $0.name == name + "_count" }
        guard counts.count == buckets.count, counts.allSatisfy({ buckets[$0.labels] != nil }) else {
            throw Wrong("a count of \(name) without buckets")
        }
    }

    private static func labels(_ rest: inout Substring) throws -> [String: String] {
        var labels: [String: String] = [:]
        rest = rest.dropFirst()
        while true {
            let name = rest.prefix { $0 != "=" }
            guard isName(name), !name.contains(":"), rest.dropFirst(name.count).hasPrefix("=\"") else {
                throw Wrong("a wrong label")
            }
            rest = rest.dropFirst(name.count + 2)
            var value = ""
            while let next = rest.unicodeScalars.first, next != "\"" {
                value.unicodeScalars.append(next)
                rest = Substring(rest.unicodeScalars.dropFirst())
                guard next == "\\" else { continue }
                guard let escaped = rest.unicodeScalars.first else { break }
                value.unicodeScalars.append(escaped)
                rest = Substring(rest.unicodeScalars.dropFirst())
            }
            guard rest.unicodeScalars.first == "\"",
                labels.updateValue(try unescaped(value[...], quotes: true), forKey: String(name)) == nil
            else { throw Wrong("a label without an end, or twice") }
            rest = Substring(rest.unicodeScalars.dropFirst())
            if rest.hasPrefix(",") {
                rest = rest.dropFirst()
            } else if rest.hasPrefix("}") {
                rest = rest.dropFirst()
                return labels
            } else {
                throw Wrong("labels without an end")
            }
        }
    }

    private static func isName(_ name: Substring) -> Bool {
        (try? #/[a-zA-Z_:][a-zA-Z0-9_:]*/#.wholeMatch(in: name)) != nil
    }

    private static func number(_ text: Substring) -> Double? {
        switch text {
        case "+Inf": return .infinity
        case "-Inf": return -.infinity
        case "NaN": return .nan
        default:
            guard (try? #/-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?/#.wholeMatch(in: text)) != nil else {
                return nil
            }
            return Double(text)
        }
    }

    private static func unescaped(_ text: Substring, quotes: Bool) throws -> String {
        var result = ""
        var isEscape = false
        for scalar in text.unicodeScalars {
            if isEscape {
                switch scalar {
                case "\\": result += "\\"
                case "n": result += "\n"
                case "\"" where quotes: result += "\""
                default: throw Wrong("a wrong escape")
                }
                isEscape = false
            } else if scalar == "\\" {
                isEscape = true
            } else {
                result.unicodeScalars.append(scalar)
            }
        }
        if isEscape { throw Wrong("an escape without an end") }
        return result
    }
}
