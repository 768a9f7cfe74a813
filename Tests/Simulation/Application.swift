import Blocks
import Glibc
import TestSupport

/// What a sector holds: the number of the operation that wrote it; 0: zeros.
typealias Content = Int

enum SectorContents {
    static let bytes = SimulatedDisk.sector

    static func make(_ content: Content, sector: Int) -> [UInt8] {
        guard content != 0 else { return [UInt8](repeating: 0, count: bytes) }
        var generator = SeededGenerator(seed: UInt64(content) << 20 ^ UInt64(sector))
        return [UInt8](unsafeUninitializedCapacity: bytes) { buffer, count in
            let raw = UnsafeMutableRawBufferPointer(buffer)
            raw.storeBytes(of: UInt64(content), toByteOffset: 0, as: UInt64.self)
            for offset in stride(from: 8, to: bytes, by: 8) {
                raw.storeBytes(of: generator.next(), toByteOffset: offset, as: UInt64.self)
            }
            count = bytes
        }
    }

    /// Nil: bytes that nobody wrote there.
    static func read(_ bytes: ArraySlice<UInt8>, sector: Int) -> Content? {
        let number = bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 0, as: UInt64.self) }
        guard let content = Content(exactly: number), content >= 0, content < 1 << 40 else { return nil }
        let expected = make(content, sector: sector)
        let isEqual = bytes.withUnsafeBytes { found in
            expected.withUnsafeBytes {
                found.count == $0.count && memcmp(found.baseAddress!, $0.baseAddress!, $0.count) == 0
            }
        }
        return isEqual ? content : nil
    }
}

/// An application: one operation after another on a part of the volume that is its own, and a memory of what it was told.
final class Application: @unchecked Sendable {  // touched by whose turn it is only
    enum Kind { case write, zero, trim }
    struct Operation {
        var kind: Kind
        var number: Content
        var sectors: Range<Int>
    }

    private unowned let volume: SimulatedVolume
    private let world: World
    let region: Range<Int>
    /// What each sector may hold now: one, unless an operation on it ended in doubt.
    private var now: [[Content]]
    /// What it may hold after a power cut: what was there when it was flushed last, and all since.
    private var later: [[Content]]
    /// Sectors whose unflushed bytes a failed flush of the source, whoever asked for it, may have forgotten: no later flush
    /// brings them back, only another write does. Their host tells it as long as it lives (`volume.status`).
    private var forgotten: Set<Int> = []
    private var failedFlushes = 0
    /// Issued, and not answered.
    private(set) var current: Operation?
    private var isInDoubt = false
    private(set) var operations = 0

    init(_ volume: SimulatedVolume, region: Range<Int>, contents: [Content]) {
        self.volume = volume
        world = volume.world
        self.region = region
        now = contents.map { [$0] }
        later = now
    }

    // MARK: What it does

    func run() {
        while !world.stopsApplications {
            world.scheduler.sleep(world.draw(world.thinkTime))
            while world.pausesApplications, !world.stopsApplications {
                _ = world.scheduler.wait(at: world.place, until: nil)
            }
            guard let host = volume.host, host.isServing else { continue }
            if isInDoubt {
                lookAround(host)
            } else {
                step(host)
            }
        }
    }

    private func step(_ host: HostProcess) {
        let dice = world.draw(20)
        let count = 1 + Int(world.draw(dice == 0 ? UInt64(region.count) : 24))
        let first = region.lowerBound + Int(world.draw(UInt64(region.count)))
        let sectors = first..<min(first + count, region.upperBound)
        switch dice {
        case 0...2: flush(host)
        case 3...4: check(host, sectors)
        default:
            let kind: Kind = dice == 5 ? .trim : dice <= 7 ? .zero : .write
            change(
                host, Operation(kind: kind, number: world.nextNumber(), sectors: sectors),
                isDurable: dice > 17)
        }
        operations += 1
    }

    private func change(_ host: HostProcess, _ operation: Operation, isDurable: Bool) {
        current = operation
        lookForFailedFlush()
        let before = volume.source.failures
        let range = ByteRange(
            offset: UInt64(operation.sectors.lowerBound * 512), count: UInt64(operation.sectors.count * 512))
        let bytes = operation.sectors.flatMap { SectorContents.make(operation.number, sector: $0) }
        let answer = host.perform { served throws(StoreError) in
            switch operation.kind {
            case .write: try served.write(bytes, at: range.offset, durable: isDurable)
            case .zero: try served.writeZeroes(range, options: isDurable ? .durable : [])
            case .trim: try served.trim(range, durable: isDurable)
            }
        }
        world.trace(
            "\(operation.kind) \(operation.number) of sectors \(operation.sectors)\(isDurable ? ", durable" : ""): \(answer)"
        )
        switch answer {
        case .done where operation.kind == .trim:
            // It need not have changed anything.
            for sector in operation.sectors { add(0, at: sector) }
            isInDoubt = operation.sectors.contains { now[$0 - region.lowerBound].count > 1 }
        case .done:
            rewritten(operation.sectors)
            let content = operation.kind == .zero ? 0 : operation.number
            for sector in operation.sectors {
                now[sector - region.lowerBound] = [content]
                if isDurable {
                    later[sector - region.lowerBound] = [content]
                } else {
                    addLater(content, at: sector)
                }
            }
        case .failed(let error):
            if volume.source.failures == before, !host.hasFailedFlush || !isDurable {
                world.fail("an application's \(operation.kind) failed: \(error.code)")
            }
            doubt(operation)
        case .lost: doubt(operation)
        }
        current = nil
    }

