import Agent
import Blocks
import Bridge
import Host
import HostControl
import SCSI

/// A control connection: lines to the host's dispatcher and back. Either way a line may be the last that comes through.
final class SimulatedLine: LineTransport, @unchecked Sendable {  // touched by whose turn it is only
    private let world: World
    private let host: HostProcess
    private let holder = EpochHolder()
    private let client: SimulatedProcess
    private var answers: [[UInt8]] = []
    private var isClosed = false
    private let place = UnsafeMutableRawPointer.allocate(byteCount: 1, alignment: 1)

    init(_ world: World, _ host: HostProcess) {
        self.world = world
        self.host = host
        client = world.scheduler.process
        host.process.whenItEnds { [weak self] in self?.close() }
        client.whenItEnds { [weak self] in self?.disconnect() }
    }

    deinit {
        disconnect()
        place.deallocate()
    }

    private func close() {
        isClosed = true
        world.scheduler.wake(place)
    }

    /// The host sees that the client is gone.
    private func disconnect() {
        guard !isClosed else { return }
        isClosed = true
        world.scheduler.start(in: host.process) { [host, holder, world] in
            world.scheduler.sleep(world.draw(2_000_000))
            host.volume?.disconnect(holder)
        }
    }

    func send(_ bytes: [UInt8], deadline: UInt64) throws(LineFailure) {
        guard !isClosed, let volume = host.volume else { throw .closed }
        if world.losesLines, world.draw(60) == 0 {
            world.mark(.lineLost)
            disconnect()
            throw .closed
        }
        let losesAnswer = world.losesLines && world.draw(60) == 0
        world.scheduler.start(in: host.process) { [weak self, world, holder, host] in
            world.scheduler.sleep(50_000 + world.draw(300_000))
            let dispatcher = ControlDispatcher(volume: volume, place: host.owner.descriptor)
            let answer = dispatcher.answer(to: bytes, holder: holder)
            guard let self, !isClosed, host.process.isAlive else { return }
            if losesAnswer {
                world.mark(.answerLost)
                volume.disconnect(holder)
                return close()
            }
            if let line = answer.line { answers.append(line) }
            world.scheduler.wake(place)
        }
    }

    func receiveLine(deadline: UInt64) throws(LineFailure) -> [UInt8] {
        while answers.isEmpty {
            if isClosed { throw .closed }
            if !world.scheduler.wait(at: place, until: deadline), answers.isEmpty, !isClosed {
                throw .timedOut
            }
        }
        return Array(answers.removeFirst().dropLast())
    }
}

/// A session with a bridge: commands are tasks of the bridge's process.
final class SimulatedSession: InitiatorTransport, @unchecked Sendable {  // touched by whose turn it is only
    private final class Flight {
        let task: InitiatorTask
        let command: SCSITask
        let number: Int
        init(_ task: InitiatorTask, _ command: SCSITask, number: Int) {
            self.task = task
            self.command = command
            self.number = number
        }
    }
    private let world: World
    private let bridge: BridgeProcess
    private let nexus: Nexus
    private var flights: [ObjectIdentifier: Flight] = [:]
    private var submitted = 0
    private(set) var loss: SessionLoss?

    init(_ world: World, _ bridge: BridgeProcess) {
        self.world = world
        self.bridge = bridge
        nexus = Nexus(initiatorName: Initiator.name, sessionIdentifier: 1, authenticatedName: nil)
        bridge.device?.openNexus(nexus)
        bridge.process.whenItEnds { [weak self] in self?.lose(.dropped("its process has ended")) }
    }

    func submit(_ task: InitiatorTask) {
        guard loss == nil, let device = bridge.device, bridge.process.isAlive else {
            return task.complete(.lost(loss ?? .dropped("its process has ended")))
        }
        var dataOut: [UInt8] = []
        var expectedIn = 0
        switch task.data {
        case .none: break
        case .dataIn(let buffer): expectedIn = buffer.count
        case .dataOut(let buffer): dataOut = Array(buffer)
        }
        let command = SCSITask(
            nexus: nexus, lun: LogicalUnitNumber(rawValue: UInt64(task.lun) << 48), cdb: task.cdb,
            dataOut: dataOut, expectedDataIn: expectedIn, expectedDataOut: dataOut.count)
        submitted += 1
        let flight = Flight(task, command, number: submitted)
        flights[ObjectIdentifier(task)] = flight
        world.scheduler.start(in: bridge.process) { [self] in
            world.scheduler.sleep(30_000 + world.draw(200_000))
            let outcome = device.execute(command)
            guard flights.removeValue(forKey: ObjectIdentifier(task)) != nil else { return }
            if command.isAborted { return task.complete(.aborted) }
            var moved = min(outcome.dataOutUsed, dataOut.count)
            if case .dataIn(let buffer) = task.data {
                moved = min(outcome.dataIn.count, buffer.count)
                buffer.copyBytes(from: outcome.dataIn.prefix(moved))
            }
            task.complete(.status(outcome.status.rawValue, sense: outcome.sense, moved: moved))
        }
    }

    func abort(_ task: InitiatorTask) { flights[ObjectIdentifier(task)]?.command.abort() }

    func drop(_ loss: SessionLoss) {
        guard self.loss == nil else { return }
        for flight in flights.values.sorted(by: { $0.number < $1.number }) { flight.command.abort() }
        lose(loss)
        world.scheduler.start(in: bridge.process) { [bridge, nexus] in bridge.device?.closeNexus(nexus) }
    }

    private func lose(_ loss: SessionLoss) {
        guard self.loss == nil else { return }
        self.loss = loss
        let lost = flights.values.sorted { $0.number < $1.number }
        flights = [:]
        for flight in lost { flight.task.complete(.lost(loss)) }
    }
}

/// The agent's private bridge, or a standing one.
final class SimulatedBridge: BridgeConnection, @unchecked Sendable {  // touched by whose turn it is only
    private let world: World
    let bridge: BridgeProcess
    private let session: SimulatedSession
    private let isPrivate: Bool
    let copier: any ThirdPartyCopier
    static let address = BridgeAddress(host: "127.0.0.1", targetName: "iqn.2026-01.net.outboard:simulated")

    init(_ world: World, _ bridge: BridgeProcess, isPrivate: Bool) {
        self.world = world
        self.bridge = bridge
        self.isPrivate = isPrivate
        session = SimulatedSession(world, bridge)
        copier = Initiator(Self.address, over: session)
    }

    private var isEnded = false
    var isLost: Bool { !isEnded && session.loss != nil }

    func end() {
        isEnded = true
        session.drop(.closed)
        guard isPrivate, bridge.process.isAlive else { return }
        let ended = Reply<Void>(world.scheduler)
        bridge.process.whenItEnds { ended.give(()) }
        world.scheduler.start(in: bridge.process) { [bridge] in
            bridge.device?.close()
            bridge.process.end()
        }
        _ = ended.wait()
    }
}
