"""The process that serves a mount: how it starts, what it wires together, how it ends."""
