import Blocks
import Glibc
import PhysicalCopy
import TableOfContents

// How single files come to be.
extension FileRestore {
    /// Whether something may get that name.
    private func requireFree(_ name: [UInt8], in directory: RestoreDirectory) throws(FileProblem) {
        let descriptor = try directories.descriptor(of: directory)
        var status = stat()
        if fstatat(descriptor, name.cString, &status, AT_SYMLINK_NOFOLLOW) != 0 {
            guard errno == ENOENT else { throw .system(errno, "looking whether it is there") }
            return
        }
        if made.contains(FileIdentity(status)) || directory.hasGiven(name, descriptor) { throw .collision }
        guard force else { throw .exists }
        guard status.st_mode & S_IFMT != S_IFDIR else {
            throw FileProblem("there is a directory of its name")
        }
    }

    /// Gives what has a temporary name its own.
    private func place(
        _ temporary: [CChar], _ identity: FileIdentity, as name: [UInt8], in directory: RestoreDirectory
    ) throws(FileProblem) {
        try requireFree(name, in: directory)
        let descriptor = try directories.descriptor(of: directory)
        var status = stat()
        guard fstatat(descriptor, temporary, &status, AT_SYMLINK_NOFOLLOW) == 0,
            FileIdentity(status) == identity
        else { throw FileProblem("it was replaced meanwhile") }
        let final = name.cString
        if force {
            guard renameat(descriptor, temporary, descriptor, final) == 0 else {
                throw .system(errno, "naming it")
            }
        } else if FileCalls.rename(in: descriptor, temporary, final, flags: FileCalls.noReplace) != 0 {
            guard errno == EINVAL || errno == ENOSYS else {
                throw errno == EEXIST ? .exists : .system(errno, "naming it")
            }
            try placeWithoutReplacing(temporary, as: final, in: descriptor)
        }
        made.insert(identity)
        directory.give(name)
        noteName(in: directory)
    }

