/// What libtsk does not tell of a node, or tells wrong; asked once for each node of a file system that has one.
protocol NodeSupplement {
    /// Completes what libtsk told (times beyond 2038, device numbers, symbolic links' targets…), hands on extended
    /// attributes, and says what the node's content is where libtsk cannot read it right.
    ///
    /// - Returns: nil: libtsk's runs stand. `inline` and `unavailable`: the stream's storage as it is. `extents`: the
    ///   caller hands on the stream and then asks ``extents(of:into:)`` instead of libtsk's runs. For a directory
    ///   anything but nil means that its names have been handed on here, and that libtsk must not read it.
    /// - Throws: what `sink` throws; ``TocError`` `store` when the volume fails. Damage is a problem for `sink`.
    func complete(_ node: inout FileNode, into sink: any RecordSink) throws(TocError) -> FileStream.Storage?

    /// Hands on the extents of the unnamed stream of a node for which ``complete(_:into:)`` just said `extents`.
    /// - Throws: as ``complete(_:into:)``.
    func extents(of node: FileNode, into sink: any RecordSink) throws(TocError)
}

extension NodeSupplement {
    func extents(of node: FileNode, into sink: any RecordSink) throws(TocError) {}
}
