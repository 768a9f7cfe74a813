// The one file that imports libiscsi. A libiscsi context serves one thread: here an event thread owns it, and
// callers hand it commands through a queue. So one session carries many commands at once, which list
// identifiers need: those of EXTENDED COPY are known within their I_T nexus only.
import Blocks
import CLibISCSI
import Glibc

/// One command on its way. Caller and event thread share it; the buffers are the caller's, who waits until the
/// event thread has completed it.
package final class InitiatorTask: @unchecked Sendable {
    // @unchecked: what is not in the monitor is set before the event thread gets it, or only that one's.

    package enum DataPhase {
        case none
        case dataIn(UnsafeMutableRawBufferPointer)
        case dataOut(UnsafeRawBufferPointer)
    }

    package enum Completion: Sendable {
        /// A SAM status with sense data, and how many bytes of the data phase were moved.
        case status(UInt8, sense: [UInt8], moved: Int)
        case aborted
        case lost(SessionLoss)
    }

    package let lun: Int32
    package let cdb: [UInt8]
    package let data: DataPhase
    let completion = Monitor<Completion?>(nil)
    // The event thread's.
    fileprivate var task: UnsafeMutablePointer<scsi_task>?
    fileprivate var isAborting = false

    /// - Parameter lun: as libiscsi takes it: the first two bytes of the eight.
    init(lun: Int32, cdb: [UInt8], data: DataPhase) {
        self.lun = lun
        self.cdb = cdb
        self.data = data
    }

    package func complete(_ value: Completion) {
        completion.withLockAndNotify { if $0 == nil { $0 = value } }
    }

    package var expectedBytes: Int {
        switch data {
        case .none: 0
        case .dataIn(let buffer): buffer.count
        case .dataOut(let buffer): buffer.count
        }
    }
}

/// Why there is no session, or no more.
package enum SessionLoss: Error, Hashable, Sendable {
    case unreachable(String)
    /// Status-Class and -Detail of the Login Response (RFC 7143 §11.13.5).
    case loginRefused(UInt16, String)
    case dropped(String)
    case interrupted
    case timedOut(String)
    case closed
}

/// What carries an initiator's commands to a target: ``InitiatorConnection`` is it, the simulator has another.
package protocol InitiatorTransport: AnyObject, Sendable {
    /// Sends it; its completion comes in any case.
    func submit(_ task: InitiatorTask)
    /// ABORT TASK.
    func abort(_ task: InitiatorTask)
    /// Ends the session; commands in flight complete as lost.
    func drop(_ loss: SessionLoss)
    /// Nil while the session stands.
    var loss: SessionLoss? { get }
}

/// An iSCSI session of one connection, from its login to its loss.
final class InitiatorConnection: InitiatorTransport, @unchecked Sendable {
    // @unchecked: what is not in the monitor belongs to the event thread.

    typealias Loss = SessionLoss

    private struct Queue {
        var submitted: [InitiatorTask] = []
        var toAbort: [InitiatorTask] = []
        var isLoggedIn = false
        var drop: Loss?
        var lost: Loss?
    }
    private let queue = Monitor(Queue())
    private let wakeup: (read: Int32, write: Int32)
    private let address: BridgeAddress
    private let initiatorName: String

    // Of the event thread.
    private var context: OpaquePointer?
    private var connectStatus: Int32?
    private var loginStatus: Int32?
    private var inFlight: [ObjectIdentifier: Flight] = [:]
    // Whose ABORT TASK is unanswered; and whose answer has come, so that the command can be forgotten.
    private var aborting: [ObjectIdentifier: Flight] = [:]
    private var aborted: [Flight] = []
    private var finished: [UnsafeMutablePointer<scsi_task>] = []

    init(address: BridgeAddress, initiatorName: String) throws(Loss) {
        self.address = address
        self.initiatorName = initiatorName
        var ends: [Int32] = [-1, -1]
        let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        guard socketpair(AF_UNIX, type, 0, &ends) == 0 else {
            throw .unreachable("socketpair: \(systemMessage(errno))")
        }
        wakeup = (ends[0], ends[1])
    }

    deinit {
        Glibc.close(wakeup.read)
        Glibc.close(wakeup.write)
    }

