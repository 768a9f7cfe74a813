import Blocks

/// Looks at the log to see whether what is on disk is all there is, and replays it in memory when it is not ("XFS
/// Algorithms & Data Structures", chapter "Journaling Log").
struct XFSLog {
    enum State {
        /// The last record says that the file system was unmounted.
        case clean
        case external
        /// The volume as recovery would leave it, but for these inodes, whose changes it would go on to finish.
        case replayed(XFSOverlay, unfinished: [UInt64])
        /// Cannot be replayed; the reason, for people.
        case pending(String)
    }

    /// sb_features_log_incompat: changes of attributes may be intended in the log.
    private static let knownFeatures: UInt32 = 1

    private let geometry: XFSGeometry
    private let disk: XFSDisk

    init(_ geometry: XFSGeometry, _ disk: XFSDisk) {
        self.geometry = geometry
        self.disk = disk
    }

    /// Damage and whatever is not understood count as pending.
    /// - Parameter advance: called now and then while the log is replayed.
    func state(advance: @escaping () -> Void = {}) throws(TocError) -> State {
        if geometry.logStart == 0 { return .external }
        guard let range = geometry.logRange, range.end <= disk.range.count else {
            return .pending("it lies nowhere")
        }
        let ring = XFSLogRing(disk, range, uuid: geometry.uuid)
        do throws(TocError) {
            guard case .records(let tail, let head) = try ring.contents() else { return .clean }
            guard geometry.logFeatures & ~Self.knownFeatures == 0 else {
                return .pending("it has features that are not known here")
            }
            if geometry.isVersion5 {
                let sector = XFSBuffer(count: geometry.sectorSize)
                try disk.read(0, sector.memory)
                guard sector.view.hasChecksum(at: XFSGeometry.checksumOffset) else {
                    return .pending("the superblock is damaged")
                }
            }
            var replay = XFSLogReplay(geometry, disk, ring, from: tail, to: head, advance: advance)
            try replay.run()
            let overlay = XFSOverlay(
                disk.store, disk.range, replay.patches, unsealed: replay.unsealed)
            return .replayed(overlay, unfinished: replay.unfinished)
        } catch {
            guard error.kind == .damaged else { throw error }
            return .pending(error.description)
        }
    }
}
