import Blocks
import HostControl
import OriginalImage
import Synchronization

extension CopyOnWriteVolume {
    /// Returns when every chunk that `range` touches is preserved, or marked where nobody needs its original, or when
    /// the epoch is over.
    func preserve(_ range: ByteRange, _ epoch: Epoch) {
        let chunks = geometry.chunks(touching: range)
        guard !chunks.allSatisfy({ epoch.preserved.contains($0) }) else { return }
        let start = MonotonicClock.now
        defer {
            meters.preserveTime.count(since: start)
            epoch.fill.note(at: start) { log.usedBytes }
        }
        let step = UInt64(
            min(HostLimits.originalChunks, HostLimits.originalBytes / Int(geometry.chunkSize)))
        var first = chunks.lowerBound
        while first < chunks.upperBound {
            let next = min(first + step, chunks.upperBound)
            while epoch.phase.isUnderWay, !first.isPreserved(upTo: next, in: epoch) {
                preserveStep(first..<next, epoch)
            }
            first = next
        }
    }

    /// Preserves those of `chunks` that nobody else has claimed, then waits for the others' owners.
    /// Own chunks come first: nobody waits while it holds a claim, so that there can be no circle.
    private func preserveStep(_ chunks: Range<UInt64>, _ epoch: Epoch) {
        // Others' claims matter no more: their owners may wait for a cache that nobody needs.
        guard epoch.phase == .open else { return spare(chunks, epoch) }
        withUnsafeTemporaryAllocation(of: UInt64.self, capacity: chunks.count) { list in
            var count = 0
            for chunk in chunks where epoch.claimed.insert(chunk) {
                if epoch.needsOriginal(of: chunk) {
                    list[count] = chunk
                    count += 1
                } else {
                    spare(CollectionOfOne(chunk), epoch)
                }
            }
            guard count > 0 else { return }
            hook?(.claimed)
            let mine = UnsafeBufferPointer(rebasing: list[..<count])
            if preserve(mine, epoch) {
                epoch.changes.withLockAndNotify { _ in for chunk in mine { epoch.preserved.insert(chunk) } }
            } else {
                epoch.changes.withLockAndNotify { _ in for chunk in mine { epoch.claimed.remove(chunk) } }
            }
        }
        epoch.changes.wait { _ in
            let settled = chunks.allSatisfy { epoch.preserved.contains($0) || !epoch.claimed.contains($0) }
            return settled || epoch.phase != .open ? () : nil
        }
    }

    /// Nobody needs these chunks' originals.
    private func spare(_ chunks: some Sequence<UInt64>, _ epoch: Epoch) {
        meters.chunksSpared.wrappingAdd(UInt64(epoch.mark(chunks)), ordering: .relaxed)
    }

    /// Reads and commits the originals of claimed chunks.
    /// - Returns: false when the epoch needs them no more.
    private func preserve(_ chunks: UnsafeBufferPointer<UInt64>, _ epoch: Epoch) -> Bool {
        let buffer = buffers.take()
        defer { buffers.give(buffer) }
        do throws(StoreError) { try readOriginals(of: chunks, into: buffer) } catch {
            abandon(epoch, "the source could not be read (\(error.code), errno \(error.errno))")
            return false
        }
        hook?(.readOriginals)
        let done = withUnsafeTemporaryAllocation(of: LogOriginal.self, capacity: chunks.count) {
            list -> Bool in
            var (count, offset) = (0, 0)
            var zeros: UInt64 = 0
            for chunk in chunks {
                let length = geometry.length(of: chunk)
                let bytes = UnsafeRawBufferPointer(rebasing: buffer[offset..<offset + length])
                offset += length
                if defects.contains(.forgetsOneBit), chunk % 5 == 2 { continue }
                let original = LogOriginal(chunk: chunk, bytes: bytes)
                list.initializeElement(at: count, to: original)
                count += 1
                zeros += original.isZero ? 1 : 0
            }
            guard commit(UnsafeMutableBufferPointer(rebasing: list[..<count]), epoch) else { return false }
            meters.chunksPreserved.wrappingAdd(UInt64(count), ordering: .relaxed)
            meters.zeroChunks.wrappingAdd(zeros, ordering: .relaxed)
            return true
        }
        if done { hook?(.committed) }
        return done
    }

