from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from statefs.errors import NotInStore, StateDamaged, StatefsError, UsageError, WrongKey
from statefs.state import DocumentType, EncryptedJsonStore, JsonStore, Key, make_key_file
from statefs.state.copies import copies_of
from statefs.state.keyring import Keyring
from tests.harness.killed_calls import Acknowledge, each_kill

SECRET = "tok-5f3a91c7-very-secret"


class Credentials(msgspec.Struct, forbid_unknown_fields=True):
    """A typed document whose error messages could quote a value."""

    kind: Literal["api", "oauth"] = "api"
    token: str = ""


@pytest.fixture
def key(tmp_path: Path) -> Key:
    """A key in a file."""
    return make_key_file(tmp_path / "key")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a store will be."""
    return tmp_path / "credentials"


def other_key(seed: int = 1) -> Key:
    """Return another key, the same for each seed."""
    return Key(bytes([seed]) * 32, False, "a test")


def said_by(action: Callable[[], object]) -> str:
    """Return everything that an error that must come says: its traceback, causes and arguments."""
    with pytest.raises(StatefsError) as caught:
        action()
    errors: list[BaseException] = [caught.value]
    for error in errors:
        errors += [each for each in (error.__cause__, error.__context__) if each is not None]
    return "".join(
        f"{error!r}{vars(error)}{error.args}{getattr(error, 'object', '')}"
        f"{''.join(traceback.format_exception(error))}"
        for error in errors
    )


def test_what_was_set_comes_back_and_no_file_shows_it(folder: Path, key: Key) -> None:
    """Neither values nor keys, in documents, copies, the keyring or the audit log."""
    for number in range(2):
        with EncryptedJsonStore(folder, key) as store:
            store.set("credentials", "openai", {"token": SECRET, "number": number})
            store.set("credentials", "a/b", "x")
    with EncryptedJsonStore(folder, key) as store:
        store.rotate(other_key())
        assert store.get("credentials", "openai") == {"token": SECRET, "number": 1}
    with EncryptedJsonStore(folder, other_key(), read_only=True) as reader:
        assert reader.all("credentials") == {"openai": {"token": SECRET, "number": 1}, "a/b": "x"}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"credentials.json", "keyring", ".audit.log"}
    assert len(copies_of(folder / "credentials.json")) == 1
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content and b"openai" not in content, path
        assert base64.b64encode(SECRET.encode())[:20] not in content, path
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_rotation_takes_the_copies_of_removed_documents_along(folder: Path, key: Key) -> None:
    """Put back, they are opened by the new key."""
    for number in range(2):
        with EncryptedJsonStore(folder, key) as store:
            store.set("a/b", "token", number)
    with EncryptedJsonStore(folder, key) as store:
        path = next(each for each in folder.glob("*.json"))
        store.remove("a/b")
        store.rotate(other_key())
    for copy, value in zip(copies_of(path), (1, 0), strict=True):
        copy.rename(path)
        with EncryptedJsonStore(folder, other_key(), read_only=True) as store:
            assert store.all("a/b") == {"token": value}


def test_the_same_value_is_another_text_each_time(folder: Path, key: Key) -> None:
    """Nobody sees that a token is the old one again."""
    with EncryptedJsonStore(folder, key) as store:
        texts = set()
        for _ in range(3):
            store.save("credentials", {"a": SECRET})
            texts.add(json.loads((folder / "credentials.json").read_text())["encrypted"])
    assert len(texts) == 3


def test_another_key_opens_nothing(folder: Path, key: Key) -> None:
    """Of the same kind or another one; nothing is changed, and the right one still opens it."""
    with EncryptedJsonStore(folder, key) as store:
        store.set("credentials", "a", SECRET)
    for wrong in (other_key(), Key.from_passphrase("guess")):
        said = said_by(lambda wrong=wrong: EncryptedJsonStore(folder, wrong))  # type: ignore[misc]
        assert "WrongKey" in said and f"does not open {folder}/keyring" in said
        with pytest.raises(WrongKey):
            EncryptedJsonStore(folder, wrong, read_only=True)
    with EncryptedJsonStore(folder, key) as store:
        assert store.get("credentials", "a") == SECRET


def test_keys_come_from_a_file_the_environment_or_a_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes, base64 or hex; a passphrase has a salt of its own in each keyring."""
    secret = bytes(range(32))
    forms = [secret, base64.b64encode(secret) + b"\n", secret.hex().encode() + b"\n"]
    for form in forms:
        path = tmp_path / "key"
        path.write_bytes(form)
        path.chmod(0o600)
        assert Key.from_file(path).bytes_for(None) == secret
    monkeypatch.setenv("SHOP_KEY", secret.hex())
    assert Key.from_environment("SHOP_KEY").bytes_for(None) == secret
    salts = set()
    for name in ("one", "two"):
        with EncryptedJsonStore(tmp_path / name, Key.from_passphrase("korrekt pferd ü")) as store:
            store.set("credentials", "a", name)
        with EncryptedJsonStore(tmp_path / name, Key.from_passphrase("korrekt pferd ü")) as store:
            assert store.get("credentials", "a") == name
        salts.add(json.loads((tmp_path / name / "keyring").read_text())["scrypt"]["salt"])
    assert len(salts) == 2


