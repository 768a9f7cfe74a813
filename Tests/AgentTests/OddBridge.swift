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
        /// Called after each EXTENDED COPY.
        var copied: (@Sendable () -> Void)?
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
    func end() { inner.end() }

    var name: String { "the odd bridge" }

    func unit(_ number: Int) throws(AgentError) -> UnitDescription {
        var unit = try inner.copier.unit(number)
        if oddities.hidesStorage { unit.designators.removeAll { StorageName($0) != nil } }
        return unit
    }

    func planLimits(of unit: UnitDescription) throws(AgentError) -> PlanLimits {
        try inner.copier.planLimits(of: unit)
    }

    func copy(
        to unit: UnitDescription, _ list: CopyParameterList, isCancelled: @escaping @Sendable () -> Bool
    ) throws(AgentError) {
        if let failure = oddities.copyFailure { throw failure }
        try inner.copier.copy(to: unit, list, isCancelled: isCancelled)
        oddities.copied?()
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
        guard let flushing = oddities.flushing else { return store }
        return SlowlyFlushed(store) { () throws(StoreError) in
            flushing(isCancelled)
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
