import Glibc

/// Uses a file system again and again, each step durably, until it is ended or `limit` steps are done.
struct BusyWriter {
    let root: Directory
    /// Overwrites only, once it has made its files: a driver without a journal leaves nothing half done then.
    let isGentle: Bool

    func run(limit: Int) throws {
        let directory = try root.make("busy")
        var generator = Generator("busy")
        var present: [String] = []
        if isGentle {
            for index in 0..<20 {
                present.append("file\(index)")
                try overwrite("file\(index)", in: directory, &generator)
            }
            try directory.flush()
        }
        for step in 0..<limit {
            if isGentle {
                // Several share an emulated processor.
                usleep(10_000)
                try overwrite(present[step % present.count], in: directory, &generator)
            } else {
                try change(&present, in: directory, step, &generator)
            }
            if step == 20 {
                put("BUSY\n")
                fflush(nil)
            }
        }
    }

    private func change(
        _ present: inout [String], in directory: Directory, _ step: Int, _ generator: inout Generator
    ) throws {
        let dice = Int.random(in: 0..<10, using: &generator)
        if present.count > 60 || dice < 2, let name = present.first {
            present.removeFirst()
            try directory.remove(name)
        } else if dice == 2, let name = present.randomElement(using: &generator) {
            present.removeAll { $0 == name }
            present.append("renamed\(step)")
            guard renameat(directory.descriptor, name, directory.descriptor, "renamed\(step)") == 0 else {
                throw Failure("rename", Array(name.utf8))
            }
        } else if dice < 7, let name = present.randomElement(using: &generator) {
            try overwrite(name, in: directory, &generator)
        } else if present.count < 60 {
            present.append("file\(step)")
            try overwrite("file\(step)", in: directory, &generator)
        }
    }

    private func overwrite(_ name: String, in directory: Directory, _ generator: inout Generator) throws {
        let file = try directory.create(Array(name.utf8))
        defer { close(file) }
        let size = lseek(file, 0, SEEK_END)
        let count = Int.random(in: 1...40_000, using: &generator)
        let bytes = generator.bytes(isGentle && size > 0 ? min(count, Int(size)) : count)
        let place = off_t(Int.random(in: 0..<3, using: &generator) * 16_384)
        // Without holes, which not every file system has.
        let end = min(place, isGentle && size > 0 ? size - off_t(bytes.count) : size)
        guard pwrite(file, bytes, bytes.count, end) == bytes.count, fsync(file) == 0 else {
            throw Failure("write", Array(name.utf8))
        }
    }
}
