/// What libtsk does not tell of a node; asked once for each node of a file system that has one.
protocol NodeSupplement {
    /// Completes what libtsk told (times beyond 2038, device numbers…), hands on extended attributes, and returns
    /// the node's content where libtsk cannot read it right (inline data); nil: libtsk's runs stand.
    /// - Throws: what `sink` throws; ``TocError`` `store` when the volume fails. Damage is a problem for `sink`.
    func complete(_ node: inout FileNode, into sink: any RecordSink) throws(TocError) -> FileStream.Storage?
}
