import AsyncIO
import Blocks
import Foundation
import Host
import HostControl
import OriginalImage

/// `outboard host` in the simulation: the real volume over simulated disks; its clients' requests are tasks of it.
final class HostProcess: @unchecked Sendable {
    enum Answer {
        case done
        case failed(StoreError)
        /// The connection ended before the answer came.
        case lost
    }

    /// What it serves.
    let owner: SimulatedVolume
    private let world: World
    let process = SimulatedProcess("host")
    private(set) var volume: CopyOnWriteVolume?
    private(set) var refusal: LogError?
    /// A flush of the source has failed: all that follow do until the host starts anew.
    var hasFailedFlush: Bool {
        // Of one that is dead nothing can be asked: a task of it may have died with a lock.
        guard isServing, let volume else { return true }
        return volume.status(of: owner.descriptor).flushFailure != nil
    }
    var isServing: Bool { process.isAlive && volume != nil }
    private var files: [StorageFile] = []

    init(_ owner: SimulatedVolume) {
        self.owner = owner
        world = owner.world
        process.keep(self)
        world.scheduler.start(in: process) { [self] in open() }
    }

    private func open() {
        do {
            let mode: StorageMode = world.plan.isDirect ? .direct : .pageCache
            let source = try world.calls.open(owner.source, access: .readWrite, mode: mode, lock: .exclusive)
            let cache = try world.calls.open(owner.cache, access: .readWrite, mode: mode, lock: .exclusive)
            files = [source, cache]
            var settings = VolumeSettings(
                uuid: owner.uuid, chunkSize: UInt64(world.plan.chunkSize),
                durability: world.plan.durability,
                onCacheFull: world.plan.onCacheFull, blockSeconds: 5, boot: world.boot)
            settings.realTime = { [world] in Int64(world.scheduler.time) }
            let opened = try CopyOnWriteVolume(
                source: world.wrap(source, .source), cache: world.wrap(cache, .cache), settings: settings,
                defects: world.defect?.host ?? [],
                hook: { [world, owner] checkpoint in
                    if case .instituted(let epoch) = checkpoint { owner.instituted(epoch) }
                    if checkpoint == .begunAnew { world.mark(.hostBeganAnew) }
                })
            owner.note(opened.log.finding)
            volume = opened
        } catch let error as LogError {
            refusal = error
        } catch {
            world.fail("the host cannot open its files: \(error)")
        }
        if volume == nil { process.end() }
        world.scheduler.wake(world.place)
    }

    /// A client's request: it is carried out by the host's process, and the client waits.
    func perform(
        _ body: @escaping (CopyOnWriteVolume) throws(StoreError) -> Void
    ) -> Answer {
        let reply = Reply<Answer>(world.scheduler)
        process.whenItEnds { reply.give(.lost) }
        world.scheduler.start(in: process) { [self] in
            guard let volume else { return reply.give(.lost) }
            let answer: Answer
            do throws(StoreError) {
                try body(volume)
                answer = .done
            } catch { answer = .failed(error) }
            reply.give(answer)
        }
        guard process.isAlive else { return .lost }
        return reply.wait() ?? .lost
    }

    /// The logical snapshot as its export gives it; nil: there is none.
    func readSnapshot(at offset: UInt64, count: Int) -> Result<[UInt8], StoreError>? {
        let found = Box<Result<[UInt8], StoreError>?>(nil)
        let answer = perform { volume throws(StoreError) in
            guard let snapshot = volume.snapshot else { return }
            do throws(StoreError) {
                found.value = .success(try snapshot.bytes(at: offset, count: count))
            } catch { found.value = .failure(error) }
        }
        guard case .done = answer else { return .failure(StoreError(.gone)) }
        return found.value
    }
}

/// A value that one task waits for and another gives, of other processes.
final class Reply<Value>: @unchecked Sendable {  // touched by whose turn it is only
    private let scheduler: Scheduler
    private var value: Value?
    private let place = UnsafeMutableRawPointer.allocate(byteCount: 1, alignment: 1)

    init(_ scheduler: Scheduler) { self.scheduler = scheduler }
    deinit { place.deallocate() }

    /// The first counts.
    func give(_ value: Value) {
        guard self.value == nil else { return }
        self.value = value
        scheduler.wake(place)
    }

    /// - Returns: nil when the time is over.
    func wait(nanoseconds: UInt64? = nil) -> Value? {
        let deadline = nanoseconds.map { scheduler.time + $0 }
        while value == nil {
            if !scheduler.wait(at: place, until: deadline), value == nil, deadline != nil || scheduler.isStuck
            {
                return nil
            }
        }
        return value
    }
}
