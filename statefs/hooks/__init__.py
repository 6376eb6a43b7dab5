"""Application consistency: what is done for programs around a save, and how a copy is checked.

Blocking functions with deadlines; no FUSE and no engine. What touches the mount runs in a process
of its own (process.py): a daemon that opened files of its own mount could wait for itself.
"""
