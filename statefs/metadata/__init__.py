"""Names and attributes as rows of SQLite that know their lifetime."""