def test_a_key_that_cannot_be_one_is_refused_without_being_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too short, unset, readable by others, a new one in the place of an old one."""
    path = tmp_path / "key"
    path.write_text(SECRET)
    path.chmod(0o640)
    assert "chmod 600" in said_by(lambda: Key.from_file(path))
    path.chmod(0o600)
    said = said_by(lambda: Key.from_file(path))
    assert "holds no key" in said and SECRET not in said
    monkeypatch.setenv("SHOP_KEY", SECRET)
    said = said_by(lambda: Key.from_environment("SHOP_KEY"))
    assert "SHOP_KEY holds no key" in said and SECRET not in said
    assert "NO_SUCH is not set" in said_by(lambda: Key.from_environment("NO_SUCH"))
    assert "already" in said_by(lambda: make_key_file(path))
    said = said_by(lambda: Key.from_passphrase(f"{SECRET}\udcff"))
    assert "passphrase" in said and SECRET not in said


def test_nothing_that_is_printed_logged_or_raised_has_a_secret(
    folder: Path, key: Key, caplog: pytest.LogCaptureFixture
) -> None:
    """The repr and str of all objects, the log of a whole life, errors with their causes."""
    caplog.set_level(logging.DEBUG)
    passphrase = Key.from_passphrase(SECRET)
    types = {"credentials": DocumentType(Credentials)}
    with EncryptedJsonStore(folder, passphrase, types) as store:
        store.save("credentials", {"token": SECRET})
        for change in (
            lambda: store.set("credentials", "kind", SECRET),
            lambda: store.set("credentials", "token", [SECRET]),
            lambda: store.set("credentials", "token", SECRET + "\udcff"),
            lambda: store.set("credentials", "token", {SECRET: object()}),
            lambda: store.set("other", "token", {SECRET: float("nan")}),
        ):
            assert SECRET not in said_by(change)
        assert SECRET not in f"{store!r}{store}{passphrase!r}{passphrase}{store._keyring!r}"
        for file_key in store._keyring.keys:
            assert repr(file_key) == f"<FileKey {file_key.id}>"
        store._opened = lambda *_: b'{"version": 1, "values": {"kind": "%s"}}' % SECRET.encode()  # type: ignore[method-assign]
        assert SECRET not in said_by(lambda: store.load("credentials"))
        store._opened = lambda *_: SECRET.encode() + b"\xff"  # type: ignore[method-assign]
        assert SECRET not in said_by(lambda: store.load("credentials"))
    assert SECRET not in caplog.text
    with pytest.raises(TypeError):
        pickle.dumps(passphrase)


def test_what_was_changed_or_moved_is_not_opened(folder: Path, key: Key) -> None:
    """One changed character, a file under another document's name, a plain file, no keyring."""
    with EncryptedJsonStore(folder, key) as store:
        store.set("credentials", "a", SECRET)
        store.set("tokens", "a", "x")
    path, other = folder / "credentials.json", folder / "tokens.json"
    file = json.loads(path.read_text())
    flipped = "A" if file["encrypted"][5] != "A" else "B"
    changed = {**file, "encrypted": file["encrypted"][:5] + flipped + file["encrypted"][6:]}
    plain = {"version": 1, "values": {"a": 1}}
    for broken in (changed, {**file, "nonce": ""}, {**file, "key": "00"}, plain,
                   json.loads(other.read_text())):  # fmt: skip
        path.write_text(json.dumps(broken))
        with EncryptedJsonStore(folder, key, read_only=True) as reader:
            with pytest.raises(StateDamaged, match=str(path)):
                reader.get("credentials", "a")
            assert reader.get("tokens", "a") == "x"
    with JsonStore(folder, read_only=True) as reader, pytest.raises(StateDamaged):
        reader.get("tokens", "a")
    keyring = (folder / "keyring").read_text()
    (folder / "keyring").unlink()
    with pytest.raises(StateDamaged, match="keyring is missing"):
        EncryptedJsonStore(folder, key)
    wrapped = {"id": "", "nonce": "", "wrapped": ""}
    for scrypt, wrapped_keys in (
        (None, []), (None, [{}]), ({"salt": "", "n": 1 << 30}, [wrapped]),
        ({"salt": "", "n": 3}, [wrapped]),
    ):  # fmt: skip
        broken_ring: dict[str, Any] = {"version": 1, "scrypt": scrypt, "keys": wrapped_keys}
        (folder / "keyring").write_text(json.dumps(broken_ring))
        with pytest.raises(StateDamaged, match="keyring"):
            EncryptedJsonStore(folder, key)
    (folder / "keyring").write_text(keyring)
    with pytest.raises(NotInStore):
        EncryptedJsonStore(folder / "new", key, read_only=True)


