import Agent
import Foundation
import PhysicalCopy

/// The judge of a group: copies of several volumes, as of one instant, complete together or not.
extension World {
    /// What is complete under a group's names.
    enum GroupState: Equatable {
        case none
        /// All members, of one group.
        case whole(String)
        case mixed
    }

    func state(of manifests: [Manifest?]) -> GroupState {
        let found = manifests.compactMap(\.self)
        guard !found.isEmpty else { return .none }
        let groups = Set(found.map { $0.group?.uuid })
        guard found.count == volumes.count, groups.count == 1, let uuid = groups.first ?? nil else {
            return .mixed
        }
        return .whole(uuid)
    }

    /// Who ends with an error has left all of the group's names as they were, or given all of them away.
    func judgeFailure(_ name: String, _ error: AgentError, from before: GroupState?) {
        guard plan.isGroup, let before, failure == nil else { return }
        mark(.groupFailed)
        // The promise has this exception, and tells it.
        if error.reason.contains("is complete nevertheless") { return }
        guard let now = groupState(name), before != .mixed, now == .mixed else { return }
        fail("a copy of a group has failed and left it complete in part: \(error)")
    }

    /// - Returns: nil when somebody is changing one of them.
    func groupState(_ name: String) -> GroupState? {
        guard plan.isGroup else { return nil }
        isJudging = true
        defer { isJudging = false }
        var manifests: [Manifest?] = []
        let user = files.makeUser(2)
        defer { user.end() }
        for path in copyPaths(name) {
            do throws(CopyError) {
                manifests.append(try PhysicalCopy(path, files: files.calls(for: user)).manifest)
            } catch {
                guard error.kind != .cannotCreate else { return nil }
                manifests.append(nil)
            }
        }
        return state(of: manifests)
    }

    /// Members that say they are of one group are as of one instant.
    func judgeGroup(_ name: String, _ manifests: [Manifest?]) {
        guard plan.isGroup, failure == nil, case .whole = state(of: manifests) else { return }
        let members = manifests.compactMap(\.self)
        let found = members.compactMap { UUID(uuidString: $0.epoch.uuid).flatMap { instants[$0] } }
        guard found.count == members.count else { return fail("a group is of an epoch that never was") }
        guard Set(members.map(\.epoch.institutedAt)).count == 1 else {
            return fail("the members of the group \(name) name different instants")
        }
        guard let last = found.max(by: { $0.number < $1.number }) else { return }
        // When the gate of the last one was closed all others were as they are in their copies.
        for instant in found where instant.volume != last.volume {
            guard last.others[instant.volume] == instant.bytes else {
                return fail("the members of the group \(name) are not as of one instant")
            }
        }
        dependentWriter?.check(found[0].bytes, found[1].bytes)
        mark(.groupOfOneInstant)
    }
}
