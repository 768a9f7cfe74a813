import Glibc
import TestSupport
import Testing

@Suite struct DescriptorTests {
    @Test func whoClosesTwiceIsFound() async {
        await #expect(processExitsWith: .success) {
            // Sooner or later: the threads must meet.
            while !closesOthersDescriptors(
                times: 1000,
                {
                    let descriptor = open("/dev/null", O_RDONLY | O_CLOEXEC)
                    close(descriptor)
                    close(descriptor)
                })
            {}
        }
    }

    @Test func aFailedConnectionIsClosedOnce() async {
        await #expect(processExitsWith: .success) {
            precondition(!closesOthersDescriptors(times: 20_000) { _ = try? RawNBDClient("/nonexistent") })
        }
    }
}
