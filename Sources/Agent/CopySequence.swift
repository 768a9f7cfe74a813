import Blocks
import Foundation
import Glibc
import HostControl
import OriginalImage
import PhysicalCopy

/// The copy sequence (FIG. 6): check everything, institute (602), have the raw source copied (604), end or mark (606),
/// have the original images copied or overlaid (608), release the cache, sum up and put in place (610).
///
/// Whatever happens, applications go on, epochs are ended and released, and nothing half made stays behind.
public final class CopySequence {
    let request: CopyRequest
    let world: Collaborators
    let cancellation: CancellationToken
    let observer: SequenceRecord
    private(set) var members: [CopyMember] = []
    /// All epochs are there, as of one instant: what fails from here on was a copy.
    private(set) var isInstituted = false
    private var groupDirectory = GroupDirectory()
    private let started = MonotonicClock.now

    public init(
        _ request: CopyRequest, _ world: Collaborators, cancellation: CancellationToken,
        observer: any SequenceObserver
    ) {
        self.request = request
        self.world = world
        self.cancellation = cancellation
        self.observer = observer as? SequenceRecord ?? SequenceRecord(tellingAlso: observer)
    }

    /// Runs it to its end. Called once.
    /// - Returns: one outcome for each member, in their order.
    public func run() throws(AgentError) -> [CopyOutcome] {
        do throws(AgentError) {
            let outcomes = try makeCopies()
            for member in members { member.line.close() }
            return outcomes
        } catch {
            // What a session that was cut off makes fail is no failure of its own.
            let isConsequence = error.status == .io || error.status == .unavailable
            var failure =
                cancellation.isCancelled && isConsequence
                ? CancellationToken.interrupted : naming(lostBridge: error)
            if canGoOn(after: failure) {
                failure.advice =
                    "what was copied is kept, and the epoch stays open: the same command with --resume goes on, "
                    + "without it copies anew"
                keepAll()
            } else if request.resumes, !isInstituted {
                // As it was before.
                keepAll()
            } else {
                cleanUp(after: failure)
            }
            throw failure
        }
    }

    private func makeCopies() throws(AgentError) -> [CopyOutcome] {
        try prepare()
        let quiescence = Quiescence(
            request: request, world: world, cancellation: cancellation, observer: observer)
        if request.resumes {
            observer.enter("adopting the epoch")
            for member in members { try adopt(member) }
        } else {
            observer.enter("instituting")
            try quiescence.institute(members)
        }
        isInstituted = true
        while try !isCopied() {}
        for member in members { try finishEpoch(member) }
        let group =
            members.count > 1
            ? GroupDescription(uuid: UUID.fresh().uuidString, members: members.count) : nil
        var manifests: [Manifest] = []
        for member in members { manifests.append(try seal(member, group)) }
        try cancellation.check()
        observer.enter("putting the copy in place")
        let drafts = zip(members, manifests).map { (draft: $0.draft, manifest: $1) }
        try onCopy { () throws(CopyError) in try CopyDraft.commit(drafts) }
        // What is kept is nobody's from now on: it is released on demand, or by the next copy.
        if request.keepsEpoch { for member in members { member.epoch = nil } }
        return zip(members, manifests).map { outcome($0, $1) }
    }

    /// Copies all members as of the epochs in force.
    /// - Returns: false when the host has begun anew meanwhile: what is there is followed, and the rest is to be done.
    private func isCopied() throws(AgentError) -> Bool {
        do throws(AgentError) {
            observer.enter("checking the source")
            for member in members { try checkSource(member) }
            for member in members { try readUse(member) }
            for member in members { beginToc(member) }
            for member in members { try openAccount(member) }
            for member in members { try naming(member) { () throws(AgentError) in try copyRaw(member) } }
            for member in members { try checkCopy(member) }
            for member in members { try finishToc(member) }
            observer.enter("ending the epoch")
            for member in members { try endOrMark(member) }
            for member in members {
                try naming(member) { () throws(AgentError) in try copyOriginals(member) }
            }
            return true
        } catch {
            guard error.cause == .restarted else { throw error }
            for member in members { try follow(member) }
            return false
        }
    }

