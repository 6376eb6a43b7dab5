"""Stores for what programs keep in a folder: typed, locked, crash-safe, on any filesystem.

They need no mount and import nothing of the engine; in a mounted state they use its snapshots in
place of copies. docs/state-stores.md describes them and what they write.
"""

from statefs.state.encrypted_store import EncryptedJsonStore
from statefs.state.json_store import DocumentType, JsonStore
from statefs.state.keyring import Key, make_key_file

__all__ = ["DocumentType", "EncryptedJsonStore", "JsonStore", "Key", "make_key_file"]
