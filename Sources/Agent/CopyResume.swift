import Blocks
import Foundation
import HostControl
import PhysicalCopy
import TableOfContents

/// How a copy goes on whose agent or bridge has died: by the record in its draft, while its epoch is open. Until all of its
/// epochs are adopted nothing is changed anywhere, so that it can be tried again.
extension CopySequence {
    private static let resuming = "resuming the copy"

    /// Finds what was begun, and sees that it is of this volume, of an epoch that can be adopted, and of the kind that is asked
    /// for.
    func takeUp(
        _ wanted: CopyRequest.Member, _ line: any HostLine, _ status: VolumeStatus
    ) throws(AgentError) -> CopyMember {
        let left = try onCopy { () throws(CopyError) in
            try CopyDraft.resume(wanted.destination, force: request.force, files: world.files) {
                isOf($0, status)
            }
        }
        switch left {
        case .nothing:
            throw AgentError(
                .inputMissing, doing: Self.resuming, to: wanted.destination,
                because: "there is nothing to resume: no copy to it was cut off", advice: CopyDraft.copyAnew)
        case .alive:
            throw AgentError(
                .tryAgain, doing: Self.resuming, to: wanted.destination,
                because: "another process is making it", advice: "try again when that is over")
        case .draft(let draft, let record):
            do throws(AgentError) {
                try check(record, of: wanted, status)
                let member = CopyMember(line: line, status: status, draft: draft)
                member.resumed = record
                member.used = try onCopy { () throws(CopyError) in try draft.used(of: record) }
                member.usedFile = record.used
                return member
            } catch {
                draft.keep()
                throw error
            }
        }
    }

    private func isOf(_ record: ResumeRecord, _ status: VolumeStatus) -> Bool {
        record.volume.uuid == status.volumeUUID && Self.isOf(record.epoch, status.epoch)
    }

    private static func isOf(_ record: ResumeRecord.Epoch, _ epoch: EpochStatus?) -> Bool {
        guard let epoch else { return false }
        return epoch.uuid == record.uuid || epoch.restartedFrom == record.begun
    }

    private func check(
        _ record: ResumeRecord, of wanted: CopyRequest.Member, _ status: VolumeStatus
    ) throws(AgentError) {
        func refuse(
            _ exit: AgentError.ExitStatus, _ reason: String, _ advice: String = CopyDraft.copyAnew
        ) -> AgentError {
            AgentError(exit, doing: Self.resuming, to: wanted.destination, because: reason, advice: advice)
        }
        guard record.volume.uuid == status.volumeUUID, record.volume.size == status.size,
            record.volume.chunkSize == status.chunkSize
        else {
            throw refuse(
                .inputMissing, "what was begun there is of another volume than \(status.source)",
                "name the host of \(record.volume.source), or copy anew, without --resume")
        }
        guard record.members == request.members.count else {
            throw refuse(
                .usage, "it was begun of \(record.members) volumes at one instant",
                "name the hosts of all of them")
        }
        guard record.mode == request.mode, (record.used != nil) == request.usedOnly,
            record.location == location
        else {
            throw refuse(
                .usage, "it was begun with other options: \(Self.options(record))", "give those, too")
        }
        guard Self.isOf(record.epoch, status.epoch), let epoch = status.epoch, epoch.state == .open else {
            let why = status.epoch.flatMap { $0.state == .void ? $0.voidReason : nil }
            throw refuse(
                .tryAgain,
                "the host has its epoch \(record.epoch.number) no more" + (why.map { ": \($0)" } ?? ""))
        }
        guard !epoch.isHeld else {
            throw refuse(
                .tryAgain, "another copy of \(status.source) is running", "try again when that is over")
        }
    }

    private static func options(_ record: ResumeRecord) -> String {
        var options = ["--mode \(record.mode.rawValue)"]
        if record.used != nil { options.append("--used-only") }
        if case .unit(let target, let number) = record.location {
            options.append("--bridge \(target) --copy-unit \(number)")
        } else {
            options.append("no --bridge")
        }
        return options.joined(separator: ", ")
    }

    /// Where the copy's data are.
    var location: DataLocation {
        switch request.bridge {
        case .privateOne: .usual
        case .standing(let address, _, _, let copy): .unit(target: "\(address)", number: copy)
        }
    }

    /// Makes a member's epoch ours again, and its account what the record says.
    func adopt(_ member: CopyMember) throws(AgentError) {
        guard let record = member.resumed, let found = member.status.epoch, let copy = member.copy else {
            preconditionFailure("nothing to adopt")
        }
        guard record.unit == Self.name(of: copy, request.bridge) else {
            throw AgentError(
                .inputMissing, doing: "using unit \(copy.number) of", to: member.bridge?.copier.name ?? "",
                because: "it is another unit than the one to which the copy was begun",
                advice: "name that one with --copy-unit, or copy anew, without --resume")
        }
        do throws(AgentError) {
            member.epoch = try member.line.call(SnapshotAdoptMethod.self, .init(epoch: found.uuid))
        } catch {
            guard case .control(let code) = error.cause,
                [.noSuchEpoch, .epochVoid, .methodNotFound].contains(code)
            else { throw error }
            throw AgentError(
                .tryAgain, doing: Self.resuming, to: member.draft.destination,
                because: "the host cannot give its epoch \(found.number) back: \(error.reason)",
                advice: CopyDraft.copyAnew, cause: error.cause)
        }
        var epoch = EpochStatus(
            number: record.epoch.number, uuid: record.epoch.uuid, state: .open,
            institutedAt: record.epoch.institutedAt, gateNanoseconds: record.epoch.gateNanoseconds,
            isHeld: true)
        if record.epoch.restarts > 0 {
            (epoch.restartedFrom, epoch.restarts) = (record.epoch.begun, record.epoch.restarts)
        }
        member.instituted = epoch
        member.begun = epoch
        member.begun?.uuid = record.epoch.begun
        member.changesMayBeLost = true
        try takeContents(of: record, member)
        let checkpoints = try account(of: member)
        guard checkpoints.isWhole else {
            throw AgentError(
                .inputMissing, doing: Self.resuming, to: member.draft.destination,
                because: "the blocks of the bridge's units have another size than when it was begun",
                advice: CopyDraft.copyAnew)
        }
        member.checkpoints = checkpoints
    }

