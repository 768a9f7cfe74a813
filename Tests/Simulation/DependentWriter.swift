import Blocks
import HostControl

/// An application of two volumes: it writes a number to the first one and, only after that was answered and is durable, the same
/// to the second. At no instant has the second a number that the first has not.
final class DependentWriter: @unchecked Sendable {  // touched by whose turn it is only
    private unowned let world: World
    private let first: SimulatedVolume
    private let second: SimulatedVolume
    /// No other application writes it.
    private let sector: Int

    init(_ world: World, _ first: SimulatedVolume, _ second: SimulatedVolume, sector: Int) {
        self.world = world
        self.first = first
        self.second = second
        self.sector = sector
    }

    func run() {
        while !world.stopsApplications {
            world.scheduler.sleep(world.draw(world.thinkTime))
            while world.pausesApplications, !world.stopsApplications {
                _ = world.scheduler.wait(at: world.place, until: nil)
            }
            let number = world.nextNumber()
            if write(number, to: first, isDurable: true) { _ = write(number, to: second, isDurable: false) }
        }
    }

    /// - Returns: whether it was answered that it is done.
    private func write(_ number: Content, to volume: SimulatedVolume, isDurable: Bool) -> Bool {
        guard let host = volume.host, host.isServing else { return false }
        let before = volume.source.failures
        let bytes = SectorContents.make(number, sector: sector)
        let offset = UInt64(sector * SectorContents.bytes)
        switch host.perform({ served throws(StoreError) in
            try served.write(bytes, at: offset, durable: isDurable)
        }) {
        case .done: return true
        case .lost: return false
        case .failed(let error):
            if volume.source.failures == before, !isDurable || !host.hasFailedFlush {
                world.fail("a dependent write failed: \(error.code)")
            }
            return false
        }
    }

    /// - Parameters: the volumes as of an instant.
    func check(_ first: [UInt8], _ second: [UInt8]) {
        let (a, b) = (number(in: first), number(in: second))
        guard let a, let b, b <= a else {
            return world.fail(
                "at a group's instant the second volume has \(b.map(String.init) ?? "torn bytes") and the first only "
                    + (a.map(String.init) ?? "torn bytes"))
        }
    }

    private func number(in volume: [UInt8]) -> Content? {
        let start = sector * SectorContents.bytes
        return SectorContents.read(volume[start..<start + SectorContents.bytes], sector: sector)
    }
}