    /// Connects and logs in; waits until it is done.
    func open(timeout: Double, isCancelled: () -> Bool) throws(Loss) {
        guard BlockingThread.start({ self.run() }) else { throw .unreachable("no thread to be had") }
        let deadline = MonotonicClock.now + UInt64(timeout * 1_000_000_000)
        var asked = false
        while true {
            let outcome = queue.wait(nanoseconds: ClientLimits.cancellationPollNanoseconds) {
                queue -> Result<Void, Loss>? in
                if let loss = queue.lost { return .failure(loss) }
                return queue.isLoggedIn ? .success(()) : nil
            }
            if let outcome { return try outcome.get() }
            if !asked, isCancelled() {
                asked = true
                drop(.interrupted)
            } else if !asked, MonotonicClock.now > deadline {
                asked = true
                drop(.timedOut("it did not complete the login in \(Int(timeout)) s"))
            }
        }
    }

    /// Hands a command to the event thread; its completion always comes.
    func submit(_ task: InitiatorTask) {
        let lost = queue.withLock { queue -> Loss? in
            if queue.lost == nil { queue.submitted.append(task) }
            return queue.lost
        }
        if let lost { task.complete(.lost(lost)) } else { wake() }
    }

    /// ABORT TASK; the completion comes with the target's answer, or with the command's own if that was first.
    func abort(_ task: InitiatorTask) {
        queue.withLock { $0.toAbort.append(task) }
        wake()
    }

    /// Ends the connection at once: all commands complete as lost.
    func drop(_ loss: Loss) {
        queue.withLock { if $0.drop == nil { $0.drop = loss } }
        wake()
    }

    var loss: Loss? { queue.withLock { $0.lost } }

    private func wake() {
        var one: UInt8 = 1
        // A full socket wakes as well: nothing is lost when the write fails.
        _ = send(wakeup.write, &one, 1, Int32(MSG_NOSIGNAL))
    }
}

// The event thread.
extension InitiatorConnection {
    private func run() {
        // libiscsi writes to a socket whose peer may be gone: SIGPIPE stays off this thread, as do all
        // signals that are meant for the program.
        var all = sigset_t()
        sigfillset(&all)
        pthread_sigmask(SIG_BLOCK, &all, nil)

        let loss: Loss
        do throws(Loss) {
            try start()
            loss = try serve()
        } catch { loss = error }
        let waiting = queue.withLock { queue -> [InitiatorTask] in
            queue.lost = loss
            defer { queue.submitted = [] }
            return queue.submitted
        }
        // Most of what is in flight hears of it by its callback; not every abort does.
        if let context { iscsi_destroy_context(context) }
        context = nil
        cleanUp()
        for flight in Array(inFlight.values) { end(flight.task, .lost(loss)) }
        aborting = [:]
        for task in waiting { task.complete(.lost(loss)) }
        queue.withLockAndNotify { _ in }
    }