    private func cleanUp(after failure: AgentError) {
        for member in members {
            member.toc?.giveUp()
            // What the cache holds is known only until it is released.
            let record = abandonedCopy(of: member, failure)
            if let notice = member.giveUpEpoch(reconnect: world.connectHost) { observer.notice(notice) }
            member.bridge?.end()
            do throws(CopyError) {
                if let record {
                    try member.draft.abandon(leaving: record)
                } else {
                    try member.draft.abandon()
                }
            } catch { observer.notice("\(error)") }
            member.line.close()
        }
        groupDirectory.removeIfMade(world.files)
    }

    /// What is to be left at the destination; nil when nothing is: before the instant there was no copy that could be
    /// missed, and whoever interrupts one knows why there is none.
    private func abandonedCopy(of member: CopyMember, _ failure: AgentError) -> AbandonedCopy? {
        guard isInstituted, !cancellation.isCancelled, let epoch = member.instituted else { return nil }
        member.lookAtCache()
        let now = world.realTime()
        return AbandonedCopy(
            tool: request.tool, volume: member.volume, mode: request.mode,
            postMortem: PostMortem(
                abandonedAt: now, phase: observer.current.phase, reason: failure.description,
                exitStatus: failure.status.rawValue, epoch: epoch.number, epochUUID: epoch.uuid,
                institutedAt: epoch.institutedAt,
                // The host's number may be any.
                secondsSinceInstitution: (Double(now) - Double(epoch.institutedAt)) / 1e9,
                cacheUsed: member.cacheUsed, cacheCapacity: member.cacheCapacity,
                bytesCopied: member.copiedBytes))
    }

    // MARK: Before anything is stopped

    private func prepare() throws(AgentError) {
        guard !request.members.isEmpty, request.members.count <= AgentLimits.hosts else {
            throw AgentError(
                .usage, doing: "copying", to: "",
                because: "1 to \(AgentLimits.hosts) hosts can be copied at once")
        }
        if case .standing = request.bridge, request.members.count > 1 {
            throw AgentError(
                .usage, doing: "copying", to: "",
                because: "a standing bridge's units are given for one host only",
                advice: "leave out --bridge, or copy one host")
        }
        try groupDirectory.make(for: request.members, world.files)
        for wanted in request.members {
            try cancellation.check()
            let line = try world.connectHost(wanted.control)
            let status = try line.status()
            guard !members.contains(where: { $0.status.volumeUUID == status.volumeUUID }) else {
                throw AgentError(
                    .usage, doing: "copying", to: wanted.control, because: "the same volume was named twice")
            }
            if request.resumes {
                members.append(try takeUp(wanted, line, status))
                continue
            }
            try clearTheWay(line, status)
            let draft = try onCopy { () throws(CopyError) in
                try CopyDraft(
                    destination: wanted.destination, force: request.force, files: world.files)
            }
            members.append(CopyMember(line: line, status: status, draft: draft))
        }
        if !request.resumes {
            try FreezeCheck(members: members, fileSystems: world.fileSystems).run(request.freeze)
        }
        try requireOneInstant()
        for member in members {
            try cancellation.check()
            try connectBridge(member)
        }
    }

    /// An epoch that nobody holds any more was left by an agent that died; one that is held is another copy.
    private func clearTheWay(_ line: any HostLine, _ status: VolumeStatus) throws(AgentError) {
        func busy(_ reason: String, _ advice: String) -> AgentError {
            AgentError(.tryAgain, doing: "copying", to: status.source, because: reason, advice: advice)
        }
        guard !status.isFrozen else {
            throw busy("the volume is frozen", "try again when it is thawed")
        }
        guard let epoch = status.epoch, epoch.state != .released else { return }
        guard !epoch.isHeld else {
            throw busy("another copy of it is running", "try again when that is over")
        }
        observer.notice(
            "epoch \(epoch.number) of \(status.source), \(epoch.state.rawValue), was left by a copy that died, or kept; "
                + "it is released")
        do throws(AgentError) {
            _ = try line.call(
                CacheReleaseMethod.self, EpochParameters(epoch: epoch.uuid),
                timeout: AgentLimits.hostFlushSeconds)
        } catch {
            // What it had asked for before it died may have been done meanwhile.
            guard error.cause == .control(.noSuchEpoch) else { throw error }
        }
    }

