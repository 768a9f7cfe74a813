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
        case .abortTaskSet: begin(tag, concerned(pdu) { $0.lun.means(lun) }, .ownTasks(lun))
        case .clearTaskSet: begin(tag, concerned(pdu) { $0.lun.means(lun) }, .taskSet(lun))
        case .logicalUnitReset: begin(tag, concerned(pdu) { $0.lun.means(lun) }, .logicalUnit(lun))
        case .targetWarmReset: begin(tag, concerned(pdu) { _ in true }, .target)
        case .targetColdReset: begin(tag, concerned(pdu) { _ in true }, .target, isCold: true)
        // Error recovery level 0.
        case .taskReassign: respond(tag, .reassignmentNotSupported)
        // No ACA; and the functions of RFC 7144 belong to a protocol level that is not agreed upon.
        case .clearACA, nil: respond(tag, .notSupported)
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
        if let task = tasks[referenced] {
            // A task is known by its unit, too (SAM-5 §7.2).
            guard task.lun.means(LogicalUnitNumber(rawValue: pdu.lun)) else {
                return respond(pdu.initiatorTaskTag, .taskDoesNotExist)
            }
            return begin(pdu.initiatorTaskTag, [referenced], nil)
        }
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

    private mutating func begin(
        _ tag: UInt32, _ concerned: [UInt32], _ scope: ResetScope?, isCold: Bool = false
    ) {
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
            initiatorTaskTag: tag, awaited: awaited, awaitsDevice: scope != nil, isCold: isCold)
        functions[tag] = function
        if let scope { actions.append(.reset(tag: tag, scope)) }
        if function.isDone { end(tag) }
        admitTasks()
    }

    /// Another session's reset or clear concerns tasks of this one on `units`: they end with TASK ABORTED.
    mutating func abortTasks(on units: [LogicalUnitNumber]) -> [Action] {
        guard isLoggedIn else { return [] }
        for (tag, task) in tasks where units.contains(where: task.lun.means) && task.hasTurn {
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

    /// Tasks in the device server's hands, on `units` or on all.
    func executing(on units: [LogicalUnitNumber]? = nil) -> Set<UInt32> {
        let concerned = tasks.filter { _, task in
            task.phase == .executing && (units?.contains(where: task.lun.means) ?? true)
        }
        return Set(concerned.keys)
    }

    /// The device's part of a reset is done, or it has failed with another answer than `complete`.
    mutating func resetDone(_ tag: UInt32, _ answer: TaskManagement.Response = .complete) -> [Action] {
        guard isLoggedIn, functions[tag] != nil else { return [] }
        guard answer == .complete else {
            functions[tag] = nil
            respond(tag, answer)
            return takeActions()
        }
        functions[tag]?.awaitsDevice = false
        if functions[tag]?.isDone == true { end(tag) }
        return takeActions()
    }

    private mutating func end(_ tag: UInt32) {
        let isCold = functions.removeValue(forKey: tag)?.isCold == true
        respond(tag, .complete)
        // RFC 7143 §11.5.1: then the connections end, to other initiators, too.
        guard isCold else { return }
        actions.append(.endSessions)
        close("cold reset")
    }

    private mutating func respond(_ tag: UInt32, _ answer: TaskManagement.Response) {
        var response = PDU(Opcode.taskManagementResponse)
        response[byte: 2] = answer.rawValue
        response.initiatorTaskTag = tag
        putStatus(&response)
    }
}
