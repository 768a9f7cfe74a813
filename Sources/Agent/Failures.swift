import Blocks
import Glibc
import OriginalImage
import PhysicalCopy
import TableOfContents

extension AgentError {
    /// A copy's own error, with its exit status.
    public init(_ error: CopyError) {
        if error.kind == .cancelled {
            self = CancellationToken.interrupted
            return
        }
        let status: ExitStatus =
            switch error.kind {
            case .damaged: .corrupt
            case .unavailable: .unavailable
            case .missing: .inputMissing
            case .cannotCreate: .cannotCreate
            case .io: .io
            case .cancelled, .abandoned: .tryAgain
            case .notPermitted: .notPermitted
            }
        self.init(
            status, doing: "cannot \(error.action)", to: "", because: error.reason,
            advice: error.advice.isEmpty ? nil : error.advice)
    }

    /// An operation of a store that failed.
    public init(_ error: StoreError, doing: String, to subject: String) {
        self.init(CopyError.store(error, "\(doing) \(subject)"))
        (self.doing, self.subject) = (doing, subject)
        if error.code == .noSpace { cause = .noSpace }
    }

    /// A log that cannot be read.
    init(_ error: LogError, doing: String, to subject: String) {
        if case .store(let store) = error {
            self.init(store, doing: doing, to: subject)
        } else {
            self.init(.corrupt, doing: doing, to: subject, because: error.description)
        }
    }

    /// A system call that failed.
    static func system(
        _ number: Int32, doing: String, to subject: String, otherwise status: ExitStatus = .io
    ) -> AgentError {
        if number == ENOSPC || number == EDQUOT {
            // It has its name: only what a store or a unit says has none.
            return noSpace(doing: doing, to: subject, cause: nil)
        }
        let permitted = number != EACCES && number != EPERM && number != EROFS
        return AgentError(
            permitted ? status : .notPermitted, doing: doing, to: subject,
            because: String(cString: strerror(number)))
    }

    private static func noSpace(doing: String, to subject: String, cause: Cause?) -> AgentError {
        AgentError(
            .cannotCreate, doing: doing, to: subject, because: "no space left",
            advice: "free some space there and try again", cause: cause)
    }

    /// A full disk told by the path that people gave: a private bridge's units mean nothing to anybody.
    func namingFullDisk(doing: String, to path: String) -> AgentError {
        isNoSpace ? Self.noSpace(doing: doing, to: path, cause: cause) : self
    }

    /// The same as an error of a copy, for callbacks that throw those.
    var copyError: CopyError {
        CopyError(
            cause == .interrupted ? .cancelled : .io, doing + " " + subject, reason, advice: advice ?? "")
    }
}

/// Runs a step of a physical copy; its errors become the agent's.
func onCopy<Result>(_ body: () throws(CopyError) -> Result) throws(AgentError) -> Result {
    do throws(CopyError) { return try body() } catch { throw AgentError(error) }
}

/// Runs an operation of a store; its errors become the agent's.
func onStore<Result>(
    _ doing: String, _ subject: String, _ body: () throws(StoreError) -> Result
) throws(AgentError) -> Result {
    do throws(StoreError) { return try body() } catch {
        throw AgentError(error, doing: doing, to: subject)
    }
}

/// Reads a log; its errors become the agent's.
func onLog<Result>(
    _ doing: String, _ subject: String, _ body: () throws(LogError) -> Result
) throws(AgentError) -> Result {
    do throws(LogError) { return try body() } catch {
        throw AgentError(error, doing: doing, to: subject)
    }
}

/// Asks a table of contents; its errors become the agent's.
func onToc<Result>(_ body: () throws(TocError) -> Result) throws(AgentError) -> Result {
    do throws(TocError) { return try body() } catch { throw AgentError(error) }
}

/// Goes through something of a table of contents; its errors become the agent's, the agent's remain.
func goingThroughToc(_ body: () throws -> Void) throws(AgentError) {
    do { try body() } catch {
        if let error = error as? AgentError { throw error }
        if let error = error as? TocError { throw AgentError(error) }
        throw AgentError(.io, doing: "reading the table of contents", to: "", because: "\(error)")
    }
}
