import Blocks
import Glibc
import HostControl
import Logging
import Synchronization

/// Whether what was written to the source can still be called safe.
///
/// The system tells a failed write-back once for an open file: the flush that hears of it fails, and the next one
/// succeeds although the data never reached the disk. So the volume remembers: after the first failure every
/// flush and FUA write fails, whoever asks, until the host is started anew and with it the file opened anew.
final class FlushFailure: Sendable {
    private let isKnown = Atomic<Bool>(false)
    private let first = Monitor<StoreError?>(nil)

    /// - Throws: `EIO` once a flush has failed.
    func check() throws(StoreError) {
        if isKnown.load(ordering: .acquiring) { throw StoreError(.io, errno: EIO) }
    }

    /// - Returns: whether it is the first.
    func remember(_ error: StoreError) -> Bool {
        isKnown.store(true, ordering: .releasing)
        return first.withLock { first in
            guard first == nil else { return false }
            first = error
            return true
        }
    }

    /// In words for people; nil: no flush has failed.
    var text: String? {
        first.withLock { $0 }.map { "a flush of the source failed (\($0.code), errno \($0.errno))" }
    }
}

extension CopyOnWriteVolume {
    /// What to do about ``FlushFailure``.
    private static let flushAdvice =
        "what was written before may be lost: look at the device and the system's log, check the applications' "
        + "data, then start the host anew"

    /// Every flush of the source.
    func flushSource() throws(StoreError) {
        try flushFailure.check()
        do throws(StoreError) { try source.flush() } catch {
            note(error)
            throw error
        }
        // Another one may have been told of what this one flushed.
        try flushFailure.check()
    }

    /// Every write of data to the source: `write` is told whether it has to be durable.
    @inline(__always)
    func put(durable: Bool, _ write: (Bool) throws(StoreError) -> Void) throws(StoreError) {
        guard durable else { return try write(false) }
        try flushFailure.check()
        do throws(StoreError) { try write(true) } catch {
            if error.code == .noSpace {
                // No room for the data themselves is no failed flush: then there is still none.
                try write(false)
            }
            note(error)
            throw error
        }
        try flushFailure.check()
    }

    private func note(_ error: StoreError) {
        switch error.code {
        case .readOnly, .notSupported, .gone: return
        case .io, .noSpace, .corrupt: break
        }
        guard flushFailure.remember(error), let text = flushFailure.text else { return }
        settings.logger?.error(
            "\(text): from now on every flush fails and no copy can begin; \(Self.flushAdvice)")
    }

    /// Refuses the control operations that rest on the source's contents once a flush has failed.
    func requireNoFailedFlush() throws(ControlError) {
        if let text = flushFailure.text { throw ControlError(.io, "\(text); \(Self.flushAdvice)") }
    }

    func flushSourceForControl() throws(ControlError) {
        do throws(StoreError) { try flushSource() } catch {
            try requireNoFailedFlush()
            throw ControlError(.io, "the source could not be flushed (\(error.code), errno \(error.errno))")
        }
    }
}
