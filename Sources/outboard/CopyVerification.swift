import Agent
import Blocks
import PhysicalCopy
import TableOfContents

/// Whether a copy is as it was made; and, while its epoch is open, as the volume was at the instant.
struct CopyVerification {
    private let copy: PhysicalCopy

    private struct Output: Encodable {
        var copy: String
        var ok: Bool
        var bytes: UInt64
        var originals: UInt64
        var findings: [Finding]
        var moreFindings: UInt64
        var notes: [String]
        var against: Against?
    }

    private struct Against: Encodable {
        var epoch: UInt64
        var bytes: UInt64
        var unusedBytes: UInt64
        var goneBytes: UInt64
        var different: [SnapshotComparison.Difference]
        var moreDifferences: UInt64
    }

    init(_ directory: String) throws(CopyError) { copy = try PhysicalCopy(directory) }

    /// What to say where there is no copy that could be looked at: a damaged manifest is a finding like others.
    static func refusal(_ error: CopyError, of directory: String, json: Bool) throws -> Failure {
        var failure = error.failure
        if let finding = PhysicalCopy.manifestFinding(error, in: directory) {
            if json {
                try Console.print(
                    json: Output(
                        copy: directory, ok: false, bytes: 0, originals: 0, findings: [finding],
                        moreFindings: 0, notes: []))
            }
            Console.complain("\(directory): \(finding)")
        }
        if error.kind == .missing {
            for remains in remains(of: directory) { failure.description += "; \(remains)" }
        }
        return failure
    }

    /// What lies beside the copy of others to its name.
    private static func remains(of directory: String) -> [String] {
        // Whoever may not look there learns nothing of it.
        let found = (try? CopyDraft.remains(of: directory)) ?? []
        return found.map { left in
            switch left.state {
            case .alive: "another copy to this name is being made, in \(left.path)"
            case .resumable:
                "a copy to this name was cut off, and lies in \(left.path): outboard copy --resume goes on with it as "
                    + "long as its epoch is open, and a new copy clears it"
            case .dead: "a copy to this name was cut off, and lies in \(left.path) until a new one clears it"
            }
        }
    }

    func run(_ data: CopyDataOptions, against control: String?, json: Bool) async throws {
        var notes = Self.remains(of: copy.directory)
        notes += try copy.strangers().map { "\($0) is no part of the copy, and was not looked at" }
        let opener = try data.opener(of: copy)
        var report = try verify(opener)
        let answer = try await ask(report, opener, data, control)
        report.findings = answer.findings
        if control != nil, answer.comparison == nil {
            notes.append("it was not compared with its host: its original images do not verify")
        }
        let isRight = report.isClean && answer.comparison?.isSame ?? true
        if json {
            try Console.print(
                json: Output(
                    copy: copy.directory, ok: isRight, bytes: report.bytes, originals: report.originals,
                    findings: report.findings, moreFindings: report.moreFindings, notes: notes,
                    against: answer.comparison.map(against)))
        } else {
            for note in notes { Console.logger("verify").notice("\(note)") }
        }
        guard isRight else { throw tell(report, answer.comparison) }
        if !json { tellRight(report, answer.comparison) }
    }

    private func verify(_ opener: DataOpener) throws(CopyError) -> VerifyReport {
        let bar = ProgressBar()
        defer { bar.clear() }
        let manifest = copy.manifest
        let total =
            manifest.data.length + (manifest.originals?.length ?? 0) + (manifest.toc?.length ?? 0)
        var done: UInt64 = 0
        return try copy.verify(opener) { more throws(CopyError) in
            done += more
            bar.update(phase: "verify", done: done, total: total)
        }
    }

    private func against(_ report: SnapshotComparison.Report) -> Against {
        Against(
            epoch: copy.manifest.epoch.number, bytes: report.bytes, unusedBytes: report.unusedBytes,
            goneBytes: report.goneBytes, different: report.different, moreDifferences: report.moreDifferences)
    }

    // MARK: Telling

