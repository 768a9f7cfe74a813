import SCSI

/// One SCSI command in a session, from its arrival to its status.
struct SessionTask {
    enum Phase: Hashable {
        /// Until its CmdSN's turn has come and there is room for its data.
        case waiting
        /// Its data-out is being asked for.
        case soliciting
        case executing
    }

    let lun: LogicalUnitNumber
    let cdb: [UInt8]
    let isRead: Bool
    let isWrite: Bool
    /// EXPECTED DATA TRANSFER LENGTH, bytes.
    let expected: Int
    /// The task attribute is ORDERED (SAM-5 §8.9): nothing overtakes it, and it overtakes nothing.
    let isOrdered: Bool
    /// RefCmdSN of an abort.
    let cmdSN: UInt32
    var phase = Phase.waiting
    /// Its CmdSN's turn has come; it takes a place in the window until its end.
    var hasTurn = false
    var data: [UInt8] = []
    /// Unsolicited data may still come.
    var unsolicited: Bool
    /// Delivered outside the order of commands; does not count in the window.
    let isImmediate: Bool
    /// DataSN that the next Data-Out of this burst must have.
    var nextDataSN: UInt32 = 0
    var transferTag: UInt32 = reservedTag
    /// Where the burst that was asked for ends.
    var burstEnd = 0
    /// Data came damaged or out of sequence: the rest is dropped, and the task fails when its last Data-Out is there.
    var isSpoiled = false
    var r2tSN: UInt32 = 0
    /// The command in the device server's hands.
    var command: SCSITask?
    /// What it holds of the session's budget, bytes.
    var cost = 0
    /// Aborted by this session: no status goes out.
    var isAborted = false

    var expectedOut: Int { isWrite ? expected : 0 }
    var expectedIn: Int { isRead && !isWrite ? expected : 0 }
    var lacksData: Bool { data.count < expectedOut }
}

/// A task management function under way (RFC 7143 §11.5).
struct TaskManagement {
    enum Function: UInt8 {
        case abortTask = 1
        case abortTaskSet = 2
        case clearACA = 3
        case clearTaskSet = 4
        case logicalUnitReset = 5
        case targetWarmReset = 6
        case targetColdReset = 7
        case taskReassign = 8
    }

    /// RFC 7143 §11.6.1.
    enum Response: UInt8 {
        case complete = 0
        case taskDoesNotExist = 1
        case logicalUnitDoesNotExist = 2
        case reassignmentNotSupported = 4
        case notSupported = 5
        case rejected = 255
    }

    let initiatorTaskTag: UInt32
    /// Tasks of this session that must end first.
    var awaited: Set<UInt32>
    /// The device's part of a reset is still to come.
    var awaitsDevice: Bool
    /// Sessions are ended behind the answer.
    var isCold = false

    var isDone: Bool { awaited.isEmpty && !awaitsDevice }
}

/// What a reset or a clear concerns.
enum ResetScope: Hashable, Sendable {
    /// ABORT TASK SET: the session's own tasks on the unit, which the session sees to itself.
    case ownTasks(LogicalUnitNumber)
    /// CLEAR TASK SET: abort all tasks on the unit, of all sessions, and no more.
    case taskSet(LogicalUnitNumber)
    case logicalUnit(LogicalUnitNumber)
    /// All units that the session sees (RFC 7143 §11.5.1: "known to the issuing initiator").
    case target

    /// The one unit that it concerns; nil: all that are seen.
    var unit: LogicalUnitNumber? {
        switch self {
        case .ownTasks(let unit), .taskSet(let unit), .logicalUnit(let unit): unit
        case .target: nil
        }
    }
}

extension LogicalUnitNumber {
    /// Whether both mean the same unit, however they address it.
    func means(_ other: LogicalUnitNumber) -> Bool {
        self == other || (number != nil && number == other.number)
    }
}
