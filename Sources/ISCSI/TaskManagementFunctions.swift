import SCSI

/// Task management (RFC 7143 §11.5, §4.2.3.3). A function is answered when every task it concerns has ended.
extension TargetConnection {
    mutating func manageTasks(_ pdu: PDU) throws(ProtocolViolation) {
        let tag = pdu.initiatorTaskTag
        guard tag != reservedTag, tasks[tag] == nil, functions[tag] == nil else {
            return reject(pdu, .taskInProgress)
        }
        guard login?.isDiscovery == false, functions.count < ISCSILimits.immediateCommands else {
            return respond(tag, .rejected)
        }
        let lun = LogicalUnitNumber(rawValue: pdu.lun)
        switch TaskManagement.Function(rawValue: pdu.flags & 0x7F) {
        case .abortTask: try abortTask(pdu)
        case .abortTaskSet: begin(tag, concerned(pdu) { $0.lun == lun }, nil)
        case .clearTaskSet: begin(tag, concerned(pdu) { $0.lun == lun }, .taskSet(lun))
        case .logicalUnitReset: begin(tag, concerned(pdu) { $0.lun == lun }, .logicalUnit(lun))
        case .targetWarmReset: begin(tag, concerned(pdu) { _ in true }, .target)
        case .taskReassign: respond(tag, .reassignmentNotSupported)
        case .clearACA, .targetColdReset, nil: respond(tag, .notSupported)
        }
    }

    /// The tasks that come before the function: a numbered one may find others behind it that arrived early.
    private func concerned(_ pdu: PDU, _ isMeant: (SessionTask) -> Bool) -> [UInt32] {
        tasks.filter { _, task in
            (pdu.isImmediate || task.isImmediate || task.hasTurn) && isMeant(task)
        }.map(\.key)
    }

    private mutating func abortTask(_ pdu: PDU) throws(ProtocolViolation) {
        let referenced = pdu.targetTransferTag
        if tasks[referenced] != nil { return begin(pdu.initiatorTaskTag, [referenced], nil) }
        // Not there: it is done already, or has never come. Then the function stands for it: its number counts as
        // received, so that those behind it have their turn (RFC 7143 §11.6.1).
        let number = pdu[word: 32]
        guard windowHas(number), Int32(bitPattern: number &- pdu.cmdSN) < 0 else {
            return respond(pdu.initiatorTaskTag, .taskDoesNotExist)
        }
        if early[number] == nil {
            var nothing = PDU(Opcode.nopOut)
            nothing.isImmediate = true
            nothing.initiatorTaskTag = reservedTag
            nothing.cmdSN = number
            try arrive(nothing)
        }
        respond(pdu.initiatorTaskTag, .complete)
    }

    private mutating func begin(_ tag: UInt32, _ concerned: [UInt32], _ scope: ResetScope?) {
        var awaited: Set<UInt32> = []
        for other in concerned {
            guard var task = tasks[other] else { continue }
            task.isAborted = true
            tasks[other] = task
            if task.phase == .executing {
                task.command?.abort()
                awaited.insert(other)
            } else {
                heldBytes -= task.cost
                remove(other)
                settle(other)
            }
        }
        let function = TaskManagement(
            initiatorTaskTag: tag, awaited: awaited, awaitsDevice: scope != nil)
        functions[tag] = function
        if let scope { actions.append(.reset(tag: tag, scope)) }
        if function.isDone { end(tag) }
        admitTasks()
    }

    /// Another session's reset or clear concerns tasks of this one: they end with TASK ABORTED.
    mutating func abortTasks(_ scope: ResetScope) -> [Action] {
        guard isLoggedIn else { return [] }
        for (tag, task) in tasks where scope.concerns(task.lun) && task.hasTurn {
            if task.phase == .executing {
                task.command?.abort()
            } else {
                refuse(tag, SCSIOutcome(status: .taskAborted))
            }
        }
        admitTasks()
        return takeActions()
    }

    /// A task has ended: whoever waited for it may go on.
    mutating func settle(_ task: UInt32) {
        for (tag, function) in functions where function.awaited.contains(task) {
            functions[tag]?.awaited.remove(task)
            if functions[tag]?.isDone == true { end(tag) }
        }
    }

    /// Whether the device is at a command of this session.
    var isExecuting: Bool { tasks.values.contains { $0.phase == .executing } }

    /// Tasks in the device server's hands that a reset or clear concerns.
    func executing(_ scope: ResetScope) -> Set<UInt32> {
        Set(tasks.filter { $0.value.phase == .executing && scope.concerns($0.value.lun) }.map(\.key))
    }

    /// The device's part of a reset is done.
    /// - Parameter isComplete: false when tasks of other sessions did not end.
    mutating func resetDone(_ tag: UInt32, isComplete: Bool = true) -> [Action] {
        guard isLoggedIn, functions[tag] != nil else { return [] }
        guard isComplete else {
            functions[tag] = nil
            respond(tag, .rejected)
            return takeActions()
        }
        functions[tag]?.awaitsDevice = false
        if functions[tag]?.isDone == true { end(tag) }
        return takeActions()
    }

    private mutating func end(_ tag: UInt32) {
        functions[tag] = nil
        respond(tag, .complete)
    }

    private mutating func respond(_ tag: UInt32, _ answer: TaskManagement.Response) {
        var response = PDU(Opcode.taskManagementResponse)
        response[byte: 2] = answer.rawValue
        response.initiatorTaskTag = tag
        putStatus(&response)
    }
}