    /// Tells all that does not fit.
    /// - Returns: the last word.
    private func tell(_ report: VerifyReport, _ comparison: SnapshotComparison.Report?) -> Failure {
        for finding in report.findings { Console.complain("\(copy.directory): \(finding)") }
        if report.moreFindings > 0 {
            Console.complain("\(copy.directory): and \(report.moreFindings) more")
        }
        let differences = comparison?.different ?? []
        for difference in differences {
            Console.complain(
                "\(copy.directory): the volume at \(difference.offset), \(difference.length) bytes, is not what the "
                    + "logical snapshot has there; the first byte that differs is \(difference.firstByte)")
        }
        let more = comparison?.moreDifferences ?? 0
        if more > 0 { Console.complain("\(copy.directory): and \(more) more places") }
        let advice =
            copy.manifest.state == .integrating
            ? "run outboard integrate again, and verify then"
            : "take another one, or keep it for what is still whole"
        guard report.isClean else {
            let count = UInt64(report.findings.count) + report.moreFindings
            return Failure(
                .damaged,
                "the copy \(copy.directory) does not verify (\(count) findings, above); \(advice)")
        }
        return Failure(
            .damaged,
            "the copy \(copy.directory) is not what the logical snapshot of its epoch is "
                + "(\(UInt64(differences.count) + more) places, above); \(advice)")
    }

    private func tellRight(_ report: VerifyReport, _ comparison: SnapshotComparison.Report?) {
        Console.print(
            "verified \(copy.directory): \(ByteCount(report.bytes).rounded), \(report.originals) originals")
        guard let comparison else { return }
        var text =
            "  as the logical snapshot of epoch \(copy.manifest.epoch.number): "
            + ByteCount(comparison.bytes).rounded
        if comparison.unusedBytes > 0 {
            text += "; \(ByteCount(comparison.unusedBytes).rounded) are not in use, and were not copied"
        }
        if comparison.goneBytes > 0 {
            text +=
                "; \(ByteCount(comparison.goneBytes).rounded) cannot be compared, because the host keeps no originals "
                + "of what the copy had passed"
        }
        Console.print(text)
    }

    // MARK: Asking others

    private struct Answer: Sendable {
        var findings: [Finding]
        /// Nil: none was asked for, or it cannot be made.
        var comparison: SnapshotComparison.Report?
    }

    /// Asks the table of contents and the file systems whether anything lies in what is damaged, and the host for what it
    /// should be.
    private func ask(
        _ report: VerifyReport, _ opener: @escaping DataOpener, _ data: CopyDataOptions, _ control: String?
    ) async throws -> Answer {
        var use = DamageUse(report.findings)
        if copy.tocPath != nil, !report.findings.contains(where: { $0.part == .toc }),
            let toc = try? FileRestoreSequence.tableOfContents(of: copy)
        {
            // What it does not tell, file systems do.
            try? use.ask(toc)
        }
        var service: StoreService?
        if !use.places.ranges.isEmpty {
            var volume: (any BlockStore)?
            do throws(CopyError) { volume = try copy.openVolume(opener) } catch {
                use.giveUp(because: "the volume cannot be read: \(error.reason)")
            }
            if let volume {
                service = try await StoreService.start(
                    UndamagedView(volume, without: use.places), description: "a damaged copy",
                    logger: Console.logger("verify"))
            }
        }
        let isMerged = !report.findings.contains { $0.part == .originals }
        let comparison = isMerged ? control : nil
        guard service != nil || comparison != nil else { return Answer(findings: use.findings) }
        let credentials = try data.credentials()
        let result: Result<Answer, any Error>
        do {
            result = .success(
                try await Sequences.run("verify") {
                    [copy, use, socket = service?.socket] world, cancellation, observer throws(AgentError) in
                    var use = use
                    if let socket {
                        try Self.askFileSystems(&use, copy, at: socket, world, cancellation, observer)
                    }
                    var answer = Answer(findings: use.findings)
                    guard let comparison else { return answer }
                    let source = try RestoreSource(copy, world, credentials, cancellation)
                    defer { source.close() }
                    answer.comparison = try SnapshotComparison(
                        source, control: comparison, world, cancellation: cancellation, observer: observer
                    ).run()
                    return answer
                })
        } catch { result = .failure(error) }
        await service?.stop()
        return try result.get()
    }

    private static func askFileSystems(
        _ use: inout DamageUse, _ copy: PhysicalCopy, at socket: String, _ world: Collaborators,
        _ cancellation: CancellationToken, _ observer: any SequenceObserver
    ) throws(AgentError) {
        observer.progress(SequenceProgress(phase: "looking for what is damaged", done: 0, total: 0))
        let size = copy.manifest.volume.size
        // As fine as file systems tell it.
        let map = UsedMap(size: size, gap: 1)
        do throws(AgentError) {
            _ = try world.readVolume(VolumeAddress(socket: socket), size, .use, map, cancellation)
            use.ask(map)
        } catch {
            guard error.cause != .interrupted else { throw error }
            use.giveUp(because: "the file systems cannot be read: \(error.reason)")
        }
    }
}
