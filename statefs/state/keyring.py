"""Encryption of documents: where the key comes from, and the file with the keys of the files.

Documents are encrypted with a file key, made at random. The `keyring` holds the file keys,
encrypted with the key that the caller has: a new one takes effect with one file that is replaced.
Knows no documents. Nothing here shows a key: not repr, not an error, not the log.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec

from statefs.durable import open_plain, write_file
from statefs.errors import StateDamaged, UsageError, WrongKey
from statefs.state.documents import Form, read_document, write_document

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEYRING: Final = "keyring"
"""The file; documents' files end in `.json`."""
KEY_BYTES: Final = 32
"""AES-256."""
NONCE_BYTES: Final = 12
"""Random for each encryption: good for 2^32 with one key. Source: NIST SP 800-38D, 8.3."""
SALT_BYTES: Final = 16
_ID_BYTES: Final = 8
_KEY_FILE_BYTES_MAX: Final = 4096
_OTHERS: Final = 0o077


class Scrypt(msgspec.Struct, forbid_unknown_fields=True):
    """How a passphrase becomes a key. Source: RFC 7914; 32 MiB and a tenth of a second."""

    salt: bytes
    n: int = 1 << 15
    r: int = 8
    p: int = 1


SCRYPT_BYTES_MAX: Final = 1 << 29
"""A keyring that asks for more is damaged, or made to exhaust who opens it."""


class WrappedKey(msgspec.Struct, forbid_unknown_fields=True):
    """A file key, encrypted with the caller's."""

    id: str
    nonce: bytes
    wrapped: bytes


class KeyringFile(msgspec.Struct, forbid_unknown_fields=True):
    """The file `keyring`: the first key encrypts, the others are about to go."""

    version: int
    scrypt: Scrypt | None
    keys: list[WrappedKey]


class Encrypted(msgspec.Struct, forbid_unknown_fields=True):
    """The file of an encrypted document."""

    version: int
    key: str
    nonce: bytes
    encrypted: bytes


KEYRING_FORM: Final = Form(KeyringFile)
ENCRYPTED_FORM: Final = Form(Encrypted)


class Key:
    """What the caller has: 32 bytes, or a passphrase. Made by one of the functions below.

    Args:
        secret: the bytes.
        is_passphrase: whether they have to go through scrypt.
        source: where they come from, for messages.
    """

    __slots__ = ("_secret", "is_passphrase", "source")

    def __init__(self, secret: bytes, is_passphrase: bool, source: str) -> None:
        self._secret = secret
        self.is_passphrase = is_passphrase
        self.source = source

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Return the key in a file: 32 bytes, or those as base64 or hexadecimal text.

        Raises:
            UsageError: it holds something else, or others may read it.
            OSError: it cannot be read.
        """
        what = f"the key file {path}"
        return cls(_key_bytes(read_secret(Path(path), what), what), False, what)

    @classmethod
    def from_environment(cls, variable: str) -> Self:
        """Return the key in an environment variable, as base64 or hexadecimal text.

        Raises:
            UsageError: it is not set, or holds something else.
        """
        text = os.environb.get(variable.encode())
        if text is None:
            raise UsageError(f"the environment variable {variable} is not set")
        what = f"the environment variable {variable}"
        return cls(_key_bytes(text, what), False, what)

    @classmethod
    def from_passphrase(cls, text: str) -> Self:
        """Return the key that scrypt makes of a passphrase.

        Raises:
            UsageError: it is empty, or no UTF-8.
        """
        secret = text.encode(errors="replace")
        if not text or secret.decode() != text:
            raise UsageError("the passphrase is empty, or not UTF-8")
        return cls(secret, True, "the passphrase")

    def bytes_for(self, scrypt: Scrypt | None) -> bytes | None:
        """Return the 32 bytes for a keyring; None where that was made with another kind of key."""
        if (scrypt is not None) != self.is_passphrase:
            return None
        if scrypt is None:
            return self._secret
        return hashlib.scrypt(
            self._secret,
            salt=scrypt.salt,
            n=scrypt.n,
            r=scrypt.r,
            p=scrypt.p,
            maxmem=2 * SCRYPT_BYTES_MAX,
            dklen=KEY_BYTES,
        )

    def __reduce__(self) -> str:
        """Refuse to be written anywhere."""
        raise TypeError("a key is not pickled")

    def __repr__(self) -> str:
        """Return where the key comes from, never the key."""
        return f"<Key from {self.source}>"


def make_key_file(path: str | os.PathLike[str]) -> Key:
    """Make a new key at random and keep it in a file of its own, as base64 text, durable.

    Raises:
        UsageError: there is such a file already.
    """
    place = Path(path)
    if place.exists():
        raise UsageError(f"there is a file {place} already; a new key would replace what it opens")
    write_file(place, base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
    return Key.from_file(place)


def read_secret(path: Path, what: str) -> bytes:
    """Return what is in a file that its owner alone may read, 4096 bytes of it at most.

    Args:
        path: of the file.
        what: it is, for the message.

    Raises:
        UsageError: others may read it.
        OSError: it cannot be read.
    """
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        if os.fstat(file.fileno()).st_mode & _OTHERS:
            raise UsageError(f"others may read {what}: 'chmod 600' it")
        return file.read(_KEY_FILE_BYTES_MAX)


class FileKey(NamedTuple):
    """A key for documents, ready to use.

    Args:
        id: of the key, which stands in each file that it has encrypted.
        secret: 32 bytes.
    """

    id: str
    secret: bytes

    def __repr__(self) -> str:
        """Return the id, never the key."""
        return f"<FileKey {self.id}>"


class Keyring:
    """The file keys of one folder, the one that encrypts first."""

    def __init__(self, path: Path, keys: list[FileKey]) -> None:
        self._path = path
        self.keys = keys

    @classmethod
    def open(cls, path: Path, key: Key) -> Self:
        """Return what is in a keyring.

        Raises:
            FileNotFoundError: there is none.
            WrongKey: it was made with another key.
            StateDamaged, NewerStore: it is broken, or too new.
        """
        file = read_document(path, KEYRING_FORM)
        _require_sane(path, file)
        secret = key.bytes_for(file.scrypt)
        keys = []
        for each in file.keys:
            plain = None
            if secret is not None:
                plain = _decrypted(secret, each.nonce, each.wrapped, _of_keyring(each.id))
            if plain is None:
                raise WrongKey(f"{key.source} does not open {path}")
            keys.append(FileKey(each.id, plain))
        return cls(path, keys)

    def write(self, key: Key) -> None:
        """Put this keyring, encrypted with a key, in place of the file; durable when it returns."""
        scrypt = Scrypt(os.urandom(SALT_BYTES)) if key.is_passphrase else None
        secret = key.bytes_for(scrypt)
        assert secret is not None
        wrapped = [
            WrappedKey(each.id, *encrypted(FileKey("", secret), each.secret, _of_keyring(each.id)))
            for each in self.keys
        ]
        write_document(self._path, KeyringFile(1, scrypt, wrapped))

    def key_of(self, id_: str) -> FileKey | None:
        """Return the file key of that id, None where there is none."""
        return next((each for each in self.keys if each.id == id_), None)

    def __repr__(self) -> str:
        """Return the file's path, never a key."""
        return f"<Keyring {self._path}>"


