import Blocks
import Glibc
import OriginalImage

/// Opens the bytes of a copy: the location is `.path` (absolute) or `.unit`, never `.member`; the flag says
/// whether they will be written.
public typealias DataOpener = (DataLocation, Bool) throws(CopyError) -> any BlockStore

/// A copy on secondary storage (design §6): its directory, opened and its manifest checked. While it is open, no
/// other process can integrate or replace it.
// Sendable: the manifest changes only while it is open for changing, which excludes all other users.
public final class PhysicalCopy: @unchecked Sendable {
    public enum Use: Sendable {
        case reading
        /// To integrate it or give it another table of contents. Excludes all other users.
        case changing
    }

    /// Absolute.
    public let directory: String
    public internal(set) var manifest: Manifest
    let lock: DirectoryLock
    let files: Files
    /// The file of checksums that was read last.
    let readChecksums = Monitor<(description: ChecksumDescription, sums: SliceChecksums)?>(nil)

    /// Reads and checks the manifest; the portions are not looked at.
    /// - Parameter calls: the file system.
    /// - Throws: ``CopyError`` `missing` when there is no such directory or no manifest in it, `damaged` when
    ///   the manifest does not verify.
    public init(
        _ path: String, for use: Use = .reading, files calls: FileSystemCalls = FileSystemCalls()
    ) throws(CopyError) {
        directory = Files.absolute(path)
        files = Files(calls)
        let action = "open the copy \(directory)"
        guard !CopyPlace.isDraft(directory) else {
            throw CopyError(
                .missing, action, "it is a copy in the making, which has another name when it is complete",
                advice: "name that one")
        }
        guard
            let lock = try DirectoryLock(
                directory, exclusive: use == .changing, followsLink: true, files: files, action)
        else {
            throw CopyError(
                .cannotCreate, action, "another process is using it", advice: "try again when that is over")
        }
        self.lock = lock
        manifest = try Self.manifest(in: directory, lock, files, action)
    }

    private static func manifest(
        in directory: String, _ lock: DirectoryLock, _ files: Files, _ action: String
    ) throws(CopyError) -> Manifest {
        let file = directory + "/" + Manifest.fileName
        let bytes: [UInt8]
        do throws(CopyError) {
            bytes = try files.read(
                Manifest.fileName, in: lock.descriptor, limit: CopyLimits.manifestBytes, "read \(file)")
        } catch {
            guard error.kind == .missing else { throw error }
            throw CopyError(
                .missing, action, "there is no \(Manifest.fileName) in it, so it is not a copy",
                advice: "name the directory that `outboard copy --to` was given")
        }
        let found: ManifestFile
        do throws(Manifest.Malformed) { found = try ManifestFile(decoding: bytes) } catch {
            throw CopyError(
                .damaged, "read \(file)", error.reason, advice: "the copy cannot be trusted; take another one"
            )
        }
        switch found {
        case .copy(let manifest): return manifest
        case .abandoned(let copy): throw copy.refusal(action, at: directory)
        }
    }

    /// From now on it is open for ``Use/changing``, as soon as no other process has it open.
    /// - Parameter waiting: called now and then while others have it; may throw to give up.
    /// - Throws: also when it is another copy by now: nobody was kept from that meanwhile.
    func takeForChanging(_ waiting: () throws(CopyError) -> Void) throws(CopyError) {
        let action = "change the copy \(directory)"
        while try !lock.makeExclusive(directory, action) { try waiting() }
        let now = try Self.manifest(in: directory, lock, files, action)
        guard now.epoch.uuid == manifest.epoch.uuid, now.volume == manifest.volume else {
            throw CopyError(
                .cannotCreate, action, "it was replaced meanwhile",
                advice: "try again with the one that is there")
        }
        manifest = now
    }

    /// What lies in its directory and is no part of it, so that nothing here looks at it.
    public func strangers() throws(CopyError) -> [String] {
        var members: Set = [Manifest.fileName]
        if case .member(let name) = manifest.location { members.insert(name) }
        if case .file(let description) = manifest.data.checksums { members.insert(description.name) }
        if let toc = manifest.toc { members.insert(toc.name) }
        return try files.names(inDirectory: lock.descriptor, "look into \(directory)")
            .filter { !members.contains($0) }.sorted()
    }

    /// Where the bytes lie: `.path` or `.unit`.
    public var dataLocation: DataLocation {
        if case .member(let name) = manifest.location { return .path(directory + "/" + name) }
        return manifest.location
    }

