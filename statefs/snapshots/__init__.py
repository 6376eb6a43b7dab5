"""The past: taking, naming, choosing and browsing snapshots, and the documents about them."""
