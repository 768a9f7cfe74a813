/// Metrics at one moment, in the text format of Prometheus, version 0.0.4: families of samples, each family once, with its
/// help and type.
///
/// Names, labels and helps are the program's own, so that a wrong one is a bug; values of labels may be anything.
public struct MetricsPage: Sendable {
    /// What a server calls it (Content-Type).
    public static let mediaType = "text/plain; version=0.0.4; charset=utf-8"

    /// A sample's labels, in the order in which they are written.
    public typealias Labels = [(name: String, value: String)]

    /// Bytes of UTF-8.
    public private(set) var text = ""
    private var families: Set<String> = []
    private let common: Labels

    /// - Parameter labels: of every sample, before its own.
    public init(labels: Labels = []) { common = labels }

    /// What only grows while the program runs. The name ends with `_total`.
    public mutating func counter(_ name: String, _ help: String, _ samples: [(labels: Labels, value: UInt64)])
    {
        precondition(name.hasSuffix("_total"), "a counter's name ends with _total: \(name)")
        guard begin(name, help, "counter", !samples.isEmpty) else { return }
        for sample in samples { line(name, sample.labels, "\(sample.value)") }
    }

    public mutating func counter(_ name: String, _ help: String, _ value: UInt64) {
        counter(name, help, [([], value)])
    }

    /// What goes up and down. Without samples the family is left out: what is not known is not told.
    public mutating func gauge(_ name: String, _ help: String, _ samples: [(labels: Labels, value: Double)]) {
        guard begin(name, help, "gauge", !samples.isEmpty) else { return }
        for sample in samples { line(name, sample.labels, Self.text(of: sample.value)) }
    }

    public mutating func gauge(_ name: String, _ help: String, _ value: Double?) {
        gauge(name, help, value.map { [([], $0)] } ?? [])
    }

    /// A thing's state: one sample for each state that it can have, of which one is 1 and the others are 0.
    /// - Parameter label: of the states.
    public mutating func state(
        _ name: String, _ help: String, label: String, _ current: String, of all: [String]
    ) {
        gauge(name, help, all.map { ([(label, $0)], $0 == current ? 1 : 0) })
    }

    /// A distribution. It has no `_sum`: none is kept where the events are counted.
    /// - Parameters:
    ///   - bounds: upper bounds of the buckets but the last, which has none, ascending.
    ///   - samples: of each bucket by itself, one more than there are bounds.
    public mutating func histogram(
        _ name: String, _ help: String, bounds: [Double], _ samples: [(labels: Labels, counts: [UInt64])]
    ) {
        guard begin(name, help, "histogram", !samples.isEmpty) else { return }
        for sample in samples {
            precondition(sample.counts.count == bounds.count + 1, "a bucket too many or too few")
            var count: UInt64 = 0
            for (bound, own) in zip(bounds + [.infinity], sample.counts) {
                count += own
                line(name + "_bucket", sample.labels + [("le", Self.text(of: bound))], "\(count)")
            }
            line(name + "_count", sample.labels, "\(count)")
        }
    }

    private mutating func begin(_ name: String, _ help: String, _ type: String, _ isThere: Bool) -> Bool {
        precondition(
            Self.isName(name, colon: true) && families.insert(name).inserted, "a wrong name: \(name)")
        guard isThere else { return false }
        text += "# HELP \(name) \(Self.escaped(help, quotes: false))\n# TYPE \(name) \(type)\n"
        return true
    }

    private mutating func line(_ name: String, _ labels: Labels, _ value: String) {
        text += name
        let all = common + labels
        if !all.isEmpty {
            text += "{"
            for (index, label) in all.enumerated() {
                precondition(Self.isName(label.name, colon: false), "a wrong label: \(label.name)")
                if index > 0 { text += "," }
                text += "\(label.name)=\"\(Self.escaped(label.value, quotes: true))\""
            }
            text += "}"
        }
        text += " \(value)\n"
    }

    private static func text(of value: Double) -> String {
        if value.isNaN { return "NaN" }
        if value.isInfinite { return value < 0 ? "-Inf" : "+Inf" }
        if let whole = Int64(exactly: value) { return "\(whole)" }
        return "\(value)"
    }

    private static func isName(_ name: String, colon: Bool) -> Bool {
        guard let first = name.utf8.first, !(UInt8(ascii: "0")...UInt8(ascii: "9")).contains(first) else {
            return false
        }
        return name.utf8.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"):
                true
            default: colon && byte == UInt8(ascii: ":")
            }
        }
    }

    private static func escaped(_ text: String, quotes: Bool) -> String {
        var result = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\\": result += "\\\\"
            case "\n": result += "\\n"
            case "\"" where quotes: result += "\\\""
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result
    }
}