    var dataName: String {
        switch dataLocation {
        case .path(let path): path
        case .unit(let target, let number): "unit \(number) of \(target)"
        case .member(let name): name
        }
    }

    /// Opens the data location and sees that all portions can be in it.
    public func openData(writable: Bool = false, _ opener: DataOpener) throws(CopyError) -> any BlockStore {
        try requireBelievedLocation()
        let store = try opener(dataLocation, writable)
        let end = max(manifest.data.range.end, manifest.originals?.range.end ?? 0)
        guard store.size >= end else {
            throw CopyError(
                .damaged, "open the copy's data \(dataName)",
                "it has \(store.size) bytes, and the manifest says \(end)",
                advice: "it was cut off; take another copy")
        }
        return store
    }

    /// A member is a file of the directory itself. A manifest may name any other file or device, which whoever could
    /// write it need not be allowed to read: so it is believed only where it is root's or this user's and nobody else can
    /// change it.
    /// - Throws: `notPermitted`; `damaged` where the member is no file.
    public func requireBelievedLocation() throws(CopyError) {
        let action = "open the copy's data \(dataName)"
        switch manifest.location {
        case .unit: return
        case .member(let name):
            // Absent: the opener says so.
            guard let kind = try files.kind(of: name, in: lock.descriptor, action), kind != S_IFREG else {
                return
            }
            throw CopyError(
                .damaged, action, "it is not a regular file", advice: "something was put in its place")
        case .path:
            let path = directory + "/" + Manifest.fileName
            let file = try files.openRegular(Manifest.fileName, in: lock.descriptor, O_RDONLY, action)
            defer { files.calls.close(file.descriptor) }
            let status = try files.status(of: file.descriptor, action)
            var flaw = PathTrust.flaw(of: path).map { "\($0)" }
            if flaw == nil, !PathTrust.isTrusted(owner: status.st_uid) || status.st_mode & 0o022 != 0 {
                flaw = "others than root and this user may write it"
            }
            guard let flaw else { return }
            throw CopyError(
                .notPermitted, action, "\(path) says that they are there, and it is not believed: \(flaw)",
                advice: "make a copy of the directory that only you may change")
        }
    }

    /// The volume as of the instant, read-only: the data as they stand, or merged with the original images.
    public func openVolume(_ opener: DataOpener) throws(CopyError) -> any BlockStore {
        let store = try openData(opener)
        guard manifest.originals != nil else { return PortionView(store, manifest.data.range) }
        let reader = try logReader(in: store)
        return MergedReader(data: store, reader: reader, map: try map(reader))
    }

    /// Where the volume's bytes lie, of a copy with that original-image portion; nil: it has none. All of the log's
    /// headers are read, and checked.
    public func map(_ reader: LogReader?) throws(CopyError) -> VolumeMap {
        guard let reader else { return VolumeMap(data: manifest.data.offset) }
        guard let portion = manifest.originals else { preconditionFailure("no original-image portion") }
        do throws(LogError) {
            return VolumeMap(
                data: manifest.data.offset, originals: try reader.index().entries, geometry: reader.geometry,
                base: portion.offset)
        } catch { throw .log(error, "read the original images of \(directory)") }
    }

    /// The original-image portion's reader, checked to belong to this copy.
    /// - Precondition: there is such a portion.
    public func logReader(in store: any BlockStore) throws(CopyError) -> LogReader {
        guard let portion = manifest.originals else { preconditionFailure("no original-image portion") }
        let action = "read the original images of \(directory)"
        let end = LogPosition(
            position: manifest.epoch.logBytes, sequence: manifest.epoch.batches,
            entries: manifest.epoch.entries)
        guard end.position <= portion.length else {
            throw CopyError(.damaged, action, "the portion is shorter than the log it should hold")
        }
        let reader: LogReader
        do throws(LogError) {
            reader = try LogReader(store, base: portion.offset, end: end, wantsBothSuperblocks: true)
        } catch { throw .log(error, action) }
        guard reader.epoch.uuid.uuidString.lowercased() == manifest.epoch.uuid.lowercased(),
            reader.superblock.volume.uuidString.lowercased() == manifest.volume.uuid.lowercased(),
            reader.geometry.volumeSize == manifest.volume.size,
            reader.geometry.chunkSize == manifest.volume.chunkSize
        else { throw CopyError(.damaged, action, "they belong to another copy") }
        return reader
    }
}
