import Blocks
import Glibc
import PhysicalCopy

extension SimulatedFileSystem {
    /// The file system as a process sees it.
    package func calls(for user: User) -> FileSystemCalls {
        var calls = FileSystemCalls()
        calls.openat = { [self] directory, path, flags, mode in
            perform(.openat, last(path), user) { openat(directory, path, flags, mode, user) }
        }
        calls.close = { [self] descriptor in close(descriptor) }
        calls.getpid = { user.number }
        addFileCalls(to: &calls, user)
        addDirectoryCalls(to: &calls, user)
        addLocks(to: &calls, user)
        return calls
    }

    private func last(_ path: String) -> String { path.split(separator: "/").last.map(String.init) ?? "/" }

    /// Carries out a call on an open file.
    private func perform<Value>(
        _ kind: FileOperation.Kind, _ descriptor: Int32, _ user: User,
        _ body: (OpenFile) -> FileSystemCalls.Outcome<Value>
    ) -> FileSystemCalls.Outcome<Value> {
        perform(kind, open[descriptor]?.name ?? "", user) {
            guard let file = open[descriptor], file.user === user else { return .failure(Errno(EBADF)) }
            return body(file)
        }
    }

    private func directory(_ descriptor: Int32) -> Inode? { open[descriptor]?.inode }

    // MARK: Files

    private func addFileCalls(to calls: inout FileSystemCalls, _ user: User) {
        calls.pread = { [self] descriptor, buffer, offset in
            perform(.pread, descriptor, user) { file in
                guard let contents = file.inode.contents else { return .failure(Errno(EISDIR)) }
                return .success(contents.read(at: Int(offset), into: buffer))
            }
        }
        calls.pwrite = { [self] descriptor, buffer, offset in
            perform(.pwrite, descriptor, user) { file in
                guard file.isWritable, let contents = file.inode.contents else {
                    return .failure(Errno(EBADF))
                }
                guard hasRoom(for: contents.bytesToAllocate(at: Int(offset), count: buffer.count)) else {
                    return .failure(Errno(ENOSPC))
                }
                contents.write(buffer, at: Int(offset))
                return .success(buffer.count)
            }
        }
        calls.ftruncate = { [self] descriptor, size in
            perform(.ftruncate, descriptor, user) { file in
                guard file.isWritable, let contents = file.inode.contents else {
                    return .failure(Errno(EINVAL))
                }
                contents.resize(Int(size))
                return .success(())
            }
        }
        calls.fsync = { [self] descriptor in
            let outcome = perform(.fsync, descriptor, user) { file in
                file.inode.contents?.synchronize()
                file.inode.directory?.synchronize()
                return .success(())
            }
            if case .failure = outcome, user.isAlive, let contents = open[descriptor]?.inode.contents {
                failToSynchronize(contents)
            }
            return outcome
        }
        calls.fstat = { [self] descriptor in
            perform(.fstat, descriptor, user) { .success(status($0.inode)) }
        }
        calls.availableSpace = { [self] descriptor in
            perform(.availableSpace, descriptor, user) { _ in .success(UInt64(availableBytes)) }
        }
    }

    private func openat(
        _ directory: Int32, _ path: String, _ flags: Int32, _ mode: mode_t, _ user: User
    ) -> FileSystemCalls.Outcome<Int32> {
        let isWritable = flags & O_ACCMODE != O_RDONLY
        func opened(_ inode: Inode) -> FileSystemCalls.Outcome<Int32> {
            if flags & O_DIRECTORY != 0, inode.directory == nil { return .failure(Errno(ENOTDIR)) }
            if isWritable, inode.directory != nil { return .failure(Errno(EISDIR)) }
            if flags & O_TRUNC != 0 { inode.contents?.resize(0) }
            return .success(
                makeDescriptor(
                    OpenFile(inode: inode, name: last(path), user: user, isWritable: isWritable)))
        }
        switch resolve(self.directory(directory), path) {
        case .success(let inode):
            if flags & O_CREAT != 0, flags & O_EXCL != 0 { return .failure(Errno(EEXIST)) }
            return opened(inode)
        case .failure(Errno(ENOENT)) where flags & O_CREAT != 0:
            return resolveParent(self.directory(directory), path).flatMap { parent, name in
                let inode = makeInode(.file(makeContents(path)), permissions: mode)
                parent.apply(.add(name, inode))
                return opened(inode)
            }
        case .failure(let error): return .failure(error)
        }
    }

    private func status(_ inode: Inode) -> stat {
        var status = stat()
        status.st_dev = 0x51F5
        status.st_ino = ino_t(inode.number)
        status.st_mode = (inode.directory == nil ? S_IFREG : S_IFDIR) | inode.permissions
        status.st_size = off_t(inode.contents?.size ?? 4096)
        return status
    }

    // MARK: Directories

