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
        if bytes.capacity > NBDLimits.retainedBuffer { bytes = ByteBuffer() }
        bytes.clear()
        executor.reply(request, error: error, &bytes)
    }

    /// The request is over.
    mutating func end() {
        if bytes.capacity > NBDLimits.retainedBuffer { bytes = ByteBuffer() } else { bytes.clear() }
    }
}
