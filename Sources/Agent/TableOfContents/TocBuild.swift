import Blocks
import Foundation
import TableOfContents

/// Builds a table of contents from a volume that is served over NBD.
public enum TocBuild {
    /// What was built.
    public struct Summary: Codable, Hashable, Sendable {
        public var counts: TocCounts
        /// Which file systems were not read to their end, and why.
        public var failures: [String]
        public var seconds: Double
    }

    /// A summary as text, for a record.
    static func encode(_ summary: Summary) -> String {
        do { return String(decoding: try JSONEncoder().encode(summary), as: UTF8.self) } catch {
            preconditionFailure("JSON: \(error)")
        }
    }

    static func decode(_ text: String) -> Summary? {
        try? JSONDecoder().decode(Summary.self, from: Data(text.utf8))
    }

    /// Reads all file systems, as ``VolumeReading`` does, into a new database.
    /// - Parameters:
    ///   - nbd: the volume's URI.
    ///   - executable: this program.
    ///   - path: where the database is to be, in place of what is there; it is flushed, and its name, too.
    ///   - inPlace: the path is an empty draft's, which becomes the database itself.
    ///   - info: with the volume's size.
    ///   - progress: called now and then.
    /// - Throws: 73 when the database cannot be written, 75 when cancelled, 69 when the volume is not there any more.
    ///   Then there is nothing new at `path`.
    public static func run(
        nbd: String, executable: String, into path: String, inPlace: Bool = false, info: TocInfo,
        cancellation: CancellationToken,
        progress: @escaping (TocCounts) -> Void = { _ in }
    ) throws(AgentError) -> Summary {
        let reading = VolumeReading(nbd: nbd, volumeSize: info.volumeSize, executable: executable)
        return try run(into: path, inPlace: inPlace, info: info, progress: progress) {
            builder throws(AgentError) in
            try reading.run(.files, into: builder, cancellation: cancellation)
        }
    }

    /// The same of whatever `read` puts into its sink.
    static func run(
        into path: String, inPlace: Bool = false, info: TocInfo, progress: @escaping (TocCounts) -> Void,
        _ read: (any RecordSink) throws(AgentError) -> VolumeReading.Summary
    ) throws(AgentError) -> Summary {
        let start = MonotonicClock.now
        var found = VolumeReading.Summary()
        var failure: AgentError?
        let counts: TocCounts
        do throws(TocError) {
            counts = try TocBuilder.build(at: path, inPlace: inPlace, info: info, progress: progress) {
                builder throws(TocError) in
                do throws(AgentError) { found = try read(builder) } catch {
                    failure = error
                    throw TocError(.cancelled, error.description)
                }
            }
        } catch { throw failure ?? AgentError(error) }
        return Summary(
            counts: counts, failures: found.failures, seconds: Double(MonotonicClock.now - start) / 1e9)
    }
}
