extension Unicode.Scalar {
    /// Whether it could end a line, move a terminal's cursor or have it do more, or turn what stands around it.
    var isControl: Bool {
        switch properties.generalCategory {
        case .control, .format, .lineSeparator, .paragraphSeparator, .privateUse, .unassigned: true
        default: false
        }
    }

    /// As JSON tells it (RFC 8259 §7): `\u001b`.
    var escape: String {
        utf16.reduce(into: "") { text, unit in
            let digits = String(unit, radix: 16)
            text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
        }
    }
}

// Texts for people hold words of strangers: of manifests, hosts, bridges, volumes.
extension String {
    /// With control characters told by their numbers; ends of lines and tabs stay.
    var visible: String { escaping { $0.isControl && $0 != "\n" && $0 != "\t" } }

    /// The same for words of strangers within a line, which they shall not end.
    var visibleOnOneLine: String { escaping(\.isControl) }

    private func escaping(_ isHidden: (Unicode.Scalar) -> Bool) -> String {
        guard unicodeScalars.contains(where: isHidden) else { return self }
        return unicodeScalars.reduce(into: "") { text, scalar in
            if isHidden(scalar) { text += scalar.escape } else { text.unicodeScalars.append(scalar) }
        }
    }
}
