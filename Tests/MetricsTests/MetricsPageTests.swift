import Blocks
import Foundation
import Logging
import TestSupport
import Testing

@testable import Metrics

@Suite struct MetricsPageTests {
    private static let hostile = "a\\b\"c\nd\r\u{0}é\u{2028}{}=,"

    @Test func whatIsWrittenIsRead() throws {
        var page = MetricsPage(labels: [("volume", Self.hostile)])
        page.counter("outboard_a_total", "Things, a \\ and\na line.", .max)
        page.gauge("outboard_b", "Others.", [([("unit", "0")], 0.5), ([("unit", "1")], -.infinity)])
        page.gauge("outboard_c", "Not known.", nil)
        page.state("outboard_d", "A state.", label: "state", "open", of: ["open", "void"])
        page.histogram(
            "outboard_e_seconds", "Times.", bounds: [1.024e-06, 0.5], [([("op", "read")], [3, 0, 4])])
        let read = try Exposition(page.text)
        let volume = ["volume": Self.hostile]
        #expect(read.helps["outboard_a_total"] == "Things, a \\ and\na line.")
        #expect(read.value("outboard_a_total", volume) == Double(UInt64.max))
        #expect(read.value("outboard_b", ["unit": "0"]) == 0.5)
        #expect(read.value("outboard_b", ["unit": "1"]) == -.infinity)
        #expect(read.kinds["outboard_c"] == nil && read.helps["outboard_c"] == nil)
        #expect(read.value("outboard_d", ["state": "open"]) == 1)
        #expect(read.value("outboard_d", ["state": "void"]) == 0)
        #expect(read.value("outboard_e_seconds_bucket", ["le": "1.024e-06"]) == 3)
        #expect(read.value("outboard_e_seconds_bucket", ["le": "0.5"]) == 3)
        #expect(read.value("outboard_e_seconds_bucket", ["le": "+Inf", "op": "read"]) == 7)
        #expect(read.value("outboard_e_seconds_count") == 7)
        #expect(
            page.text.contains(
                "\noutboard_b{volume=\"a\\\\b\\\"c\\nd\r\u{0}é\u{2028}{}=,\",unit=\"0\"} 0.5\n"))
    }

    @Test(
        "The parser that judges is strict",
        arguments: [
            "# HELP a_total x\n# TYPE a_total counter\na_total 1", "a_total 1\n",
            "# HELP a_total x\na_total 1\n", "# TYPE a_total counter\na_total 1\n",
            "# HELP a x\n# TYPE a counter\na 1\n", "# HELP a_total x\n# TYPE a_total counter\na_total -1\n",
            "# HELP a_total x\n# TYPE a_total counter\na_total 1\na_total 2\n",
            "# HELP a_total x\n# TYPE a_total counter\n", "# HELP a x\n# TYPE a gauge\na{b=\"c} 1\n",
            "# HELP a x\n# TYPE a gauge\na{b=\"c\",b=\"d\"} 1\n",
            "# HELP a x\n# TYPE a gauge\na{b=\"\\q\"} 1\n",
            "# HELP a x\n# TYPE a gauge\na{b=\"c\",} 1\n", "# HELP a x\n# TYPE a gauge\na 1 2\n",
            "# HELP a x\n# TYPE a gauge\na one\n", "# HELP 1a x\n# TYPE 1a gauge\n1a 1\n",
            "# HELP a x\n# TYPE a gauge\na 1\n# HELP b x\n# TYPE b gauge\nb 1\na{c=\"d\"} 1\n",
            "# HELP a x\n# TYPE a histogram\na_bucket{le=\"1\"} 1\na_count 1\n",
            "# HELP a x\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_count 1\n",
            "# HELP a x\n# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_count 2\n",
        ])
    func wrongPages(text: String) { #expect(throws: Exposition.Wrong.self) { try Exposition(text) } }

    @Test func aFamilyIsWrittenOnce() async {
        await #expect(processExitsWith: .failure) {
            var page = MetricsPage()
            page.gauge("outboard_a", "x", 1)
            page.gauge("outboard_a", "x", 2)
        }
        await #expect(processExitsWith: .failure) {
            var page = MetricsPage()
            page.counter("outboard_a", "x", 1)
        }
    }
}

@Suite struct MetricsFileTests {
    private let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }

    private func page(_ value: Double) -> MetricsPage {
        var page = MetricsPage()
        page.gauge("outboard_a", "x", value)
        return page
    }

    @Test func itIsWholeWheneverItIsRead() throws {
        let scratch = try ScratchDirectory()
        let path = scratch("a.prom")
        try "old".write(toFile: path, atomically: false, encoding: .utf8)
        let count = Counter()
        let file = try MetricsFile(path, seconds: 0.0005, logger: logger) { [self] in page(count.next()) }
        var last = 0.0
        for _ in 0..<2_000 {
            let value = try #require(
                try Exposition(String(contentsOfFile: path, encoding: .utf8)).value("outboard_a"))
            #expect(value >= last)
            last = value
        }
        file.stop()
        #expect(
            try Exposition(String(contentsOfFile: path, encoding: .utf8)).value("outboard_a") == count.last)
        #expect(try FileManager.default.contentsOfDirectory(atPath: scratch.path) == ["a.prom"])
        var status = stat()
        #expect(stat(path, &status) == 0 && status.st_mode & 0o777 == 0o644)
    }

    @Test func whatIsNoFileIsLeftAlone() throws {
        let scratch = try ScratchDirectory()
        let target = scratch("target")
        try "mine".write(toFile: target, atomically: false, encoding: .utf8)
        try FileManager.default.createSymbolicLink(atPath: scratch("link"), withDestinationPath: target)
        for path in ["/dev/null", scratch.path, scratch("link"), scratch("none/a.prom")] {
            #expect(throws: MetricsFile.Unusable.self) {
                try MetricsFile(path, logger: logger) { [self] in page(1) }
            }
        }
        #expect(try String(contentsOfFile: target, encoding: .utf8) == "mine")
        #expect(try Set(FileManager.default.contentsOfDirectory(atPath: scratch.path)) == ["target", "link"])
    }
}

private final class Counter: Sendable {
    private let state = Monitor(0.0)
    func next() -> Double {
        state.withLock { state in
            state += 1
            return state
        }
    }
    var last: Double { state.withLock { $0 } }
}