    /// The table of contents of the one who has died, if he had built it.
    private func takeContents(of record: ResumeRecord, _ member: CopyMember) throws(AgentError) {
        var hasToc = false
        switch record.contents {
        case .pending: break
        case .none: member.isTocLeftOut = true
        case .built(let description, let summary):
            let found = try? TableOfContentsFile.describe(
                member.draft.path(of: TocDescription.fileName), files: world.files)
            guard request.wantsToc, found == description, let summary = TocBuild.decode(summary) else {
                leaveOutToc(member, because: "the one that was built is not there any more")
                break
            }
            member.tocSummary = summary
            hasToc = true
        }
        if !request.wantsToc { member.isTocLeftOut = true }
        try onCopy { () throws(CopyError) in try member.draft.clearUp(hasToc: hasToc) }
    }

    /// What a record says of the table of contents.
    func contents(of member: CopyMember) -> ResumeRecord.Contents {
        guard case .built(let description, let summary) = member.resumed?.contents, member.tocSummary != nil
        else { return member.isTocLeftOut ? .none : .pending }
        return .built(description, summary: summary)
    }

    /// Several volumes go on as copies of the one instant as of which they were begun.
    func requireOneInstant() throws(AgentError) {
        let records = members.compactMap(\.resumed)
        guard Set(records.map(\.epoch.institutedAt)).count > 1 else { return }
        throw AgentError(
            .usage, doing: Self.resuming, to: "",
            because: "what was begun of these volumes is not as of one instant", advice: CopyDraft.copyAnew)
    }

    // MARK: What is noted

    /// What of a record does not change while the copy is made.
    func record(of member: CopyMember) -> ResumeRecord {
        guard let begun = member.begun, let epoch = member.instituted, let copy = member.copy else {
            preconditionFailure("nothing to note")
        }
        return ResumeRecord(
            tool: request.tool,
            volume: VolumeDescription(
                uuid: member.status.volumeUUID, size: member.status.size,
                chunkSize: member.status.chunkSize, source: member.status.source),
            mode: request.mode, ending: request.ending, location: location,
            unit: Self.name(of: copy, request.bridge), members: request.members.count,
            frozen: member.resumed?.frozen ?? request.freeze,
            epoch: ResumeRecord.Epoch(
                begun: begun.uuid, uuid: epoch.uuid, number: epoch.number, institutedAt: epoch.institutedAt,
                restarts: epoch.restarts ?? 0, gateNanoseconds: epoch.gateNanoseconds),
            contents: .pending, used: nil, durable: .empty)
    }

    /// By what a standing bridge's unit is known again.
    private static func name(of unit: UnitDescription, _ bridge: CopyRequest.Bridge) -> String? {
        guard bridge != .privateOne else { return nil }
        let designator = unit.copyDesignator
        return designator.map {
            "\($0.type):" + $0.designator.map { String($0, radix: 16) }.joined(separator: ".")
        }
            ?? "unit \(unit.number)"
    }

    // MARK: What is kept

    /// Whether a failed copy can go on: its bridge is gone, and all else that it needs is there.
    func canGoOn(after error: AgentError) -> Bool {
        guard !cancellation.isCancelled, isInstituted, members.contains(where: { $0.bridge?.isLost == true })
        else { return false }
        return members.allSatisfy { member in
            guard member.epoch != nil, member.resumed != nil || member.checkpoints?.isNoted == true else {
                return false
            }
            do throws(AgentError) {
                return try member.current(in: member.line.status()).state == .open
            } catch { return false }
        }
    }

    /// Leaves everything for the one who resumes: drafts, and epochs that nobody holds.
    func keepAll() {
        for member in members {
            member.toc?.giveUp()
            member.bridge?.end()
            member.draft.keep()
            member.line.close()
        }
    }

    /// A bridge that is gone is why a copy failed, whatever it was doing.
    func naming(lostBridge error: AgentError) -> AgentError {
        guard error.cause != .interrupted, error.status == .io || error.status == .unavailable,
            let lost = members.first(where: { $0.bridge?.isLost == true }), let copier = lost.bridge?.copier
        else { return error }
        if error.status == .unavailable { return error }
        return AgentError(
            .unavailable, doing: "copying by", to: copier.name,
            because: "the bridge is gone; \(error.doing) \(error.subject): \(error.reason)",
            advice: "check that the bridge runs, its address and its log", cause: .disconnected)
    }
}

extension ResumeRecord {
    /// With what changes while a copy is made.
    func with(_ state: Checkpoints.CopyState) -> ResumeRecord {
        var next = self
        if state.epoch.uuid != epoch.uuid {
            next.epoch.uuid = state.epoch.uuid
            next.epoch.number = state.epoch.number
            next.epoch.institutedAt = state.epoch.institutedAt
            next.epoch.restarts = state.epoch.restarts ?? 0
            next.epoch.gateNanoseconds = state.epoch.gateNanoseconds
        }
        next.contents = state.contents
        next.used = state.used
        next.durable = Extents(state.durable)
        return next
    }
}
