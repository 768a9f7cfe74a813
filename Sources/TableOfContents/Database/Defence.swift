// The one file that imports CLibSQLite.
import CLibSQLite

/// What SQLite advises for database files of strangers (sqlite.org/security.html). Of it `quick_check` is left out: it
/// reads all of the file, whatever is asked; what is read is checked as it comes.
enum Defence {
    /// - Parameter connection: a `sqlite3 *`.
    /// - Returns: whether SQLite has taken all of it.
    static func raise(on connection: OpaquePointer) -> Bool {
        // A value that is longer is refused before there is memory for it.
        sqlite3_limit(connection, SQLITE_LIMIT_LENGTH, Int32(TocLimits.rowBytes))
        sqlite3_limit(connection, SQLITE_LIMIT_ATTACHED, 0)
        return outboard_sqlite_defend(UnsafeMutableRawPointer(connection)) == SQLITE_OK
    }

    /// The search index's own tables, as SQLite makes them.
    static let searchTables: [String: String] = [
        "names_search_data": "CREATE TABLE 'names_search_data'(id INTEGER PRIMARY KEY, block BLOB)",
        "names_search_idx":
            "CREATE TABLE 'names_search_idx'(segid, term, pgno, PRIMARY KEY(segid, term)) WITHOUT ROWID",
        "names_search_config": "CREATE TABLE 'names_search_config'(k PRIMARY KEY, v) WITHOUT ROWID",
    ]
}
