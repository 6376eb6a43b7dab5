"""Documents that nobody can read without the key: credentials, tokens.

The same store as `JsonStore`, whose files are encrypted with AES-256-GCM. Owns what stands in the
files and the change of keys; where keys come from is in `keyring`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from statefs.clock import Clock
from statefs.durable import write_file
from statefs.errors import NotInStore, StateDamaged
from statefs.state.audit import AuditLog
from statefs.state.copies import all_copies
from statefs.state.documents import current_text, decoded, read_bytes
from statefs.state.identifiers import name_of_file
from statefs.state.json_store import AUDIT, SUFFIX, DocumentType, JsonStore
from statefs.state.keyring import (
    ENCRYPTED_FORM,
    KEYRING,
    Encrypted,
    FileKey,
    Key,
    Keyring,
    decrypted,
    encrypted,
    new_file_key,
)

ROTATION: Final = "rotate-key"
"""In the audit log."""

_log = logging.getLogger(__name__)


class EncryptedJsonStore(JsonStore):
    """A `JsonStore` whose files are encrypted; values are plain in memory alone.

    Args:
        folder: made, with mode 0700, where there is none. It holds nothing but encrypted documents.
        key: made by `Key.from_file`, `from_environment` or `from_passphrase`.
        types: as for `JsonStore`.
        read_only: change nothing and take no lock.
        clock: for the names of copies.

    Raises:
        WrongKey: the folder was made with another key.
        StoreLocked, NotInStore: as for `JsonStore`.
        StateDamaged: the keyring is broken, or is missing where there are documents.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        key: Key,
        types: Mapping[str, DocumentType] | None = None,
        *,
        read_only: bool = False,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(folder, types, read_only=read_only, clock=clock)
        self._key = key
        try:
            self._keyring = self._opened_keyring()
            if len(self._keyring.keys) > 1 and not read_only:
                _log.warning("%s: a change of keys that was cut short is finished", self.folder)
                self._encrypt_anew()
        except BaseException:
            self.close()
            raise

    def rotate(self, key: Key) -> None:
        """Have everything opened by another key, and encrypt it anew; copies as well.

        From the one write on that replaces the keyring, the new key opens the store, the old one
        does not; who opens it after a crash finishes the rest. Snapshots keep what they have, under
        the old key.

        Raises:
            OSError: the disk refused; the store's key is the old one or the new one, and the store
                is closed.
        """
        with self._mutex:
            self._require_writable()
            path = self.folder / KEYRING
            try:
                with AuditLog(self.folder / AUDIT, self._clock) as audit, audit.action(ROTATION):
                    keyring = Keyring(path, [new_file_key(), *self._keyring.keys])
                    keyring.write(key)
                    self._key, self._keyring = key, keyring
                    self._encrypt_anew()
            except BaseException:
                self.close()
                raise

    def _opened_keyring(self) -> Keyring:
        path = self.folder / KEYRING
        try:
            return Keyring.open(path, self._key)
        except FileNotFoundError:
            pass
        if self.names():
            raise StateDamaged(f"{path} is missing, without which nothing here can be opened")
        if self._lock is None:
            raise NotInStore(f"{self.folder} holds no encrypted documents")
        keyring = Keyring(path, [new_file_key()])
        keyring.write(self._key)
        return keyring

    def _encrypt_anew(self) -> None:
        """Encrypt with the first key what another one has encrypted, then forget the others.

        A file that is broken is left as it is, and its key is kept: `check` names it.
        """
        newest, kept = self._keyring.keys[0], set[str]()
        for document, path in self._files():
            try:
                file = _parsed_file(path, read_bytes(path))
                if file.key == newest.id:
                    continue
                plain = self._decrypted(document, path, file)
            except StateDamaged as error:
                _log.warning("%s; its key is kept", error)
                kept.update(each.id for each in self._keyring.keys)
                continue
            write_file(path, _encrypted_file(newest, document, plain))
        keys = [each for each in self._keyring.keys if each is newest or each.id in kept]
        self._keyring = Keyring(self.folder / KEYRING, keys)
        self._keyring.write(self._key)
        self._documents.clear()

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Return (document, file) of all documents and copies, those of removed documents, too."""
        for document in self.names():
            yield document, self._path(document)
        for stem, copies in all_copies(self.folder, SUFFIX).items():
            named = name_of_file(stem + SUFFIX, SUFFIX)
            for copy in copies if named is not None else ():
                yield str(named), copy

    def _sealed(self, document: str, data: bytes) -> bytes:
        return _encrypted_file(self._keyring.keys[0], document, data)

    def _opened(self, document: str, path: Path, data: bytes) -> bytes:
        file = _parsed_file(path, data)
        if self._keyring.key_of(file.key) is None:  # another process has changed the keys
            self._keyring = Keyring.open(self.folder / KEYRING, self._key)
        return self._decrypted(document, path, file)

    def _decrypted(self, document: str, path: Path, file: Encrypted) -> bytes:
        key = self._keyring.key_of(file.key)
        if key is None:
            raise StateDamaged(f"{path} was encrypted with the key {file.key}, which is not there")
        plain = decrypted(key, file.nonce, file.encrypted, _about(document))
        if plain is None:
            raise StateDamaged(f"{path}: it was changed, or is of another document")
        return plain


def _parsed_file(path: Path, data: bytes) -> Encrypted:
    text = current_text(data, path, ENCRYPTED_FORM).text
    return decoded(text, path, ENCRYPTED_FORM.type)


def _encrypted_file(key: FileKey, document: str, plain: bytes) -> bytes:
    file = Encrypted(1, key.id, *encrypted(key, plain, _about(document)))
    return msgspec.json.encode(file) + b"\n"


def _about(document: str) -> bytes:
    """Return what binds the content to its document: a file under another name is not opened."""
    return b"statefs document " + document.encode()
