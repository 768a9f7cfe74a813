import Blocks
import Glibc

/// One line on the terminal, drawn again and again: a bar, bytes, rate, time left, and how full the cache is.
/// Where standard error is no terminal it draws nothing.
final class ProgressBar: Sendable {
    private struct State {
        var phase = ""
        var phaseStart = MonotonicClock.now
        var lastDrawn: UInt64 = 0
        var isOnScreen = false
    }

    private static let redrawNanoseconds: UInt64 = 100_000_000
    private static let cells = 24

    private let state = Monitor(State())
    private let isActive: Bool

    init(isActive: Bool = Console.errorIsTerminal) { self.isActive = isActive }

    /// - Parameters:
    ///   - total: bytes; 0 when unknown.
    ///   - cacheFill: 0 to 1, where there is a cache.
    ///   - secondsToFull: until it is full, where that is known.
    func update(
        phase: String, done: UInt64, total: UInt64, cacheFill: Double? = nil, secondsToFull: Double? = nil
    ) {
        guard isActive else { return }
        let now = MonotonicClock.now
        let line: String? = state.withLock { state in
            if state.phase != phase {
                state.phase = phase
                state.phaseStart = now
                state.lastDrawn = 0
            }
            guard now - state.lastDrawn >= Self.redrawNanoseconds || done == total else { return nil }
            state.lastDrawn = now
            state.isOnScreen = true
            let seconds = Double(now - state.phaseStart) / 1e9
            return Self.line(
                phase: phase, done: done, total: total, seconds: seconds, cacheFill: cacheFill,
                secondsToFull: secondsToFull)
        }
        if let line { Console.write("\r\u{1B}[K" + line, to: STDERR_FILENO) }
    }

    /// Clears the line, so that something else can be said.
    func clear() {
        let wasOnScreen = state.withLock { state in
            defer { state.isOnScreen = false }
            return state.isOnScreen
        }
        if wasOnScreen { Console.write("\r\u{1B}[K", to: STDERR_FILENO) }
    }

    static func line(
        phase: String, done: UInt64, total: UInt64, seconds: Double, cacheFill: Double?,
        secondsToFull: Double? = nil
    ) -> String {
        var parts = [phase]
        let fraction = total > 0 ? min(1, Double(done) / Double(total)) : 0
        if total > 0 {
            let full = Int(fraction * Double(cells))
            parts.append(
                "[" + String(repeating: "#", count: full) + String(repeating: "-", count: cells - full) + "]")
            parts.append("\(Int(fraction * 100))%")
        }
        if done > 0 || total > 0 { parts.append(ByteCount(done).rounded) }
        if seconds > 0.5, done > 0 {
            let rate = Double(done) / seconds
            parts.append(ByteCount(UInt64(rate)).rounded + "/s")
            if total > done { parts.append("ETA " + duration((Double(total - done) / rate).rounded(.up))) }
        }
        if let cacheFill {
            let forecast = secondsToFull.map { ", full in \(duration(max($0, 0).rounded()))" }
            parts.append("cache \(Int(min(max(cacheFill, 0), 1) * 100))%" + (forecast ?? ""))
        }
        return parts.joined(separator: " ")
    }

    /// `7s`, `2:07`, `1:02:07`. Others may have told the number: less than nothing is 0.
    static func duration(_ seconds: Double) -> String {
        let all = Int(min(max(seconds, 0), 359_999))
        func two(_ n: Int) -> String { n < 10 ? "0\(n)" : "\(n)" }
        if all < 60 { return "\(all)s" }
        if all < 3600 { return "\(all / 60):\(two(all % 60))" }
        return "\(all / 3600):\(two(all / 60 % 60)):\(two(all % 60))"
    }
}
