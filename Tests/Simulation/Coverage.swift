/// The named places at which something goes wrong in a simulation. A run of all must have been at each (style 13: a fault that is
/// never met proves nothing).
enum FaultSite: String, CaseIterable, Comparable {
    case sourceReadError, sourceWriteError, sourceFlushError, sourceStall
    case cacheReadError, cacheWriteError, cacheFlushError, cacheStall, cacheOutOfSpace, headerDecayed
    case copyReadError, copyWriteError, copyFlushError, copyStall, copyOutOfSpace
    case shortTransfer, interruptedCall, refusedSubmission, partialSubmission, requestInFlightAtDeath
    case hostKilled, hostKilledInOpenEpoch, bridgeKilled, agentKilled, powerCut, powerCutInOpenEpoch
    case unflushedWriteLost, unflushedWriteTorn, unflushedWritesReordered
    case lineLost, answerLost
    case epochVoid, epochResumed, epochLost, hostBeganAnew, copyAsOfLaterInstant
    case cacheGivenUp, copyResumed, originalSpared
    case copyComplete, copyFailed, copyInterrupted, copyReplaced, appended, overlaid, markedBeforeEnd
    case integrateKilled, integrated
    case groupComplete, groupOfOneInstant, groupFailed, groupResumed
    case siteReadError, siteWriteError, siteFlushError, siteStall, siteLostPower
    case restored, restoredAppended, restoredAsItStands, restoredExtents, restoredByBridge
    case restoreFailed, restoreInterrupted, restoreKilled, restoreBridgeKilled

    static func < (a: FaultSite, b: FaultSite) -> Bool { a.rawValue < b.rawValue }
}

/// How often each was met.
struct Coverage: Sendable {
    private(set) var counts: [FaultSite: Int] = [:]

    mutating func mark(_ site: FaultSite) { counts[site, default: 0] += 1 }
    mutating func add(_ other: Coverage) { counts.merge(other.counts, uniquingKeysWith: +) }
    mutating func add(_ site: FaultSite, _ count: Int) { counts[site, default: 0] += count }
    var missed: [FaultSite] { FaultSite.allCases.filter { counts[$0] == nil } }
}
