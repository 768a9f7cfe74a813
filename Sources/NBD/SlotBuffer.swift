import NIOCore

/// The memory of a request in flight: first a WRITE's payload, then the reply. Small memory stays for the next
/// request.
struct SlotBuffer {
    private(set) var bytes = ByteBuffer()

    /// Makes room for a payload of `count` bytes.
    mutating func begin(payload count: Int) {
        bytes.clear()
        bytes.reserveCapacity(count)
    }

    mutating func append(_ payload: UnsafeRawBufferPointer) { bytes.writeBytes(payload) }

    /// Executes `request` with the payload that is here, which its reply then replaces.
    mutating func execute(_ request: RequestHeader, _ executor: RequestExecutor) {
        guard request.command == .write else {
            bytes.clear()
            executor.execute(request, payload: UnsafeRawBufferPointer(start: nil, count: 0), output: &bytes)
            return
        }
        let error = bytes.withUnsafeReadableBytes { executor.change(request, $0) }
        reply(request, error, executor)
    }

    /// Executes the WRITE `request` in the same way, unless it would have to wait for something else than the
    /// device.
    /// - Returns: false when it would; then the payload is here still.
    mutating func writePromptly(_ request: RequestHeader, _ executor: RequestExecutor) -> Bool {
        var error: ErrorCode?
        let done = bytes.withUnsafeReadableBytes { executor.writePromptly(request, $0, error: &error) }
        if done { reply(request, error, executor) }
        return done
    }

    private mutating func reply(_ request: RequestHeader, _ error: ErrorCode?, _ executor: RequestExecutor) {
        if bytes.capacity > NBDLimits.retainedBuffer { bytes = ByteBuffer() }
        bytes.clear()
        executor.reply(request, error: error, &bytes)
    }

    /// The request is over.
    mutating func end() {
        if bytes.capacity > NBDLimits.retainedBuffer { bytes = ByteBuffer() } else { bytes.clear() }
    }
}
