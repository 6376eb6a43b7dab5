"""The living tree: a POSIX filesystem over metadata and content, without FUSE."""