    func connectBridge(_ member: CopyMember) throws(AgentError) {
        let numbers: (source: Int, cache: Int, copy: Int)
        let bridge: any BridgeConnection
        switch request.bridge {
        case .privateOne:
            numbers = (0, 1, 2)
            if member.resumed == nil, member.bridge == nil { try member.makeDataFile(request.mode) }
            bridge = try startPrivateBridge(member)
        case .standing(let address, let source, let cache, let copy):
            numbers = (source, cache, copy)
            bridge = try world.connectBridge(address, cancellation)
        }
        member.bridge = bridge
        let source = try bridge.copier.unit(numbers.source)
        let cache = try bridge.copier.unit(numbers.cache)
        let copy = try bridge.copier.unit(numbers.copy)
        try checkUnits(member, bridge.copier.name, source, cache, copy)
        if request.bridge != .privateOne {
            let check = DestinationCheck(
                status: member.status, bridge: bridge.copier.name, copy: copy,
                store: try bridge.copier.store(of: copy, isCancelled: isCancelled))
            // What is there is ours where the copy goes on.
            try check.run(
                others: [source, cache], force: request.force || member.resumed != nil, cancellation)
        }
        member.source = source
        member.cache = cache
        member.copy = copy
        try beginChecksums(member)
    }

    /// Where a copy goes on, the bridge of the one that died may be on its way out, and has the copy's file meanwhile.
    private func startPrivateBridge(_ member: CopyMember) throws(AgentError) -> any BridgeConnection {
        let units = [
            PrivateUnit(0, member.status.source, isReadOnly: true),
            PrivateUnit(1, member.status.cache, isReadOnly: true),
            PrivateUnit(2, member.draft.path(of: DataLocation.usualName), isReadOnly: false),
        ]
        let deadline = MonotonicClock.now &+ UInt64(AgentLimits.oldBridgeSeconds * 1e9)
        while true {
            do throws(AgentError) { return try world.startPrivateBridge(units, cancellation) } catch {
                guard member.resumed != nil, error.status == .tryAgain, error.cause != .interrupted,
                    MonotonicClock.now < deadline
                else { throw error }
                try cancellation.pause(nanoseconds: AgentLimits.watchNanoseconds)
            }
        }
    }

    private func checkUnits(
        _ member: CopyMember, _ bridge: String, _ source: UnitDescription, _ cache: UnitDescription,
        _ copy: UnitDescription
    ) throws(AgentError) {
        func unusable(_ status: AgentError.ExitStatus, _ unit: UnitDescription, _ why: String) -> AgentError {
            AgentError(status, doing: "using unit \(unit.number) of", to: bridge, because: why)
        }
        let size = member.status.size
        guard source.size >= size else {
            throw unusable(
                .inputMissing, source, "it has \(source.size) bytes, and the host's source has \(size)")
        }
        for other in [source, cache]
        where other.number == copy.number || other.copyDesignator == copy.copyDesignator {
            throw unusable(.usage, copy, "the copy would overwrite the source or its cache")
        }
        guard source.number != cache.number else {
            throw unusable(.usage, source, "source and cache are the same unit")
        }
        guard !copy.isWriteProtected else {
            throw unusable(.notPermitted, copy, "it is read-only, so no copy can be put there")
        }
        let needed = request.mode == .append ? member.logBase + LogFormat.firstBatch : size
        guard copy.size >= needed else {
            throw unusable(
                .cannotCreate, copy,
                "it has \(copy.size) bytes, and the copy needs \(needed)")
        }
        let block = UInt64(copy.capacity.blockLength)
        guard size % block == 0 || request.bridge == .privateOne || request.mode == .append else {
            throw unusable(.cannotCreate, copy, "the volume's size is not a multiple of its blocks")
        }
    }

    // MARK: The raw pass

    private func checkSource(_ member: CopyMember) throws(AgentError) {
        guard !member.isSourceChecked else { return }
        guard let copier = member.bridge?.copier, let source = member.source, let cache = member.cache else {
            preconditionFailure("a member without a bridge")
        }
        try check(member, copier) { check, localCache throws(AgentError) in
            try check.checkUnits(
                (source, cache), source: try copier.store(of: source, isCancelled: isCancelled),
                cache: try copier.store(of: cache, isCancelled: isCancelled), localCache: localCache)
        }
        member.isSourceChecked = true
    }