    private func addDirectoryCalls(to calls: inout FileSystemCalls, _ user: User) {
        calls.fstatat = { [self] directory, path, _ in
            perform(.fstatat, last(path), user) { resolve(self.directory(directory), path).map(status) }
        }
        calls.names = { [self] descriptor in
            perform(.names, descriptor, user) { file in
                guard let directory = file.inode.directory else { return .failure(Errno(ENOTDIR)) }
                return .success(directory.entries.map(\.name))
            }
        }
        calls.mkdirat = { [self] directory, path, mode in
            perform(.mkdirat, last(path), user) {
                add(path, self.directory(directory)) {
                    makeInode(.directory(SimulatedDirectory()), permissions: mode)
                }
            }
        }
        calls.linkat = { [self] directory, old, new in
            perform(.linkat, last(new), user) {
                resolve(self.directory(directory), old).flatMap { inode in
                    inode.directory != nil
                        ? .failure(Errno(EPERM)) : add(new, self.directory(directory)) { inode }
                }
            }
        }
        calls.unlinkat = { [self] directory, path, flags in
            perform(.unlinkat, last(path), user) {
                resolveParent(self.directory(directory), path).flatMap { parent, name in
                    guard let inode = parent[name] else { return .failure(Errno(ENOENT)) }
                    if let directory = inode.directory {
                        guard flags & AT_REMOVEDIR != 0 else { return .failure(Errno(EISDIR)) }
                        guard directory.entries.isEmpty else { return .failure(Errno(ENOTEMPTY)) }
                        directory.isRemoved = true
                    } else if flags & AT_REMOVEDIR != 0 {
                        return .failure(Errno(ENOTDIR))
                    }
                    parent.apply(.remove(name))
                    return .success(())
                }
            }
        }
        calls.renameat = { [self] directory, old, new, flags in
            perform(.renameat, last(new), user) { rename(self.directory(directory), old, new, flags) }
        }
    }

    private func add(
        _ path: String, _ directory: Inode?, _ make: () -> Inode
    ) -> FileSystemCalls.Outcome<Void> {
        resolveParent(directory, path).flatMap { parent, name in
            guard parent[name] == nil else { return .failure(Errno(EEXIST)) }
            guard hasRoom(for: 4096) else { return .failure(Errno(ENOSPC)) }
            parent.apply(.add(name, make()))
            return .success(())
        }
    }

    private func rename(
        _ directory: Inode?, _ old: String, _ new: String, _ flags: UInt32
    ) -> FileSystemCalls.Outcome<Void> {
        if flags != 0, lacksRenameFlags { return .failure(Errno(EINVAL)) }
        return resolveParent(directory, old).flatMap { parent, old in
            resolveParent(directory, new).flatMap { other, new in
                guard parent === other else { return .failure(Errno(EXDEV)) }
                guard let moved = parent[old] else { return .failure(Errno(ENOENT)) }
                let there = parent[new]
                if flags == FileSystemCalls.renameExchange {
                    guard there != nil else { return .failure(Errno(ENOENT)) }
                    parent.apply(.exchange(old, new))
                    return .success(())
                }
                if let there {
                    if flags == FileSystemCalls.renameNoReplace { return .failure(Errno(EEXIST)) }
                    if there === moved { return .success(()) }
                    switch (moved.directory, there.directory) {
                    case (nil, nil): break
                    case (_?, let replaced?):
                        guard replaced.entries.isEmpty else { return .failure(Errno(ENOTEMPTY)) }
                        replaced.isRemoved = true
                    case (nil, _?): return .failure(Errno(EISDIR))
                    case (_?, nil): return .failure(Errno(ENOTDIR))
                    }
                }
                parent.apply(.rename(old, new))
                return .success(())
            }
        }
    }

    // MARK: Locks

    private func addLocks(to calls: inout FileSystemCalls, _ user: User) {
        calls.flock = { [self] descriptor, operation in
            perform(.flock, descriptor, user) { file in
                if operation & LOCK_UN != 0 {
                    file.inode.locks[descriptor] = nil
                    return .success(())
                }
                precondition(operation & LOCK_NB != 0, "nobody waits for locks")
                let excludes = operation & LOCK_EX != 0
                let others = file.inode.locks.filter { $0.key != descriptor }
                guard others.isEmpty || !excludes && !others.values.contains(true) else {
                    return .failure(Errno(EWOULDBLOCK))
                }
                file.inode.locks[descriptor] = excludes
                return .success(())
            }
        }
        calls.lockByte = { [self] descriptor, offset in
            perform(.lockByte, descriptor, user) { file in
                if let holder = file.inode.byteLocks[offset], holder != descriptor {
                    return .failure(Errno(EAGAIN))
                }
                file.inode.byteLocks[offset] = descriptor
                return .success(())
            }
        }
    }
}