def new_file_key() -> FileKey:
    """Return a key made at random."""
    return FileKey(os.urandom(_ID_BYTES).hex(), os.urandom(KEY_BYTES))


def encrypted(key: FileKey, plain: bytes, about: bytes) -> tuple[bytes, bytes]:
    """Return (nonce, cipher text and tag) of `plain`.

    Args:
        key: of the file.
        plain: what nobody may read.
        about: what it belongs to; it is opened with the same only.
    """
    nonce = os.urandom(NONCE_BYTES)
    return nonce, _cipher(key.secret).encrypt(nonce, plain, about)


def decrypted(key: FileKey, nonce: bytes, data: bytes, about: bytes) -> bytes | None:
    """Return what was encrypted; None where key, data or `about` are not those."""
    return _decrypted(key.secret, nonce, data, about)


def _decrypted(secret: bytes, nonce: bytes, data: bytes, about: bytes) -> bytes | None:
    cipher = _cipher(secret)
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(nonce, data, about)
    except (InvalidTag, ValueError):  # ValueError: the nonce has an impossible length
        return None


def _cipher(secret: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise UsageError(
            "encrypted documents need the package cryptography: pip install 'statefs[credentials]'"
        ) from None
    return AESGCM(secret)


def _of_keyring(id_: str) -> bytes:
    return b"statefs keyring " + id_.encode()


def _require_sane(path: Path, file: KeyringFile) -> None:
    scrypt: Any = file.scrypt
    if not file.keys:
        raise StateDamaged(f"{path} holds no key")
    if scrypt is None:
        return
    is_power = scrypt.n > 1 and scrypt.n & (scrypt.n - 1) == 0
    is_sane = is_power and scrypt.r > 0 and 0 < scrypt.p <= KEY_BYTES
    if not is_sane or 128 * scrypt.n * scrypt.r > SCRYPT_BYTES_MAX:
        raise StateDamaged(f"{path} asks scrypt for what cannot be")


def _key_bytes(content: bytes, what: str) -> bytes:
    """Return the 32 bytes that a file or a variable holds."""
    text = content.strip()
    for found in (content, _decoded(text, bytes.fromhex), _decoded(text, _from_base64)):
        if found is not None and len(found) == KEY_BYTES:
            return found
    raise UsageError(f"{what} holds no key: {KEY_BYTES} bytes, as they are, in base64 or as hex")


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _decoded(text: bytes, decode: Callable[[str], bytes]) -> bytes | None:
    """Return what a text says; the error of one that says nothing would have it in it."""
    try:
        return decode(text.decode())
    except ValueError:
        return None
