import GRDBSQLite

/// A prepared statement, bound and run without anything in between: a million files are some five million rows, and
/// whatever is done for each of them counts.
///
/// Used in the thread that has the database, and ended before the database is closed.
final class RawStatement {
    private let connection: OpaquePointer
    private var statement: OpaquePointer?

    init(_ connection: OpaquePointer, _ sql: String) throws(TocError) {
        self.connection = connection
        let code = sqlite3_prepare_v3(
            connection, sql, -1, UInt32(SQLITE_PREPARE_PERSISTENT), &statement, nil)
        guard code == SQLITE_OK else { throw Self.failure(connection) }
    }

    deinit { sqlite3_finalize(statement) }

    static func failure(_ connection: OpaquePointer) -> TocError {
        TocError(
            .cannotCreate,
            "writing the table of contents: \(String(cString: sqlite3_errmsg(connection)))")
    }

    func bind(_ index: Int32, _ value: Int64) { check(sqlite3_bind_int64(statement, index, value)) }

    func bind(_ index: Int32, _ value: Int64?) {
        if let value {
            bind(index, value)
        } else {
            check(sqlite3_bind_null(statement, index))
        }
    }

    func bind(_ index: Int32, text: StaticString) {
        text.withUTF8Buffer {
            $0.withMemoryRebound(to: CChar.self) {
                check(sqlite3_bind_text(statement, index, $0.baseAddress, Int32($0.count), nil))
            }
        }
    }

    /// Runs `body`, which runs the statement, while a text or blob is bound: nothing is copied.
    func binding(
        _ index: Int32, _ bytes: [UInt8]?, asText: Bool, _ body: () throws(TocError) -> Void
    ) throws(TocError) {
        guard let bytes else {
            check(sqlite3_bind_null(statement, index))
            return try body()
        }
        var failure: TocError?
        bytes.withUnsafeBytes { buffer in
            // An empty array may have no address, and that would be NULL.
            let address = buffer.baseAddress ?? UnsafeRawPointer(bitPattern: 1)
            if asText {
                let text = address?.assumingMemoryBound(to: CChar.self)
                check(sqlite3_bind_text(statement, index, text, Int32(buffer.count), nil))
            } else {
                check(sqlite3_bind_blob(statement, index, address, Int32(buffer.count), nil))
            }
            do throws(TocError) { try body() } catch { failure = error }
        }
        if let failure { throw failure }
    }

    /// Runs it to its end, and makes it ready for the next time.
    func run() throws(TocError) {
        let code = sqlite3_step(statement)
        guard code == SQLITE_DONE else {
            let failure = Self.failure(connection)
            sqlite3_reset(statement)
            throw failure
        }
        sqlite3_reset(statement)
    }

    private func check(_ code: Int32) {
        precondition(code == SQLITE_OK, "a parameter that the statement does not have, or no memory")
    }
}
