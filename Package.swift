// swift-tools-version: 6.2
import Foundation
import PackageDescription

let strict: [SwiftSetting] = [.treatAllWarnings(as: .error)]
/// In release builds what is tested is optimized, not the tests: sooner built.
let unoptimized: [SwiftSetting] = strict + [.unsafeFlags(["-Onone"], .when(configuration: .release))]

let nio: [Target.Dependency] = [
    .product(name: "NIOCore", package: "swift-nio"),
    .product(name: "NIOPosix", package: "swift-nio"),
]
let log: Target.Dependency = .product(name: "Logging", package: "swift-log")

func library(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .target(name: name, dependencies: dependencies, swiftSettings: strict)
}

func tests(_ name: String, _ dependencies: [Target.Dependency], exclude: [String] = []) -> Target {
    .testTarget(
        name: name, dependencies: ["TestSupport"] + dependencies, exclude: exclude, swiftSettings: unoptimized
    )
}

/// What is fuzzed, and what lies beside its sources.
let fuzzed: [Target.Dependency] = [
    "TestSupport", "ISCSI", "Bridge", "SCSI", "TableOfContents", "OriginalImage", "PhysicalCopy", "Host",
    "HostControl", "NBD", "Blocks", log, .product(name: "GRDB", package: "GRDB.swift"),
    .product(name: "NIOCore", package: "swift-nio"),
]
let fuzzFiles = [
    "record-seeds", "record-images", "record-xfs-image", "record-host-seeds", "images", "seeds",
]

