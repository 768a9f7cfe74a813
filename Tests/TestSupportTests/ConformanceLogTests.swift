import TestSupport
import Testing

@Suite struct ConformanceLogTests {
    private static let log = """
            Send READCAPACITY16 (Expecting SUCCESS)
            [SKIPPED] what is before the first test is nobody's

             CUnit - A unit testing framework for C
        Suite: Write
          Test: Simple ...
            Send WRITE
            [OK] WRITE returned SUCCESS.
        passed
          Test: Partly ...
            [OK] WRITE returned SUCCESS.
            [SKIPPED] LUN too small. Skipping assert
            [OK] WRITE returned SUCCESS.
        passed    Send PRIN/READ_KEYS
            [SKIPPED] PERSISTENT RESERVE IN is not implemented.
        Suite: Multipath
          Test: Whole ...    [SKIPPED] Multipath unavailable. Skipping test
        passed
          Test: Wrong ...
            Send WRITE
        FAILED
            1. test_wrong.c:62  - CU_ASSERT_EQUAL(_r,0)
            2. test_wrong.c:82  - CU_ASSERT_EQUAL(_r,0)    Send PRIN/READ_KEYS
            [SKIPPED] PERSISTENT RESERVE IN is not implemented.
          Test: Mute ...passed
        Suite: iSCSITMF
          Test: LUNResetSimpleAsync ...passed
          Test: Unfinished ...
            Send WRITE

        """

    @Test func outcomes() {
        let log = ConformanceLog(Self.log)
        #expect(
            log.tests.map(\.name) == [
                "Write.Simple", "Write.Partly", "Multipath.Whole", "Multipath.Wrong", "Multipath.Mute",
                "iSCSITMF.LUNResetSimpleAsync", "iSCSITMF.Unfinished",
            ])
        #expect(log.passed == ["Write.Simple", "iSCSITMF.LUNResetSimpleAsync"])
        #expect(log.skipped == ["Write.Partly", "Multipath.Whole", "Multipath.Mute"])
        #expect(log.tests[1].outcome == .skipped("[SKIPPED] LUN too small. Skipping assert"))
        #expect(log.failed.map(\.name) == ["Multipath.Wrong", "iSCSITMF.Unfinished"])
        guard case .failed(let text) = log.tests[3].outcome else { return }
        #expect(text.contains("test_wrong.c:82") && !text.contains("[SKIPPED]"))
    }

    @Test func allowedSkips() throws {
        let list = try AllowedSkips(
            """
            # a comment
            all PreventAllow.Simple    the medium is not removable
            thin,4096 Write.Partly too small
            """, kinds: ["thin", "thick", "4096"])
        #expect(list["thin"] == ["PreventAllow.Simple", "Write.Partly"])
        #expect(list["thick"] == ["PreventAllow.Simple"])
        for wrong in ["thin A.B", "thn A.B no such kind", "thin A.B once\nall A.B twice"] {
            #expect(throws: AllowedSkips.MalformedLine.self) {
                try AllowedSkips(wrong, kinds: ["thin"])
            }
        }
    }
}
