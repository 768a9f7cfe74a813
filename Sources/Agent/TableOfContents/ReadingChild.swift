import Blocks
import Glibc
import TableOfContents

/// One run of `outboard read-file-systems`: a process that reads a volume's file systems and may crash, hang or lie.
struct ReadingChild {
    /// How it ended.
    struct Ending {
        /// Its stream came to its end, and it ended with 0.
        var isWhole: Bool
        /// For people: what it ended with, and the end of what it said; empty when it is whole.
        var reason: String
        /// The volume is not there any more, it says.
        var volumeIsGone = false
    }

    let executable: String
    let arguments: [String]
    let cancellation: CancellationToken

    private static let doing = "reading the file systems"
    /// F_SETPIPE_SZ of fcntl(2), which only C with _GNU_SOURCE sees.
    private static let setPipeSize: Int32 = 1031

    /// Starts it, hands on its frames, and waits for its end.
    /// - Parameter body: what it throws ends the child, and is thrown on.
    /// - Throws: 75 when cancelled; what prevents the start of any child; what `body` throws.
    func run(_ body: (DecodedFrame) throws(TocError) -> Void) throws(AgentError) -> Ending {
        let output = try Spawn.pipe(doing: Self.doing)
        let errors: (reading: Int32, writing: Int32)
        do throws(AgentError) { errors = try Spawn.pipe(doing: Self.doing) } catch {
            close(output.reading)
            close(output.writing)
            throw error
        }
        defer {
            close(output.reading)
            close(errors.reading)
        }
        // Fewer, longer turns; refused, it goes on as it is.
        _ = fcntl(output.reading, Self.setPipeSize, Int32(AgentLimits.recordPipeBytes))
        let process: pid_t
        do {
            defer {
                close(output.writing)
                close(errors.writing)
            }
            process = try Spawn.start(
                executable, [executable] + arguments, input: .nothing, output: output.writing,
                errors: errors.writing, doing: Self.doing)
        }
        var said = Said()
        let outcome: Result<(isFinished: Bool, damage: String?), AgentError>
        do throws(AgentError) {
            outcome = .success(try receive(output.reading, errors.reading, &said, body))
        } catch { outcome = .failure(error) }
        // Whole or not, nobody listens any more.
        if case .success((true, nil)) = outcome {} else { kill(-process, SIGKILL) }
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0, errno == EINTR {}
        let (isFinished, damage) = try outcome.get()
        said.drain(errors.reading)
        return Self.ending(isFinished, damage, status, said)
    }

    /// - Returns: whether the stream came to its end, and what was wrong with it.
    private func receive(
        _ output: Int32, _ errors: Int32, _ said: inout Said, _ body: (DecodedFrame) throws(TocError) -> Void
    ) throws(AgentError) -> (isFinished: Bool, damage: String?) {
        var decoder = RecordDecoder()
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: AgentLimits.recordPipeBytes, alignment: 16)
        defer { buffer.deallocate() }
        var polled = [
            pollfd(fd: output, events: Int16(POLLIN), revents: 0),
            pollfd(fd: errors, events: Int16(POLLIN), revents: 0),
        ]
        while true {
            try cancellation.check()
            let count = poll(&polled, 2, 100)
            guard count > 0 else { continue }
            if polled[1].revents != 0, !said.take(errors) { polled[1].fd = -1 }
            guard polled[0].revents != 0 else { continue }
            let got = read(output, buffer.baseAddress, buffer.count)
            if got < 0, errno == EINTR || errno == EAGAIN { continue }
            guard got > 0 else { return (decoder.isFinished, nil) }
            var failure: TocError?
            do throws(TocError) {
                try decoder.take(UnsafeRawBufferPointer(rebasing: buffer[..<got])) { frame throws(TocError) in
                    do throws(TocError) { try body(frame) } catch {
                        failure = error
                        throw error
                    }
                }
            } catch {
                if let failure { throw AgentError(failure) }
                return (false, error.description)
            }
            if decoder.isFinished { return (true, nil) }
        }
    }

    private static func ending(
        _ isFinished: Bool, _ damage: String?, _ status: Int32, _ said: Said
    ) -> Ending {
        let signal = status & 0x7F
        let code = status >> 8 & 0xFF
        if isFinished, signal == 0, code == 0 { return Ending(isWhole: true, reason: "") }
        if let damage { return Ending(isWhole: false, reason: damage) }
        let how =
            if signal == SIGPROF || code == 75 && signal == 0 {
                "it was ended, because it found nothing new for a long time"
            } else if signal != 0 {
                "signal \(signal) ended it"
            } else {
                "it ended with status \(code)"
            }
        let text = said.text
        return Ending(
            isWhole: false, reason: text.isEmpty ? how : "\(how): \(text)",
            volumeIsGone: signal == 0 && code == AgentError.ExitStatus.unavailable.rawValue)
    }

    /// The end of what it says on standard error; of the rest nothing is kept.
    private struct Said {
        private var bytes: [UInt8] = []

        /// - Returns: false at its end.
        mutating func take(_ descriptor: Int32) -> Bool {
            var more = [UInt8](repeating: 0, count: AgentLimits.bridgeMessageBytes)
            let count = read(descriptor, &more, more.count)
            guard count > 0 else { return count < 0 && (errno == EINTR || errno == EAGAIN) }
            bytes += more[..<count]
            if bytes.count > AgentLimits.bridgeMessageBytes {
                bytes.removeFirst(bytes.count - AgentLimits.bridgeMessageBytes)
            }
            return true
        }

        /// What is still there, after the end.
        mutating func drain(_ descriptor: Int32) {
            var polled = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            var turns = 0
            // A grandchild could hold it open and go on.
            while turns < 64, poll(&polled, 1, 0) > 0, take(descriptor) { turns += 1 }
        }

        /// As one line of text that no terminal minds.
        var text: String {
            let text = String(decoding: bytes, as: UTF8.self)
            let lines = text.split(whereSeparator: \.isNewline).suffix(4).map { line in
                String(line.unicodeScalars.map { $0.value < 0x20 || $0.value == 0x7F ? " " : Character($0) })
            }
            return lines.joined(separator: "; ")
        }
    }
}

extension AgentError {
    /// A table of contents' own error, with its exit status.
    public init(_ error: TocError) {
        let status: ExitStatus =
            switch error.kind {
            case .store: .io
            case .damaged: .corrupt
            case .missing: .inputMissing
            case .cannotCreate: .cannotCreate
            case .cancelled: .tryAgain
            }
        if error.kind == .cancelled {
            self = CancellationToken.interrupted
        } else {
            self.init(status, doing: "table of contents", to: "", because: error.description)
        }
    }
}
