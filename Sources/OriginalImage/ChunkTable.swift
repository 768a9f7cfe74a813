/// Values by chunk number: open addressing with linear probing, as compact as two arrays; nothing is removed.
struct ChunkTable<Value: BitwiseCopyable & Sendable>: Sendable {
    private var keys: [UInt64]  // chunk + 1; 0 is a free place
    private var values: [Value]
    private let none: Value
    private(set) var count = 0

    /// - Parameter none: fills free places.
    init(none: Value) {
        self.none = none
        keys = Array(repeating: 0, count: 16)
        values = Array(repeating: none, count: 16)
    }

    private func place(of chunk: UInt64) -> Int {
        let mask = keys.count - 1
        var place = Int(truncatingIfNeeded: (chunk &* 0x9E37_79B9_7F4A_7C15) >> 20) & mask
        while keys[place] != 0, keys[place] != chunk + 1 { place = (place + 1) & mask }
        return place
    }

    subscript(chunk: UInt64) -> Value? {
        let place = place(of: chunk)
        return keys[place] == 0 ? nil : values[place]
    }

    /// All chunks, in no particular order.
    var chunks: [UInt64] { keys.filter { $0 != 0 }.map { $0 - 1 } }

    /// False, and nothing changed, when the chunk is there already.
    mutating func insert(_ chunk: UInt64, _ value: Value) -> Bool {
        if (count + 1) * 4 > keys.count * 3 { grow() }
        let place = place(of: chunk)
        guard keys[place] == 0 else { return false }
        keys[place] = chunk + 1
        values[place] = value
        count += 1
        return true
    }

    private mutating func grow() {
        let old = (keys, values)
        keys = Array(repeating: 0, count: old.0.count * 2)
        values = Array(repeating: none, count: old.0.count * 2)
        for index in old.0.indices where old.0[index] != 0 {
            let place = place(of: old.0[index] - 1)
            keys[place] = old.0[index]
            values[place] = old.1[index]
        }
    }
}