    /// For a file system without a rename that replaces nothing. It may have hard links, which replace nothing either;
    /// or else a file is made that is ours to be replaced.
    private func placeWithoutReplacing(
        _ temporary: [CChar], as final: [CChar], in descriptor: Int32
    ) throws(FileProblem) {
        if linkat(descriptor, temporary, descriptor, final, 0) == 0 {
            unlinkat(descriptor, temporary, 0)
            return
        }
        guard errno != EEXIST else { throw .exists }
        let own = openat(descriptor, final, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
        guard own >= 0 else { throw errno == EEXIST ? .exists : .system(errno, "naming it") }
        close(own)
        guard renameat(descriptor, temporary, descriptor, final) == 0 else {
            let number = errno
            unlinkat(descriptor, final, 0)
            throw .system(number, "naming it")
        }
    }

    // MARK: Files

    /// Makes a file under a temporary name; what the volume has of it is the batch's.
    func addFile(_ entry: TocEntry, in directory: RestoreDirectory) throws(FileProblem) {
        guard let key = entry.key else { throw FileProblem("it is no file", status: .corrupt) }
        try requireFree(entry.name, in: directory)
        let streams: [TocStream]
        do throws(TocError) { streams = try toc.streams(of: key) } catch {
            throw FileProblem("\(error)", status: .corrupt)
        }
        let content = entry.stream ?? streams.first { $0.number == 0 }
        guard content != nil || entry.node.size == 0 else {
            throw FileProblem(
                "its content could not be read when the table of contents was made", status: .io)
        }
        var metadata = FileMetadata(
            node: entry.node, attributes: attributes(of: key, path(entry.name, in: directory)))
        let others = entry.stream == nil ? streams.filter { $0.number != 0 } : []
        if entry.stream != nil { metadata.attributes = [] }
        let first = batch.files.count
        if entry.node.links > 1, entry.stream == nil { awaited.insert(key) }
        do throws(FileProblem) {
            try addStream(
                content, of: key, as: FileBatch.File(entry.name, directory, key, metadata))
            for stream in others {
                try addAlternate(
                    stream, of: key, to: .file(first), metadata, in: directory,
                    path(entry.name, in: directory))
            }
        } catch {
            // What the batch has of it is taken away with it.
            for target in batch.files.indices where target >= first { batch.removeTemporary(target) }
            batch.drop(from: first)
            throw error
        }
    }

    /// Those of a directory that was made here.
    func addAlternates(of key: NodeKey, toDirectory number: Int) {
        let (directory, metadata) = finished[number]
        let shown = directory.path(base)
        do throws(FileProblem) {
            let streams: [TocStream]
            do throws(TocError) { streams = try toc.streams(of: key) } catch {
                throw FileProblem("its streams: \(error)", status: .corrupt)
            }
            for stream in streams where stream.number != 0 {
                try addAlternate(stream, of: key, to: .directory(number), metadata, in: directory, shown)
            }
        } catch { report.fail(shown, error) }
    }

    /// A stream beside a file's content becomes an extended attribute, as ntfs-3g shows it.
    private func addAlternate(
        _ stream: TocStream, of key: NodeKey, to owner: FileBatch.Owner, _ metadata: FileMetadata,
        in directory: RestoreDirectory, _ path: String
    ) throws(FileProblem) {
        let shown = "\(path):\(TocPath.escaped(stream.name))"
        switch stream.storage {
        case .unavailable(let reason):
            report.fail(shown, FileProblem("it cannot be restored by its extents: \(reason)", status: .io))
        case _ where stream.size > UInt64(TocLimits.attributeBytes):
            report.fail(
                shown,
                FileProblem(
                    "it has \(stream.size) bytes, more than an extended attribute takes; restore it by itself "
                        + "under this path, or get it by `outboard cat`"))
        case .extents, .inline:
            var file = FileBatch.File(stream.name, directory, key, metadata)
            file.owner = owner
            try addStream(stream, of: key, as: file)
        }
    }

    private func addStream(
        _ stream: TocStream?, of key: NodeKey, as file: FileBatch.File
    ) throws(FileProblem) {
        var file = file
        let size = stream?.size ?? 0
        guard size <= UInt64(Int64.max) - AgentLimits.greatestBlock else {
            throw FileProblem("its size cannot be", status: .corrupt)
        }
        file.size = size
        let target = batch.files.count
        var inline: [UInt8] = []
        var pieces: [RestorePiece] = []
        switch stream?.storage {
        case .unavailable(let reason):
            throw FileProblem("it cannot be restored by its extents: \(reason)", status: .io)
        case .inline:
            do throws(TocError) { inline = try toc.content(of: key, stream: stream?.number ?? 0) ?? [] } catch
            {
                throw FileProblem("\(error)", status: .corrupt)
            }
        case .extents: pieces = try extents(of: key, stream?.number ?? 0, size, target)
        case nil: break
        }
        // Whole blocks are read past the page cache: the last one is cut off in the end.
        file.room = max(size, pieces.map { $0.offset + $0.volume.count }.max() ?? 0)
        file.temporary = try temporaryName(in: file.directory)
        let descriptor = openat(
            try directories.descriptor(of: file.directory), file.temporary,
            O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw .system(errno, "making it") }
        defer { close(descriptor) }
        var status = stat()
        let isReady = fstat(descriptor, &status) == 0 && ftruncate(descriptor, Int(file.room)) == 0
        file.identity = FileIdentity(status)
        guard isReady, Self.write(inline.prefix(Int(min(size, UInt64(inline.count)))), to: descriptor) else {
            let number = errno
            unlinkat(try directories.descriptor(of: file.directory), file.temporary, 0)
            throw .system(number, "making it")
        }
        file.inlineBytes = min(size, UInt64(inline.count))
        batch.files.append(file)
        for piece in pieces { batch.add(piece) }
    }

    private func extents(
        of key: NodeKey, _ stream: UInt32, _ size: UInt64, _ target: Int
    ) throws(FileProblem) -> [RestorePiece] {
        var pieces: [RestorePiece] = []
        let end = size.roundedUp(to: AgentLimits.greatestBlock)
        do {
            try toc.forEachExtent(of: key, stream: stream) { extent in
                guard extent.fileOffset < size else { return }
                let count = min(extent.count, end - extent.fileOffset)
                let range = ByteRange(offset: extent.volumeOffset, count: count)
                if let last = pieces.last, last.volume.end == range.offset,
                    last.offset + last.volume.count == extent.fileOffset
                {
                    pieces[pieces.count - 1].volume = ByteRange(
                        offset: last.volume.offset, count: last.volume.count + count)
                } else {
                    pieces.append(RestorePiece(volume: range, target: target, offset: extent.fileOffset))
                }
            }
        } catch { throw FileProblem("\(error)", status: .corrupt) }
        return pieces
    }

    private static func write(_ bytes: some Collection<UInt8>, to descriptor: Int32) -> Bool {
        let bytes = Array(bytes)
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes {
                pwrite(descriptor, $0.baseAddress, $0.count, done)
            }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { return false }
            done += count
        }
        return true
    }

