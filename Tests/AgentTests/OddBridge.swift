import Blocks
import SCSI

@testable import Agent

/// A bridge that is wrong in a way that can be chosen.
final class OddBridge: BridgeConnection, ThirdPartyCopier {
    struct Oddities: Sendable {
        /// Paths of units, by their numbers, whatever was asked.
        var replace: [Int: String] = [:]
        /// As one on another machine, or of another make.
        var hidesStorage = false
        /// Where a byte of the copy is turned over after the first EXTENDED COPY.
        var flipsAfterCopy: UInt64?
        /// What EXTENDED COPY fails with.
        var copyFailure: AgentError?
        /// Bytes of one EXTENDED COPY.
        var commandBytes: UInt64?
        /// Called before each EXTENDED COPY with what it will write from the source unit.
        var copying: (@Sendable ([ByteRange]) -> Void)?
        /// Called after each EXTENDED COPY.
        var copied: (@Sendable () -> Void)?
        /// Asked after that: the bridge is gone then, all at once.
        var dies: (@Sendable () -> Bool)?
        /// What a flush fails with.
        var flushFailure: StoreError?
        /// Called while a flush is under way; it then fails as a cancelled one does, or goes on. The argument asks
        /// whether it is cancelled.
        var flushing: (@Sendable (_ isCancelled: @Sendable () -> Bool) -> Void)?
    }
    private let inner: any BridgeConnection
    private let oddities: Oddities

    init(_ inner: any BridgeConnection, _ oddities: Oddities) {
        self.inner = inner
        self.oddities = oddities
    }

    var copier: any ThirdPartyCopier { self }
    var isLost: Bool { inner.isLost }
    func end() { inner.end() }

    var name: String { "the odd bridge" }

    func unit(_ number: Int) throws(AgentError) -> UnitDescription {
        var unit = try inner.copier.unit(number)
        if oddities.hidesStorage { unit.designators.removeAll { StorageName($0) != nil } }
        return unit
    }

    func planLimits(of unit: UnitDescription) throws(AgentError) -> PlanLimits {
        var limits = try inner.copier.planLimits(of: unit)
        if let bytes = oddities.commandBytes { (limits.segments, limits.segmentBytes) = (1, bytes) }
        return limits
    }

    private func tell(_ list: CopyParameterList) throws(AgentError) {
        guard let copying = oddities.copying, let source = try unit(0).copyDesignator,
            list.cscds.first?.designation == source
        else { return }
        copying(
            list.segments.map { segment in
                guard case .blocks(let count, _) = segment.amount else { preconditionFailure("not ours") }
                return ByteRange(offset: segment.destinationLBA.value * 512, count: UInt64(count) * 512)
            })
    }

    func copy(
        to unit: UnitDescription, _ list: CopyParameterList, isCancelled: @escaping @Sendable () -> Bool
    ) throws(AgentError) {
        if let failure = oddities.copyFailure { throw failure }
        try tell(list)
        try inner.copier.copy(to: unit, list, isCancelled: isCancelled)
        oddities.copied?()
        if oddities.dies?() == true { (inner as? LocalBridge)?.die() }
        guard let place = oddities.flipsAfterCopy else { return }
        let store = try inner.copier.store(of: unit)
        do throws(StoreError) {
            try store.write(store.bytes(at: place, count: 1).map { ~$0 }, at: place)
        } catch {
            throw AgentError(error, doing: "turning over", to: "")
        }
    }

    func copiedBytes(of listIdentifier: UInt8, at unit: UnitDescription) -> UInt64? {
        inner.copier.copiedBytes(of: listIdentifier, at: unit)
    }

    func store(
        of unit: UnitDescription, isCancelled: @escaping @Sendable () -> Bool
    ) throws(AgentError) -> any BlockStore {
        let store = try inner.copier.store(of: unit, isCancelled: isCancelled)
        guard oddities.flushing != nil || oddities.flushFailure != nil else { return store }
        return SlowlyFlushed(store) { [oddities] () throws(StoreError) in
            if let failure = oddities.flushFailure { throw failure }
            oddities.flushing?(isCancelled)
            if isCancelled() { throw StoreError(.gone) }
        }
    }

    func close() { inner.copier.close() }
}

/// A store whose flush takes its time.
private final class SlowlyFlushed: BlockStore {
    private let inner: any BlockStore
    private let flushing: @Sendable () throws(StoreError) -> Void
    var size: UInt64 { inner.size }
    var capabilities: StoreCapabilities { inner.capabilities }

    init(_ inner: any BlockStore, _ flushing: @escaping @Sendable () throws(StoreError) -> Void) {
        self.inner = inner
        self.flushing = flushing
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try inner.read(at: offset, into: buffer)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        try inner.write(buffer, at: offset, durable: durable)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try inner.writeZeroes(range, options: options)
    }
    func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
        try inner.trim(range, durable: durable)
    }
    func flush() throws(StoreError) {
        try flushing()
        try inner.flush()
    }
}
