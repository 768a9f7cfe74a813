import Blocks

/// VPD page 86h (SPC-4 §7.8.7): what standard INQUIRY data have no place for. No protection information, no
/// microcode, no self-test.
public struct ExtendedInquiry: Hashable, Sendable {
    /// V_SUP: the unit has a volatile cache.
    public var hasVolatileCache = false
    /// SIMPSUP, ORDSUP and HEADSUP: the task attributes that are honoured.
    public var simpleTasks = true
    public var orderedTasks = false
    public var headOfQueueTasks = false
    /// MAXIMUM SUPPORTED SENSE DATA LENGTH, bytes.
    public var senseDataLength: UInt8 = 0

    public init() {}

    public var page: VPDPage {
        var body = [UInt8](repeating: 0, count: 60)
        body[1] = (headOfQueueTasks ? 0x04 : 0) | (orderedTasks ? 0x02 : 0) | (simpleTasks ? 0x01 : 0)
        body[2] = hasVolatileCache ? 0x01 : 0
        body[9] = senseDataLength
        return VPDPage(code: VPDPageCode.extendedInquiry, body: body)
    }
}

extension VPDPage {
    /// Page 87h (SPC-4 §7.8.8): all mode pages are shared by all nexuses.
    public static let sharedModePages = VPDPage(
        code: VPDPageCode.modePagePolicy, body: [ModeSense.allPages, ModeSense.allSubpages, 0, 0])
}
