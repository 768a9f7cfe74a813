#pragma once
#include <sqlite3.h>

// Variadic, which Swift does not import.
static inline int outboard_sqlite_defend(void *connection) {
    return sqlite3_db_config((sqlite3 *)connection, SQLITE_DBCONFIG_DEFENSIVE, 1, (int *)0);
}
