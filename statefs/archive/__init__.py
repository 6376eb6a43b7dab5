"""Snapshots as tar archives: what `statefs export` writes and `statefs import` reads."""
