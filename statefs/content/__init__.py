"""Where file bytes lie: extents, object files, inline content."""
