"""A filesystem for application state: programs write as ever, every snapshot is a folder."""

__version__ = "0.1.0"
