/// What a bridge says of the storage under a unit, in a designator of VPD page 83h of its own: which file or device
/// it is, on which boot of which machine. An initiator on the same machine can so tell the storage it knows from a
/// clone of it. No name of the unit: two units may have the same storage, and it does not fit a CSCD descriptor.
public struct StorageName: Hashable, Sendable {
    /// The boot's identifier, 32 hexadecimal digits. Device and inode numbers mean something within one boot only.
    public var boot: String
    /// The device number: of the device itself, or of the one the file lies on.
    public var device: UInt64
    /// 0 for a block device.
    public var inode: UInt64
    public var isBlockDevice: Bool

    public init(boot: String, device: UInt64, inode: UInt64, isBlockDevice: Bool) {
        self.boot = boot
        self.device = device
        self.inode = inode
        self.isBlockDevice = isBlockDevice
    }

    private static let vendor = "OUTBOARD"
    private static let prefix = "STORAGE"

    /// A T10 vendor designator (SPC-4 §7.8.6.4): `STORAGE BOOT DEVICE INODE KIND`, the numbers hexadecimal, the kind
    /// `B` for a block device and `F` for a file.
    public var designation: DesignationDescriptor {
        let numbers = [device, inode].map { String($0, radix: 16) }
        let kind = isBlockDevice ? "B" : "F"
        return .t10Vendor(
            Self.vendor, unique: ([Self.prefix, boot] + numbers + [kind]).joined(separator: " "))
    }

    /// Nil when it is no such designator.
    public init?(_ designation: DesignationDescriptor) {
        guard designation.type == DesignationDescriptor.DesignatorType.t10VendorID,
            designation.association == DesignationDescriptor.Association.logicalUnit
        else { return nil }
        let text = String(decoding: designation.designator, as: UTF8.self)
        let words = text.dropFirst(8).split(separator: " ").map(String.init)
        guard text.hasPrefix(Self.vendor), words.count == 5, words[0] == Self.prefix,
            let device = UInt64(words[2], radix: 16), let inode = UInt64(words[3], radix: 16),
            ["B", "F"].contains(words[4])
        else { return nil }
        self.init(boot: words[1], device: device, inode: inode, isBlockDevice: words[4] == "B")
    }
}