    private func readOriginals(
        of chunks: UnsafeBufferPointer<UInt64>, into buffer: UnsafeMutableRawBufferPointer
    ) throws(StoreError) {
        var index = 0
        var offset = 0
        while index < chunks.count {
            let start = geometry.range(of: chunks[index])
            var end = start.end
            while index + 1 < chunks.count, chunks[index + 1] == chunks[index] + 1 {
                index += 1
                end = geometry.range(of: chunks[index]).end
            }
            let count = Int(end - start.offset)
            try source.read(
                at: start.offset,
                into: UnsafeMutableRawBufferPointer(rebasing: buffer[offset..<offset + count]))
            offset += count
            index += 1
        }
    }

    /// Appends to the log, and does what the policy says when that fails.
    private func commit(_ originals: UnsafeMutableBufferPointer<LogOriginal>, _ epoch: Epoch) -> Bool {
        var remaining = originals.count
        var deadline: UInt64?
        while true {
            let failure: LogError
            let growth = growths.load(ordering: .acquiring)
            do throws(LogError) {
                try log.append(
                    UnsafeBufferPointer(rebasing: originals[..<remaining]), epoch: epoch.uuid)
                return true
            } catch { failure = error }
            if case .wrongState = failure {
                epoch.waitUntilNotOpen()  // whoever ended or voided it in the log has said so or is about to
                return false
            }
            let until = deadline ?? MonotonicClock.now &+ UInt64(settings.blockSeconds * 1e9)
            deadline = until
            guard settings.onCacheFull == .block, waitForCache(failure, growth, until, epoch) else {
                loseLog(of: epoch, "the cache failed: \(failure)")
                return false
            }
            if epoch.phase != .open { return false }
            // A retry appends only what did not get in.
            var kept = 0
            for index in 0..<remaining where !log.contains(originals[index].chunk) {
                originals[kept] = originals[index]
                kept += 1
            }
            remaining = kept
        }
    }

    /// Waits until it is worth another try or the epoch is over. Against a full cache helps that the agent ends the
    /// epoch, or that the cache grows, for which nobody has a reason without an agent: then nobody waits.
    /// - Parameter growth: what ``growths`` was before the try that failed.
    /// - Returns: false when the time is up, or the cache is full and nobody holds the epoch (any more).
    private func waitForCache(
        _ failure: LogError, _ growth: UInt64, _ deadline: UInt64, _ epoch: Epoch
    ) -> Bool {
        let now = MonotonicClock.now
        guard now < deadline, failure != .full || epoch.isHeld else { return false }
        blockedWrites.wrappingAdd(1, ordering: .relaxed)
        defer { blockedWrites.wrappingSubtract(1, ordering: .relaxed) }
        // A full log does not become less full by itself; a device may come back.
        let patience = failure == .full ? deadline - now : min(deadline - now, HostLimits.retryNanoseconds)
        let over: Bool? = epoch.changes.wait(nanoseconds: patience) { _ in
            if epoch.phase != .open || growths.load(ordering: .acquiring) != growth { return true }
            return failure == .full && !epoch.isHeld ? false : nil
        }
        return over ?? (failure != .full)
    }

    /// Makes the epoch void unless it is over. Writes go on unharmed from here on.
    func abandon(_ epoch: Epoch, _ reason: String) {
        guard epoch.phase == .open, epoch.takeVoiding() else { return epoch.waitUntilNotOpen() }
        makeVoid(epoch, reason)
    }

    /// What ``abandon(_:_:)`` does once it is decided.
    func makeVoid(_ epoch: Epoch, _ reason: String) {
        // First on the cache, so that a crash cannot bring the epoch back.
        log.void(reason, epoch: epoch.uuid)
        epoch.move(to: .void)  // before a write may pass without preserving: snapshot readers look at it last
        isEpochOpen.store(false, ordering: .releasing)
        // One that was never open had no copy.
        guard epoch.instant.load(ordering: .relaxed) != LogEpoch.notInstituted else { return }
        settings.logger?.warning(
            "the epoch is void: the copy that is running fails, applications go on",
            metadata: ["epoch": .stringConvertible(epoch.number), "reason": "\(reason)"])
    }
}

extension UInt64 {
    /// Whether the chunks from this one to before `end` are all preserved.
    fileprivate func isPreserved(upTo end: UInt64, in epoch: Epoch) -> Bool {
        (self..<end).allSatisfy { epoch.preserved.contains($0) }
    }
}