    private func start() throws(Loss) {
        guard let context = iscsi_create_context(initiatorName) else {
            throw .unreachable("no memory for a session")
        }
        self.context = context
        // Several sessions of one initiator name must differ in their ISID (RFC 7143 §4.4.3).
        iscsi_set_isid_random(context, .random(in: 0..<1 << 24), .random(in: 0..<1 << 16))
        iscsi_set_noautoreconnect(context, 1)
        guard iscsi_set_session_type(context, ISCSI_SESSION_NORMAL) == 0,
            iscsi_set_targetname(context, address.targetName) == 0
        else { throw .unreachable(lastError) }
        if let credentials = address.credentials,
            iscsi_set_initiator_username_pwd(context, credentials.name, credentials.secret) != 0
        {
            throw .unreachable(lastError)
        }
        let this = Unmanaged.passUnretained(self).toOpaque()
        let code = iscsi_connect_async(
            context, address.portal,
            { _, status, _, this in
                Unmanaged<InitiatorConnection>.fromOpaque(this!).takeUnretainedValue().connectStatus = status
            }, this)
        guard code == 0 else { throw .unreachable(lastError) }
        // No child of this process shall keep the session alive.
        let descriptor = iscsi_get_fd(context)
        if descriptor >= 0 { _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC) }
    }

    /// Drives the session until it is lost.
    private func serve() throws(Loss) -> Loss {
        guard let context else { preconditionFailure("no context") }
        var nextNOP = MonotonicClock.now + Self.nopNanoseconds
        var isLoggedIn = false
        while true {
            if let drop = queue.withLock({ $0.drop }) { return drop }
            try pollAndService()
            cleanUp()
            if let status = connectStatus {
                connectStatus = nil
                guard status == 0 else { throw isLoggedIn ? .dropped(lastError) : .unreachable(lastError) }
                try login()
            }
            if let status = loginStatus {
                loginStatus = nil
                guard status == 0 else { throw loginFailure(status) }
                isLoggedIn = true
                nextNOP = MonotonicClock.now + Self.nopNanoseconds
                queue.withLockAndNotify { $0.isLoggedIn = true }
            }
            guard isLoggedIn else { continue }
            try startCommands()
            cleanUp()
            if MonotonicClock.now >= nextNOP {
                nextNOP = MonotonicClock.now + Self.nopNanoseconds
                if iscsi_get_nops_in_flight(context) >= ClientLimits.unansweredNOPs {
                    return .dropped("it answers no NOP any more")
                }
                if iscsi_nop_out_async(context, nil, nil, 0, nil) != 0 { return .dropped(lastError) }
            }
        }
    }

    private static let nopNanoseconds = UInt64(ClientLimits.nopSeconds * 1_000_000_000)

    private func login() throws(Loss) {
        let this = Unmanaged.passUnretained(self).toOpaque()
        let code = iscsi_login_async(
            context,
            { _, status, _, this in
                Unmanaged<InitiatorConnection>.fromOpaque(this!).takeUnretainedValue().loginStatus = status
            }, this)
        guard code == 0 else { throw .unreachable(lastError) }
    }

    /// libiscsi tells status class and detail only in its error text, in parentheses at its end.
    private func loginFailure(_ status: Int32) -> Loss {
        let text = lastError
        if status == Int32(SCSI_STATUS_REDIRECT.rawValue) {
            return .unreachable("the target has moved, which is not followed")
        }
        if let open = text.lastIndex(of: "("), text.hasSuffix(")"),
            let code = UInt16(text[text.index(after: open)...].dropLast())
        {
            return .loginRefused(code, text)
        }
        return .unreachable(text)
    }

    private func pollAndService() throws(Loss) {
        guard let context else { preconditionFailure("no context") }
        let wanted = iscsi_which_events(context)
        var entries = [
            pollfd(fd: wakeup.read, events: Int16(POLLIN), revents: 0),
            // A negative descriptor is passed over.
            pollfd(fd: wanted == 0 ? -1 : iscsi_get_fd(context), events: Int16(wanted), revents: 0),
        ]
        let milliseconds: Int32 = wanted == 0 ? 100 : 1000
        let count = poll(&entries, 2, milliseconds)
        if count < 0, errno != EINTR { throw .dropped("poll: \(systemMessage(errno))") }
        if entries[0].revents != 0 {
            var rest = [UInt8](repeating: 0, count: 64)
            // Only empties the socket.
            while Glibc.read(wakeup.read, &rest, rest.count) == rest.count {}
        }
        guard entries[1].revents != 0 else {
            if count == 0, iscsi_service(context, 0) < 0 { throw lossNow }
            return
        }
        if entries[1].revents & Int16(POLLIN) != 0, connectStatus == nil {
            var byte: UInt8 = 0
            if recv(entries[1].fd, &byte, 1, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT)) == 0 {
                throw lossNow
            }
        }
        if iscsi_service(context, Int32(entries[1].revents)) < 0 { throw lossNow }
        // libiscsi would reconnect here; told not to, it keeps quiet about it.
        let isBroken = entries[1].revents & Int16(POLLERR | POLLHUP) != 0
        if isBroken, connectStatus == nil, loginStatus == nil { throw lossNow }
    }

    /// The connection has ended; in a login libiscsi may have said why.
    private var lossNow: Loss {
        if queue.withLock({ $0.isLoggedIn }) { return .dropped("the connection was closed") }
        if let status = loginStatus, status != 0 { return loginFailure(status) }
        let text = lastError
        return .unreachable(text.isEmpty ? "it closed the connection in the login" : text)
    }

    private func startCommands() throws(Loss) {
        guard let context else { preconditionFailure("no context") }
        let (submitted, toAbort) = queue.withLock { queue in
            defer {
                queue.submitted = []
                queue.toAbort = []
            }
            return (queue.submitted, queue.toAbort)
        }
        for task in submitted { start(task, context) }
        for task in toAbort {
            guard let flight = inFlight[ObjectIdentifier(task)], !task.isAborting else { continue }
            task.isAborting = true
            aborting[ObjectIdentifier(task)] = flight
            let code = iscsi_task_mgmt_abort_task_async(
                context, task.task,
                { _, _, _, reference in
                    let flight = Unmanaged<Flight>.fromOpaque(reference!).takeUnretainedValue()
                    flight.connection.aborting[ObjectIdentifier(flight.task)] = nil
                    flight.connection.aborted.append(flight)
                }, Unmanaged.passUnretained(flight).toOpaque())
            guard code == 0 else { throw .dropped(lastError) }
        }
    }

    /// What a command's callback gets: who owns it and which command. `inFlight` keeps it.
    private final class Flight {
        let connection: InitiatorConnection
        let task: InitiatorTask
        init(_ connection: InitiatorConnection, _ task: InitiatorTask) {
            self.connection = connection
            self.task = task
        }
    }

    private func end(_ task: InitiatorTask, _ completion: InitiatorTask.Completion) {
        inFlight[ObjectIdentifier(task)] = nil
        task.complete(completion)
    }

    private func start(_ task: InitiatorTask, _ context: OpaquePointer) {
        let direction: scsi_xfer_dir =
            switch task.data {
            case .none: SCSI_XFER_NONE
            case .dataIn: SCSI_XFER_READ
            case .dataOut: SCSI_XFER_WRITE
            }
        var cdb = task.cdb
        let command = scsi_create_task(
            Int32(cdb.count), &cdb, Int32(direction.rawValue), Int32(task.expectedBytes))
        guard let command else { return task.complete(.lost(.dropped("no memory for a command"))) }
        task.task = command
        var code: Int32 = 0
        switch task.data {
        case .none: break
        case .dataIn(let buffer):
            code = scsi_task_add_data_in_buffer(
                command, Int32(buffer.count), buffer.baseAddress?.assumingMemoryBound(to: UInt8.self))
        case .dataOut(let buffer):
            code = scsi_task_add_data_out_buffer(
                command, Int32(buffer.count),
                UnsafeMutablePointer(mutating: buffer.baseAddress?.assumingMemoryBound(to: UInt8.self)))
        }
        let flight = Flight(self, task)
        inFlight[ObjectIdentifier(task)] = flight
        if code == 0 {
            code = iscsi_scsi_command_async(
                context, task.lun, command,
                { _, status, _, reference in
                    let flight = Unmanaged<Flight>.fromOpaque(reference!).takeUnretainedValue()
                    flight.connection.finish(flight.task, status)
                }, nil, Unmanaged.passUnretained(flight).toOpaque())
        }
        if code != 0 {
            scsi_free_scsi_task(command)
            end(task, .lost(.dropped(lastError)))
        }
    }

    private func finish(_ task: InitiatorTask, _ status: Int32) {
        guard let command = task.task else { preconditionFailure("a command that was never sent") }
        task.task = nil
        // libiscsi may still look at it until it returns from its service.
        finished.append(command)
        guard let samStatus = UInt8(exactly: status) else {
            // libiscsi's own: cancelled, an error, a time-out; or an abort, which its answer completes.
            if task.isAborting { return }
            let loss = queue.withLock { $0.lost ?? $0.drop }
            return end(task, .lost(loss ?? .dropped("the connection was closed")))
        }
        var sense: [UInt8] = []
        let datain = command.pointee.datain
        if samStatus == 0x02, let data = datain.data, datain.size >= 2 {
            // The SCSI Response's data segment: SenseLength, then the sense data (RFC 7143 §11.4.7.2).
            let length = min(Int(data[0]) << 8 | Int(data[1]), Int(datain.size) - 2)
            sense = Array(UnsafeBufferPointer(start: data + 2, count: length))
        }
        var moved = task.expectedBytes
        if command.pointee.residual_status == SCSI_RESIDUAL_UNDERFLOW {
            moved = max(0, moved - Int(clamping: command.pointee.residual))
        }
        end(task, .status(samStatus, sense: sense, moved: moved))
    }

    /// What may not be done in libiscsi's callbacks.
    private func cleanUp() {
        for flight in aborted where inFlight[ObjectIdentifier(flight.task)] != nil {
            // A target that aborted a command says nothing more of it, so libiscsi would wait for ever.
            if let context, let command = flight.task.task { iscsi_scsi_cancel_task(context, command) }
            end(flight.task, .aborted)
        }
        aborted = []
        for task in finished { scsi_free_scsi_task(task) }
        finished = []
    }

    private var lastError: String {
        guard let context, let text = iscsi_get_error(context) else { return "" }
        return String(cString: text).split(whereSeparator: \.isNewline).joined(separator: " ")
    }
}
