import Blocks
import CLibTSK
import Testing

@testable import TableOfContents

@Suite struct RecordTests {
    /// What is built against is what runs.
    @Test func theLibraryIsThere() {
        #expect(String(cString: tsk_version_get_str()).hasPrefix("4."))
    }
}
