"""Care for a store as a whole: opening, recovery, verify, gc, migrations."""
