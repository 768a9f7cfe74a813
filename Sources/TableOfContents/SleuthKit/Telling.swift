import Blocks

/// What one reading of a file system hands on, and what it may.
///
/// A hostile disk can name the same blocks again and again: so there is a budget, which is what a sound file system
/// of that size can have at most.
final class Telling {
    let sink: any RecordSink
    let range: ByteRange
    private var problems = 0
    private var extentsLeft: UInt64
    private var directoryBytesLeft: UInt64

    /// - Parameter blockSize: of the least that can be allocated.
    init(_ sink: any RecordSink, range: ByteRange, blockSize: UInt64) {
        self.sink = sink
        self.range = range
        extentsLeft = range.count / max(blockSize, 512) + 1024
        directoryBytesLeft = range.count + (1 << 20)
    }

    func put(_ record: VolumeRecord) throws(TocError) { try sink.put(record) }

    func problem(_ node: UInt64?, _ reason: String) throws(TocError) {
        problems += 1
        if problems <= TocLimits.toldProblems {
            try sink.put(.problem(ReadProblem(node: node, reason: reason)))
        }
    }

    /// - Returns: whether so many bytes of directories may still be read.
    func mayRead(_ directoryBytes: UInt64) -> Bool {
        guard directoryBytes <= directoryBytesLeft else { return false }
        directoryBytesLeft -= directoryBytes
        return true
    }

    func end() throws(TocError) {
        if problems > TocLimits.toldProblems {
            try sink.put(
                .problem(
                    ReadProblem(reason: "\(problems - TocLimits.toldProblems) more things could not be read"))
            )
        }
        try sink.put(.end)
    }

    /// Tells a stream and its extents, unless they do not lie within the file system, overlap one another in the
    /// stream, or are more than there can be: then it is unavailable.
    /// - Parameter extents: in order, of the volume.
    func stream(_ stream: FileStream, _ extents: [FileExtent]) throws(TocError) {
        var stream = stream
        var extents = extents[...]
        if case .extents = stream.storage {
            if let wrong = wrong(extents) {
                try problem(stream.identifier.node, wrong)
                stream.storage = .unavailable(wrong)
                extents = []
            } else {
                extentsLeft -= UInt64(extents.count)
            }
        }
        try sink.put(.stream(stream))
        while !extents.isEmpty {
            try sink.put(.extents(stream.identifier, Array(extents.prefix(TocLimits.extentsPerRecord))))
            extents = extents.dropFirst(TocLimits.extentsPerRecord)
        }
    }

    private func wrong(_ extents: ArraySlice<FileExtent>) -> String? {
        guard UInt64(extents.count) <= extentsLeft else {
            return "more extents than the file system has blocks"
        }
        var end: UInt64 = 0
        for extent in extents {
            guard extent.count > 0, extent.volumeOffset >= range.offset,
                ByteRange(checking: extent.volumeOffset - range.offset, extent.count, within: range.count)
                    != nil
            else { return "an extent lies beyond the file system's end" }
            guard extent.fileOffset >= end, !extent.fileOffset.addingReportingOverflow(extent.count).overflow
            else { return "its extents overlap one another" }
            end = extent.fileOffset + extent.count
        }
        return nil
    }
}
