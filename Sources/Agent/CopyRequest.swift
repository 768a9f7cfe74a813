import Glibc
import PhysicalCopy

/// What a copy sequence is asked to do.
public struct CopyRequest: Sendable {
    /// One volume of the request.
    public struct Member: Hashable, Sendable {
        /// The host's control socket.
        public var control: String
        /// The copy's directory.
        public var destination: String

        public init(control: String, destination: String) {
            self.control = control
            self.destination = destination
        }
    }

    /// Which bridge copies.
    public enum Bridge: Hashable, Sendable {
        /// A child of ours, which writes `data.img` in the copy's directory.
        case privateOne
        /// One that somebody runs: its units with the source, the cache, and for the copy. For one volume only.
        case standing(BridgeAddress, source: Int, cache: Int, copy: Int)
    }

    public var members: [Member]
    public var mode: Manifest.Mode
    public var ending: EpochDescription.Ending
    public var bridge: Bridge
    /// Mount points to freeze at the instant.
    public var freeze: [String]
    public var preFreeze: String?
    public var postThaw: String?
    /// Bytes a second.
    public var maximumRate: UInt64?
    /// Replace a copy that is at the destination, and overwrite what is on a standing bridge's unit.
    public var force: Bool
    /// Copy only what the file systems have in use, and what belongs to none.
    public var usedOnly: Bool
    /// Make a table of contents.
    public var wantsToc: Bool
    /// Go on with a copy to the same destination whose agent or bridge has died.
    public var resumes = false
    /// Read all of the copy back, and compare it with what the bridge has summed up.
    public var readsBack = false
    /// Have the bridge sum up what passes, where it can.
    public var asksForChecksums = true
    /// Leave the epoch open when the copy is complete, so that the logical snapshot stays: with
    /// ``PhysicalCopy/EpochDescription/Ending/endedAfterCacheCopy`` only.
    public var keepsEpoch = false
    /// The program's name and version, for the manifest.
    public var tool: String

    public init(
        members: [Member], mode: Manifest.Mode = .overlay,
        ending: EpochDescription.Ending = .endedBeforeCacheCopy, bridge: Bridge = .privateOne,
        freeze: [String] = [], preFreeze: String? = nil, postThaw: String? = nil, maximumRate: UInt64? = nil,
        force: Bool = false, usedOnly: Bool = false, wantsToc: Bool = true, tool: String = "outboard"
    ) {
        self.members = members
        self.mode = mode
        self.ending = ending
        self.bridge = bridge
        self.freeze = freeze
        self.preFreeze = preFreeze
        self.postThaw = postThaw
        self.maximumRate = maximumRate
        self.force = force
        self.usedOnly = usedOnly
        self.wantsToc = wantsToc
        self.tool = tool
    }

    /// One host: its copy is `directory` itself. Several: each has one in it, named after its control socket without
    /// what follows the last dot.
    /// - Throws: 64 when two sockets have the same name.
    public static func members(controls: [String], directory: String) throws(AgentError) -> [Member] {
        if controls.count == 1 { return [Member(control: controls[0], destination: directory)] }
        var seen: Set<String> = []
        var members: [Member] = []
        for control in controls {
            var name = control.split(separator: "/").last.map(String.init) ?? control
            if let dot = name.lastIndex(of: "."), dot != name.startIndex { name = String(name[..<dot]) }
            guard seen.insert(name).inserted else {
                throw AgentError(
                    .usage, doing: "naming the copies in", to: directory,
                    because: "two control sockets are called \(name)",
                    advice: "give each host's control socket a name of its own")
            }
            members.append(Member(control: control, destination: directory + "/" + name))
        }
        return members
    }
}

/// What a copy sequence made of one volume.
public struct CopyOutcome: Codable, Hashable, Sendable {
    /// The copy's directory, absolute.
    public var copy: String
    public var uuid: String
    public var volume: String
    public var mode: Manifest.Mode
    public var epoch: UInt64
    /// The instant, nanoseconds since 1970.
    public var instant: Int64
    /// Nanoseconds for which the host's gate was closed.
    public var gateNanoseconds: UInt64
    /// Bytes of the volume, of it copied when that was not all, and of original images.
    public var bytes: UInt64
    public var usedBytes: UInt64?
    public var originals: UInt64
    public var originalBytes: UInt64
    /// Seconds from the beginning of the sequence to its end, and of the raw pass.
    public var seconds: Double
    public var copySeconds: Double
    /// Bytes of the copy that were read back to be summed up: what the bridge did not know; all, where that was asked for.
    public var readBackBytes: UInt64
    /// Nil: none was made.
    public var toc: TocBuild.Summary?
    /// How often the cache was full and the host began anew, so that the instant became a later one; nil: never.
    public var restarts: UInt64?
    /// Of those: the instant with which the copy began, nanoseconds since 1970.
    public var firstInstant: Int64?
    /// Of those: bytes that were copied again.
    public var copiedAgainBytes: UInt64?
    /// Of a copy that went on: bytes that an earlier run had copied and this one did not copy again.
    public var resumedBytes: UInt64?
}
