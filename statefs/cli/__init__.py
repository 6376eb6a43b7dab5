"""The command line: parse, call, print. One file per command; no engine is imported to start.

A command finds out which state and store are meant (`target`), opens them through the daemon
that has the store or directly (`backend`), and prints a document or a table (`output`, `units`).
Nothing here knows how a store works inside.
"""

from statefs.cli.app import main

__all__ = ["main"]
