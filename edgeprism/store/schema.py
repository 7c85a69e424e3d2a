"""The tables of the caption store, and the steps from each version to the next."""

from __future__ import annotations

APPLICATION_ID = 0x45505249  # "EPRI"

# MIGRATIONS[:n] bring a new file to user_version n. Old files rely on every entry: only append.
# Statements are cut at semicolons.
MIGRATIONS = (
    """
    CREATE TABLE requests (id TEXT PRIMARY KEY, settings TEXT NOT NULL);
    CREATE TABLE captions (
        key TEXT PRIMARY KEY,
        image_sha256 TEXT NOT NULL,
        request TEXT NOT NULL REFERENCES requests(id),
        record TEXT NOT NULL,
        created REAL NOT NULL
    );
    CREATE INDEX captions_by_image ON captions (image_sha256);
    CREATE TABLE files (
        path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        sha256 TEXT NOT NULL
    );
    CREATE TABLE outputs (path TEXT PRIMARY KEY, sha256 TEXT NOT NULL);
    CREATE TABLE claims (
        key TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, until REAL NOT NULL
    );
    """,
    # Names are bytes. A stamp holds size, mtime, ctime and inode; those of version 1 lack the last
    # two, so these files are read once more: an empty stamp matches no file.
    """
    ALTER TABLE files RENAME TO files_1;
    CREATE TABLE files (path BLOB PRIMARY KEY, stamp TEXT NOT NULL, sha256 TEXT NOT NULL);
    INSERT INTO files SELECT CAST(path AS BLOB), '', sha256 FROM files_1 ORDER BY rowid;
    DROP TABLE files_1;
    CREATE INDEX files_by_content ON files (sha256);
    ALTER TABLE outputs RENAME TO outputs_1;
    CREATE TABLE outputs (path BLOB PRIMARY KEY, sha256 TEXT NOT NULL);
    INSERT INTO outputs SELECT CAST(path AS BLOB), sha256 FROM outputs_1 ORDER BY rowid;
    DROP TABLE outputs_1;
    ALTER TABLE captions ADD COLUMN tiles_sha256 TEXT;
    CREATE INDEX captions_by_tiles ON captions (request, tiles_sha256)
    """,
    # A path may have held several contents, and a file that was moved is known by its content.
    """
    ALTER TABLE outputs RENAME TO outputs_2;
    CREATE TABLE outputs (path BLOB NOT NULL, sha256 TEXT NOT NULL, UNIQUE (path, sha256));
    INSERT INTO outputs SELECT path, sha256 FROM outputs_2 ORDER BY rowid;
    DROP TABLE outputs_2;
    CREATE INDEX outputs_by_content ON outputs (sha256)
    """,
)
