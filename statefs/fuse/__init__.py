"""The kernel's door: handshake, request loop, handlers. The only place that knows pyfuse3."""