    private func doubt(_ operation: Operation) {
        isInDoubt = true
        let content = operation.kind == .write ? operation.number : 0
        for sector in operation.sectors { add(content, at: sector) }
    }

    private func add(_ content: Content, at sector: Int) {
        let index = sector - region.lowerBound
        if !now[index].contains(content) { now[index].append(content) }
        addLater(content, at: sector)
    }

    private func addLater(_ content: Content, at sector: Int) {
        let index = sector - region.lowerBound
        if !later[index].contains(content) { later[index].append(content) }
    }

    private func lookForFailedFlush() {
        guard volume.source.failedFlushes != failedFlushes else { return }
        failedFlushes = volume.source.failedFlushes
        for index in now.indices where later[index].count > 1 || later[index] != now[index] {
            forgotten.insert(index)
        }
    }

    private func rewritten(_ sectors: Range<Int>) {
        let isUnharmed = volume.source.failedFlushes == failedFlushes
        for index in sectors.lowerBound - region.lowerBound..<sectors.upperBound - region.lowerBound {
            if isUnharmed { forgotten.remove(index) } else { forgotten.insert(index) }
        }
    }

    private func flush(_ host: HostProcess) {
        lookForFailedFlush()
        let before = volume.source.failures
        let answer = host.perform { served throws(StoreError) in try served.flush() }
        world.trace("flush of sectors \(region): \(answer)")
        switch answer {
        case .done:
            guard volume.source.failedFlushes == failedFlushes else { break }
            for index in now.indices where !forgotten.contains(index) { later[index] = now[index] }
        case .failed(let error):
            if volume.source.failures == before, !host.hasFailedFlush {
                world.fail("a flush failed: \(error.code)")
            }
        case .lost: break
        }
    }

    private func check(_ host: HostProcess, _ sectors: Range<Int>) {
        guard let found = read(host, sectors) else { return }
        settle(sectors, found, what: "a read")
    }

    /// After an answer that did not come: what is there?
    private func lookAround(_ host: HostProcess) {
        guard let found = read(host, region) else { return }
        settle(region, found, what: "a read after a doubt")
        isInDoubt = false
    }

    private func read(_ host: HostProcess, _ sectors: Range<Int>) -> [UInt8]? {
        let before = volume.source.failures
        let found = Box<[UInt8]>([])
        let answer = host.perform { served throws(StoreError) in
            found.value = try served.bytes(at: UInt64(sectors.lowerBound * 512), count: sectors.count * 512)
        }
        switch answer {
        case .done: return found.value
        case .failed(let error):
            if volume.source.failures == before { world.fail("an application's read failed: \(error.code)") }
            return nil
        case .lost: return nil
        }
    }

    // MARK: What it knows

    private func settle(_ sectors: Range<Int>, _ bytes: [UInt8], what: String) {
        for sector in sectors {
            let start = (sector - sectors.lowerBound) * 512
            let index = sector - region.lowerBound
            let found = SectorContents.read(bytes[start..<start + 512], sector: sector)
            guard let found, now[index].contains(found) else {
                world.fail(
                    "\(what) shows sector \(sector) as of write \(found.map(String.init) ?? "none"), and it was told "
                        + "\(now[index])")
                return
            }
            now[index] = [found]
        }
    }

    /// At the instant of an epoch: each operation is done or not done.
    func checkInstant(_ bytes: [UInt8]) {
        var done: Bool?
        for sector in region {
            let index = sector - region.lowerBound
            let found = SectorContents.read(bytes[(sector * 512)..<(sector * 512 + 512)], sector: sector)
            if let current, current.sectors.contains(sector) {
                if isInDoubt || current.kind == .trim { continue }
                let isDone = found == (current.kind == .zero ? 0 : current.number)
                if !isDone, found.map({ now[index].contains($0) }) != true || done == true {
                    return world.fail("at the instant a write is done in part, at sector \(sector)")
                }
                // What looks the same before and after says nothing.
                if isDone, now[index].contains(found!) { continue }
                if isDone, done == false {
                    return world.fail("at the instant a write is done in part, at sector \(sector)")
                }
                done = isDone
            } else if found.map({ now[index].contains($0) }) != true {
                return world.fail("at the instant sector \(sector) is not what an application was told")
            }
        }
    }

    /// After a crash, before anything else happens: nothing is there that may not be.
    /// - Parameter isPower: what was not flushed may be lost.
    func checkAfterCrash(_ bytes: [UInt8], isPower: Bool) {
        if let current { doubt(current) }
        for sector in region {
            let index = sector - region.lowerBound
            let allowed = isPower ? later[index] : now[index]
            let found = SectorContents.read(bytes[(sector * 512)..<(sector * 512 + 512)], sector: sector)
            guard let found, allowed.contains(found) else {
                return world.fail(
                    "after a \(isPower ? "power cut" : "crash") sector \(sector) is of write "
                        + "\(found.map(String.init) ?? "none"), and \(allowed) may be there")
            }
            now[index] = [found]
            if isPower { later[index] = [found] }
        }
        if isPower { forgotten = [] }
        current = nil
        isInDoubt = false
    }
}

final class Box<Value>: @unchecked Sendable {  // touched by whose turn it is only
    var value: Value
    init(_ value: Value) { self.value = value }
}