    /// All are filled: their metadata, a flush, their names.
    func completeBatch() throws(AgentError) {
        collectAlternates()
        for target in batch.files.indices {
            perform(target) { () throws(FileProblem) in
                let file = batch.files[target]
                let descriptor = try batch.open(target)
                defer { close(descriptor) }
                if file.room != file.size, ftruncate(descriptor, Int(file.size)) != 0 {
                    throw .system(errno, "cutting it")
                }
                report.lose(file.metadata.apply(to: descriptor))
                let isAlone =
                    batch.files.count <= AgentLimits.flushedAlone || !isFlushedWithAll(file.identity)
                if isAlone, fsync(descriptor) != 0 {
                    throw .system(errno, "flushing it")
                }
            }
        }
        if batch.files.count > AgentLimits.flushedAlone {
            do throws(FileProblem) { try flush() } catch {
                throw AgentError(error.status, doing: "restoring to", to: base, because: error.reason)
            }
        }
        let bytes = batch.contentBytes
        for target in batch.files.indices {
            perform(target) { () throws(FileProblem) in
                let file = batch.files[target]
                try place(file.temporary, file.identity, as: file.name, in: file.directory)
                report.files += 1
                report.bytes += bytes[target]
                if file.metadata.node.links > 1 {
                    firstNames[file.key] = (file.directory, file.name, file.identity)
                }
            }
        }
        try requireSpace()
    }

    /// - Throws: when there is none left: what follows would fail as well.
    private func requireSpace() throws(AgentError) {
        guard let target = batch.files.indices.first(where: { batch.files[$0].problem?.isNoSpace == true })
        else {
            return
        }
        throw AgentError(
            .cannotCreate, doing: "restoring", to: batch.shown(target), because: "no space left",
            advice: "free some space there and try again", cause: .noSpace)
    }

    private func perform(_ target: Int, _ body: () throws(FileProblem) -> Void) {
        guard batch.files[target].problem == nil else { return giveUp(target) }
        guard batch.files[target].owner == nil else { return }
        do throws(FileProblem) { try body() } catch {
            batch.files[target].problem = error
            giveUp(target)
        }
    }

    private func giveUp(_ target: Int) {
        let file = batch.files[target]
        guard let problem = file.problem, !file.temporary.isEmpty else { return }
        batch.removeTemporary(target)
        batch.files[target].temporary = []
        var shown = path(file.name, in: file.directory)
        switch file.owner {
        case .file(let number):
            shown = path(batch.files[number].name, in: file.directory) + ":" + TocPath.escaped(file.name)
        case .directory: shown = file.directory.path(base) + ":" + TocPath.escaped(file.name)
        case nil: break
        }
        report.fail(shown, problem)
    }