def test_a_reader_goes_on_after_a_change_of_keys_if_it_has_the_new_one(
    folder: Path, key: Key
) -> None:
    """One that has the old one is told so."""
    with EncryptedJsonStore(folder, key) as store:
        store.set("credentials", "a", 1)
        with (
            EncryptedJsonStore(folder, key, read_only=True) as old,
            EncryptedJsonStore(folder, key, read_only=True) as new,
        ):
            assert old.get("credentials", "a") == new.get("credentials", "a") == 1
            store.rotate(other_key())
            store.set("credentials", "a", 2)
            new._key = other_key()
            assert new.get("credentials", "a") == 2
            with pytest.raises(WrongKey):
                old.get("credentials", "a")


def test_a_broken_document_keeps_its_key_through_a_change_of_keys(
    folder: Path, key: Key, caplog: pytest.LogCaptureFixture
) -> None:
    """The others go over to the new key; put back, it is opened as before."""
    with EncryptedJsonStore(folder, key) as store:
        store.set("credentials", "a", 1)
        store.set("tokens", "a", 2)
    path = folder / "tokens.json"
    good = path.read_bytes()
    path.write_text("{")
    with caplog.at_level(logging.WARNING), EncryptedJsonStore(folder, key) as store:
        store.rotate(other_key())
        assert store.get("credentials", "a") == 1
    assert f"{path}, line 1" in caplog.text and "its key is kept" in caplog.text
    path.write_bytes(good)
    with EncryptedJsonStore(folder, other_key()) as store:
        assert (store.get("credentials", "a"), store.get("tokens", "a")) == (1, 2)
        assert len(store._keyring.keys) == 1


def test_the_example_of_credentials_works(tmp_path: Path) -> None:
    """It makes a key, keeps tokens, changes the key, and shows no token."""
    example = Path(__file__).parents[2] / "docs" / "examples" / "credentials.py"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(example), f"{tmp_path}/shop", f"{tmp_path}/key", *words]
        return subprocess.run(command, capture_output=True, text=True)

    assert run("openai", SECRET).stdout == "openai\n"
    first = (tmp_path / "key").read_bytes()
    assert run("--rotate").stdout == "openai\n"
    assert (tmp_path / "key").read_bytes() != first and not (tmp_path / "key.new").exists()
    with EncryptedJsonStore(tmp_path / "shop", Key.from_file(tmp_path / "key")) as store:
        assert store.get("credentials", "openai") == {"token": SECRET}
    (tmp_path / "key").write_bytes(first)
    refused = run()
    assert refused.returncode == 1 and refused.stderr.startswith("credentials: the key file ")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_of_a_rotation_leaves_a_store_that_one_key_opens(
    folder: Path, key: Key
) -> None:
    """The new one, if the rotation was acknowledged; then all of it is finished, copies too."""
    for number in range(2):
        with EncryptedJsonStore(folder, key) as store:
            store.set("credentials", "a", number)
            store.set("tokens", "a", number)
    keys = {False: key, True: other_key()}

    def work(acknowledge: Acknowledge) -> None:
        with EncryptedJsonStore(folder, keys[False]) as store:
            store.rotate(keys[True])
            acknowledge("rotated")

    seen = set()
    for killed in each_kill(work):
        opens = []
        for is_new in (True, False):
            try:
                opened = EncryptedJsonStore(folder, keys[is_new])
            except WrongKey:
                continue
            with opened as store:
                found = (store.get("credentials", "a"), store.get("tokens", "a"))
                assert found == (1, 1), killed
                [newest] = store._keyring.keys
            opens.append(is_new)
            for path in (*folder.glob("*.json"), *copies_of(folder / "tokens.json")):
                assert json.loads(path.read_text())["key"] == newest.id, (killed, path)
        assert len(opens) == 1 and (opens[0] or not killed.acknowledged), killed
        seen.add(opens[0])
        if opens[0]:
            keys = {False: keys[True], True: keys[False]}
    assert seen == {True, False}


def test_the_keyring_of_a_rotation_that_was_cut_short_is_finished_and_said(
    folder: Path, key: Key, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses in the midst closes the store; the next process finishes it."""
    with EncryptedJsonStore(folder, key) as store:
        store.set("credentials", "a", 1)
        with monkeypatch.context() as patch:

            def full(*_: Any) -> None:
                raise OSError(28, os.strerror(28))

            patch.setattr("statefs.state.encrypted_store.write_file", full)
            with pytest.raises(OSError, match="No space"):
                store.rotate(other_key())
        with pytest.raises(UsageError, match="closed"):
            store.get("credentials", "a")
    with caplog.at_level(logging.WARNING), EncryptedJsonStore(folder, other_key()) as store:
        assert "cut short is finished" in caplog.text
        assert store.get("credentials", "a") == 1
    assert len(Keyring.open(folder / "keyring", other_key()).keys) == 1