let package = Package(
    name: "outboard",
    products: [.executable(name: "outboard", targets: ["outboard"])],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
    ],
    targets: [
        // Level 0: system libraries, and what everybody shares.
        .systemLibrary(name: "CLibAIO", providers: [.apt(["libaio-dev"])]),
        .systemLibrary(name: "CLibISCSI", pkgConfig: "libiscsi", providers: [.apt(["libiscsi-dev"])]),
        .systemLibrary(name: "CLibNBD", pkgConfig: "libnbd", providers: [.apt(["libnbd-dev"])]),
        .systemLibrary(name: "CLibTSK", pkgConfig: "tsk", providers: [.apt(["libtsk-dev"])]),
        .systemLibrary(name: "CLibArchive", pkgConfig: "libarchive", providers: [.apt(["libarchive-dev"])]),
        .systemLibrary(name: "CLibSQLite", providers: [.apt(["libsqlite3-dev"])]),
        .target(name: "CChecksum"),
        library("Blocks", ["CChecksum"]),

        // Level 1.
        library("SCSI", ["Blocks"]),
        library("AsyncIO", ["Blocks", "CLibAIO"]),
        library("OriginalImage", ["Blocks"]),
        library("HostControl", ["Blocks"]),

        // Level 2.
        library("ISCSI", ["Blocks", "SCSI", .product(name: "Crypto", package: "swift-crypto"), log] + nio),
        library("NBD", ["Blocks", log, .product(name: "NIOSSL", package: "swift-nio-ssl")] + nio),
        library("Bridge", ["Blocks", "SCSI", "AsyncIO", log]),
        library("Host", ["Blocks", "OriginalImage", "HostControl", log] + nio),
        library("PhysicalCopy", ["Blocks", "OriginalImage", "CLibArchive"]),
        library("Metrics", ["Blocks", log, .product(name: "NIOHTTP1", package: "swift-nio")] + nio),
        library(
            "TableOfContents",
            [
                "Blocks", "CLibTSK", "CLibSQLite", .product(name: "GRDB", package: "GRDB.swift"),
                .product(name: "GRDBSQLite", package: "GRDB.swift"),
            ]),

        // Level 3.
        library(
            "Agent",
            [
                "Blocks", "SCSI", "HostControl", "OriginalImage", "PhysicalCopy", "TableOfContents",
                "CLibISCSI",
                "CLibNBD", log,
            ]),

        // Level 4: where everything meets.
        .executableTarget(
            name: "outboard",
            dependencies: [
                "Blocks", "SCSI", "AsyncIO", "OriginalImage", "HostControl", "ISCSI", "NBD", "Bridge", "Host",
                "PhysicalCopy", "TableOfContents", "Agent", "Metrics", log,
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Crypto", package: "swift-crypto"), .product(name: "Yams", package: "Yams"),
                .product(name: "NIOCore", package: "swift-nio"),
            ],
            swiftSettings: strict),

        // Tests.
        .target(
            name: "TestSupport", dependencies: ["Blocks"], path: "Tests/TestSupport",
            // The oracle looks at every byte: fifty times slower without.
            swiftSettings: strict + [.unsafeFlags(["-O"])]),
        .target(
            name: "SimulatedFiles", dependencies: ["TestSupport", "PhysicalCopy", "Blocks"],
            path: "Tests/SimulatedFiles", swiftSettings: strict + [.unsafeFlags(["-O"])]),
        .target(name: "CWitnessCalls", path: "Tests/CWitnessCalls"),
        .executableTarget(
            // It hashes what it lists: fifty times slower without.
            name: "FileSystemWitness", dependencies: ["CWitnessCalls"], path: "Tests/FileSystemWitness",
            swiftSettings: strict + [.unsafeFlags(["-O", "-parse-as-library"])]),
        .executableTarget(
            name: "simulate",
            dependencies: [
                "TestSupport", "Blocks", "SCSI", "AsyncIO", "OriginalImage", "HostControl", "Bridge", "Host",
                "PhysicalCopy", "Agent", "SimulatedFiles", log,
            ],
            path: "Tests/Simulation", swiftSettings: strict + [.unsafeFlags(["-O"])]),
        tests("TestSupportTests", ["Blocks"]),
        tests("BlocksTests", ["Blocks", "CChecksum"]),
        tests("SCSITests", ["SCSI", "Blocks"]),
        tests("AsyncIOTests", ["AsyncIO", "Blocks", "CAllocationCount"]),
        tests("OriginalImageTests", ["OriginalImage", "Blocks"]),
        tests("HostControlTests", ["HostControl"]),
        tests(
            "ISCSITests",
            ["ISCSI", "SCSI", "Blocks", .product(name: "NIOEmbedded", package: "swift-nio")] + nio),
        .target(name: "CAllocationCount", path: "Tests/CAllocationCount"),
        tests("NBDTests", ["NBD", "Blocks", "CAllocationCount", log] + nio),
        tests("BridgeTests", ["Bridge", "SCSI", "AsyncIO", "Blocks", log]),
        .testTarget(
            name: "FuzzTests",
            dependencies: fuzzed, path: "Tests/Fuzz", exclude: fuzzFiles,
            swiftSettings: strict),
        tests("MetricsTests", ["Metrics", "Blocks", log]),
        tests("HostTests", ["Host", "OriginalImage", "HostControl", "Blocks"]),
        tests("PhysicalCopyTests", ["PhysicalCopy", "SimulatedFiles", "OriginalImage", "Blocks"]),
        tests(
            "TableOfContentsTests",
            ["TableOfContents", "Blocks", "CLibTSK", .product(name: "GRDB", package: "GRDB.swift")]),
        tests(
            "AgentTests",
            [
                "Agent", "PhysicalCopy", "TableOfContents", "OriginalImage", "HostControl", "Host", "SCSI",
                "ISCSI", "Bridge", "AsyncIO", "Blocks", log,
            ]),
        tests(
            "SystemTests",
            [
                "outboard", "simulate", "FileSystemWitness", "Blocks", "Agent", "PhysicalCopy",
                "TableOfContents",
                "OriginalImage",
                "HostControl", "Bridge", "ISCSI", "SCSI", "AsyncIO", log,
            ], exclude: ["iscsi-test-cu-skips.txt"]),
    ],
    swiftLanguageModes: [.v6]
)

// The fuzzer's build (scripts/fuzz) has one program more, and no tests.
if ProcessInfo.processInfo.environment["OUTBOARD_FUZZ"] != nil {
    package.targets.removeAll { $0.isTest || $0.name == "outboard" }
    package.products.removeAll()
    package.targets.append(
        .executableTarget(
            name: "fuzz",
            dependencies: fuzzed, path: "Tests/Fuzz", exclude: fuzzFiles + ["ReplayTests.swift"],
            swiftSettings: strict + [.unsafeFlags(["-parse-as-library"])]))
}

// Only these targets and what they need: for the sanitizers' builds (scripts/test), and for those who work on one module
// (`OUTBOARD_ONLY=HostTests,BridgeTests swift test`).
if let only = ProcessInfo.processInfo.environment["OUTBOARD_ONLY"] {
    var kept: Set<String> = []
    var wanted = only.split(separator: ",").map(String.init)
    while let name = wanted.popLast() {
        guard kept.insert(name).inserted, let target = package.targets.first(where: { $0.name == name })
        else {
            continue
        }
        for dependency in target.dependencies {
            if case .byNameItem(let name, _) = dependency { wanted.append(name) }
        }
    }
    package.targets.removeAll { !kept.contains($0.name) }
    package.products.removeAll()
}