    /// Alternate streams were filled as files of their own.
    private func collectAlternates() {
        for target in batch.files.indices {
            guard let owner = batch.files[target].owner, batch.files[target].problem == nil else { continue }
            do throws(FileProblem) {
                let descriptor = try batch.open(target)
                defer { close(descriptor) }
                var value = [UInt8](repeating: 0, count: Int(batch.files[target].size))
                guard pread(descriptor, &value, value.count, 0) == value.count else {
                    throw .system(errno, "reading it")
                }
                let attribute = ExtendedAttribute(
                    node: batch.files[target].key.address,
                    name: Array("user.".utf8) + batch.files[target].name, value: value)
                switch owner {
                case .file(let number): batch.files[number].metadata.attributes.append(attribute)
                case .directory(let number): finished[number].metadata.attributes.append(attribute)
                }
                batch.removeTemporary(target)
                batch.files[target].temporary = []
            } catch { batch.files[target].problem = error }
        }
    }

    // MARK: What has no content

    func makeSpecial(_ entry: TocEntry, in directory: RestoreDirectory) throws(FileProblem) {
        try requireFree(entry.name, in: directory)
        let temporary = try temporaryName(in: directory)
        let descriptor = try directories.descriptor(of: directory)
        let node = entry.node
        if node.kind == .symbolicLink {
            guard let target = node.target, !target.isEmpty, !target.contains(0) else {
                throw FileProblem("where the symbolic link leads is not known", status: .io)
            }
            guard symlinkat(target.cString, descriptor, temporary) == 0 else {
                throw .system(errno, "making it")
            }
        } else {
            let type: mode_t =
                switch node.kind {
                case .blockDevice: S_IFBLK
                case .characterDevice: S_IFCHR
                case .fifo: S_IFIFO
                default: S_IFSOCK
                }
            let device = node.device.map { FileCalls.device($0.major, $0.minor) } ?? 0
            guard mknodat(descriptor, temporary, type | 0o600, device) == 0 else {
                // Who may not make devices expects none.
                if errno == EPERM {
                    report.lost["devices", default: 0] += 1
                    return
                }
                throw .system(errno, "making it")
            }
        }
        let attributes = entry.key.map { self.attributes(of: $0, path(entry.name, in: directory)) } ?? []
        report.lose(
            FileMetadata(node: node, attributes: attributes).apply(to: temporary, in: descriptor))
        var status = stat()
        guard fstatat(descriptor, temporary, &status, AT_SYMLINK_NOFOLLOW) == 0 else {
            throw .system(errno, "looking at it")
        }
        let identity = FileIdentity(status)
        do throws(FileProblem) { try place(temporary, identity, as: entry.name, in: directory) } catch {
            unlinkat(descriptor, temporary, 0)
            throw error
        }
        if node.kind == .symbolicLink { report.symbolicLinks += 1 } else { report.specials += 1 }
        if node.links > 1, let key = entry.key { firstNames[key] = (directory, entry.name, identity) }
    }

    /// Another name of a file that has its first one by now.
    func completeLink(_ entry: TocEntry, in directory: RestoreDirectory) throws(AgentError) {
        do throws(FileProblem) {
            guard let key = entry.key, let first = firstNames[key] else {
                throw FileProblem("the file of which it is another name was not restored", status: .io)
            }
            try requireFree(entry.name, in: directory)
            let temporary = try temporaryName(in: directory)
            // Two directories: the first descriptor is valid until the next is asked for.
            let source = dup(try directories.descriptor(of: first.directory))
            guard source >= 0 else { throw .system(errno, "linking it") }
            defer { close(source) }
            let descriptor = try directories.descriptor(of: directory)
            guard linkat(source, first.name.cString, descriptor, temporary, 0) == 0 else {
                throw .system(errno, "linking it to its first name")
            }
            // rename(2) leaves both names where they are one file's already.
            defer { unlinkat(descriptor, temporary, 0) }
            var status = stat()
            guard fstatat(descriptor, temporary, &status, AT_SYMLINK_NOFOLLOW) == 0,
                FileIdentity(status) == first.identity
            else { throw FileProblem("its first name was replaced meanwhile") }
            try place(temporary, first.identity, as: entry.name, in: directory)
            report.hardLinks += 1
        } catch { report.fail(path(entry.name, in: directory), error) }
    }
}
