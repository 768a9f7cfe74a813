import Agent
import ArgumentParser
import Blocks
import Glibc
import PhysicalCopy

struct CatCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "cat", abstract: "Write a file of a copy to standard output.",
        discussion: """
            Only its extents are read, original images over the data (`--mode append`), these compared with their \
            checksums. PATH is as `outboard ls` shows it; PATH:STREAM is an alternate stream of NTFS. Symbolic \
            links are not followed. Where standard output is a file, holes of the file stay holes. A reader that \
            goes away ends it quietly.

            EXAMPLE:
                outboard cat /backup/monday /etc/passwd | diff - /etc/passwd

            EXIT STATUS: 0 all written, or nobody reads it any more; 64 usage; 65 the table of contents or an \
            original image does not verify; 66 no such copy or file, or it has no table of contents; 69 the \
            bridge that has the data is unreachable; 74 input/output error, or the content cannot be read by \
            extents; 75 the copy was abandoned; 77 not permitted.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String

    @Argument(help: "The file.")
    var path: String

    @OptionGroup var data: CopyDataOptions

    func run() async throws {
        let credentials = try data.credentials()
        let (directory, path) = (copy, path)
        try await Sequences.run("cat") { world, cancellation, _ throws(AgentError) in
            let source = try RestoreSource(
                PhysicalCopy.opened(directory), world, credentials, cancellation)
            defer { source.close() }
            let toc = try FileRestoreSequence.tableOfContents(of: source.copy)
            let output = StandardOutput(cancellation)
            let content = try FileContent(path, in: toc, of: source)
            do throws(AgentError) {
                try content.read(cancellation) { part throws(AgentError) in
                    try cancellation.check()
                    switch part {
                    case .bytes(let bytes): try output.write(bytes)
                    case .hole(let count): try output.skip(count)
                    }
                }
                try output.finish()
            } catch {
                // Nobody reads it any more: there is nothing to be said to anybody.
                guard error.cause == .disconnected else { throw error }
            }
        }
    }
}

extension PhysicalCopy {
    /// Opens a copy to read it.
    static func opened(_ path: String) throws(AgentError) -> PhysicalCopy {
        do throws(CopyError) { return try PhysicalCopy(path) } catch { throw AgentError(error) }
    }
}

/// Standard output as it takes a file's content.
private final class StandardOutput {
    /// It is a file of which this writes the end: holes can be left out.
    private let skips: Bool
    private var pending = false
    private let zeros = ZeroedMemory(count: 1 << 20)
    private let stream = StreamOutput(STDOUT_FILENO)
    private let cancellation: CancellationToken

    init(_ cancellation: CancellationToken) {
        self.cancellation = cancellation
        var status = stat()
        let flags = fcntl(STDOUT_FILENO, F_GETFL)
        skips =
            fstat(STDOUT_FILENO, &status) == 0 && status.st_mode & S_IFMT == S_IFREG && flags >= 0
            && flags & O_APPEND == 0 && lseek(STDOUT_FILENO, 0, SEEK_CUR) >= status.st_size
    }

    func write(_ bytes: UnsafeRawBufferPointer) throws(AgentError) {
        let number = try stream.write(bytes) { () throws(AgentError) in try cancellation.check() }
        guard number == 0 else { throw Self.failure(number) }
        pending = false
    }

    private static func failure(_ number: Int32) -> AgentError {
        AgentError(
            number == ENOSPC || number == EDQUOT ? .cannotCreate : .io, doing: "writing to",
            to: "standard output", because: String(cString: strerror(number)),
            cause: number == EPIPE ? .disconnected : nil)
    }

    func skip(_ count: UInt64) throws(AgentError) {
        guard skips else {
            var left = count
            while left > 0 {
                let part = UnsafeRawBufferPointer(
                    UnsafeMutableRawBufferPointer(
                        rebasing: zeros.buffer.prefix(Int(min(left, UInt64(zeros.count))))))
                try write(part)
                left -= UInt64(part.count)
            }
            return
        }
        guard lseek(STDOUT_FILENO, Int(count), SEEK_CUR) >= 0 else { throw Self.failure(errno) }
        pending = true
    }

    /// A hole at the end needs the file's size.
    func finish() throws(AgentError) {
        guard pending else { return }
        let end = lseek(STDOUT_FILENO, 0, SEEK_CUR)
        guard end >= 0, ftruncate(STDOUT_FILENO, end) == 0 else { throw Self.failure(errno) }
    }
}
