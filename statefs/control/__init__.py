"""How other processes talk to the daemon of a store: JSON lines over a Unix socket in the store."""
