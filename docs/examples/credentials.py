"""A program that keeps tokens encrypted, with a key in a file outside of the folder.

python credentials.py FOLDER KEYFILE                   list the services
python credentials.py FOLDER KEYFILE openai TOKEN      keep a token
python credentials.py FOLDER KEYFILE --rotate          make a new key and encrypt anew
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from statefs.errors import StatefsError
from statefs.state import EncryptedJsonStore, Key, make_key_file


def main(folder: str, key_file: str, service: str | None = None, token: str = "") -> None:
    """Keep a token or change the key, and list the services that have a token."""
    path = Path(key_file)
    key = Key.from_file(path) if path.exists() else make_key_file(path)
    with EncryptedJsonStore(folder, key) as store:
        if service == "--rotate":
            # Both keys are there until the new one has taken over: whichever moment a crash
            # picks, one of the two files opens the store.
            new_path = path.with_name(f"{path.name}.new")
            store.rotate(make_key_file(new_path))
            os.replace(new_path, path)
        elif service is not None:
            store.set("credentials", service, {"token": token})
        sys.stdout.write("".join(f"{name}\n" for name in store.all("credentials")))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except StatefsError as error:
        sys.exit(f"credentials: {error}")