    private func checkCopy(_ member: CopyMember) throws(AgentError) {
        guard let copier = member.bridge?.copier, let copy = member.copy else { preconditionFailure() }
        observer.progress(SequenceProgress(phase: "checking the copy", done: 0, total: 0))
        try check(member, copier) { check, localCache throws(AgentError) in
            try check.checkCopy(
                try copier.store(of: copy, isCancelled: isCancelled), localCache: localCache)
        }
    }

    private func check(
        _ member: CopyMember, _ copier: any ThirdPartyCopier,
        _ body: (SourceCheck, any BlockStore) throws(AgentError) -> Void
    ) throws(AgentError) {
        do throws(AgentError) {
            let snapshot = try world.openSnapshot(member.status)
            guard snapshot.size == member.status.size else {
                throw AgentError(
                    .unavailable, doing: "asking the host at", to: member.line.path,
                    because: "its logical snapshot has \(snapshot.size) bytes, and its volume "
                        + "\(member.status.size)",
                    advice: "check that the socket is that of an `outboard host` of this version")
            }
            let check = SourceCheck(
                member: member, snapshot: snapshot, bridge: copier.name, cancellation: cancellation)
            try body(check, try world.openStore(member.status.cache, false))
        } catch {
            // The snapshot goes away when its epoch does, and the log may be another's: then that is the reason, not what
            // was read.
            if error.status != .tryAgain { try member.settleEpoch() }
            throw error
        }
    }

    /// Has runs copied onto the copy unit and watches the epoch meanwhile.
    /// - Parameter watch: looks at it, now and then.
    func have(
        _ member: CopyMember, copied runs: [CopyRun], from source: UnitDescription,
        account: (any CommandAccount)? = nil, phase: String,
        watch: () throws(AgentError) -> CopyMember.Outlook
    ) throws(AgentError) {
        guard let copier = member.bridge?.copier, let copy = member.copy else { preconditionFailure() }
        let total = runs.reduce(0) { $0 + $1.count }
        let before = member.copiedBytes
        observer.progress(SequenceProgress(phase: phase, done: 0, total: total))
        do throws(AgentError) {
            try CopyRunner.run(
                runs, from: source, to: copy, by: copier, rate: request.maximumRate, account: account,
                cancellation: cancellation
            ) { done throws(AgentError) in
                // A command that has just ended is, for a moment, neither running nor done.
                let copied = max(member.copiedBytes, before + done)
                observer.copied(copied - member.copiedBytes)
                member.copiedBytes = copied
                let outlook = try watch()
                observer.progress(
                    SequenceProgress(
                        phase: phase, done: done, total: total, cacheFill: outlook.fill,
                        secondsToFull: outlook.secondsToFull))
            }
        } catch {
            // A source that went away with its host, or an epoch that became void, says more than the
            // command that failed by it.
            if error.status != .tryAgain { try member.checkEpoch() }
            throw error
        }
    }

    /// Runs a step that writes the copy; a full disk is then told by the copy's name.
    private func naming(_ member: CopyMember, _ step: () throws(AgentError) -> Void) throws(AgentError) {
        do throws(AgentError) { try step() } catch {
            guard request.bridge == .privateOne else { throw error }
            throw error.namingFullDisk(doing: "copying to", to: member.draft.destination)
        }
    }

    /// For operations under way that shall end with the sequence.
    var isCancelled: @Sendable () -> Bool { { [cancellation] in cancellation.isCancelled } }

    private func outcome(_ member: CopyMember, _ manifest: Manifest) -> CopyOutcome {
        CopyOutcome(
            copy: member.draft.destination, uuid: manifest.uuid, volume: manifest.volume.uuid,
            mode: manifest.mode, epoch: manifest.epoch.number, instant: manifest.epoch.institutedAt,
            gateNanoseconds: member.instituted?.gateNanoseconds ?? 0, bytes: manifest.volume.size,
            usedBytes: manifest.usedBytes,
            originals: manifest.epoch.entries, originalBytes: manifest.epoch.logBytes,
            seconds: Double(MonotonicClock.now &- started) / 1e9, copySeconds: member.copySeconds,
            readBackBytes: member.readBackBytes, toc: member.tocSummary, restarts: manifest.epoch.restarts,
            firstInstant: manifest.epoch.restarts.flatMap { _ in member.begun?.institutedAt },
            copiedAgainBytes: manifest.epoch.restarts.map { _ in member.copiedAgainBytes },
            resumedBytes: member.resumed.map { _ in member.resumedBytes })
    }
}
