"""A program that deploys buckets and queues, each of them once, whatever ended it before.

python deploy.py FOLDER PROJECT REGION                      list what is deployed
python deploy.py FOLDER PROJECT REGION bucket.images ...    deploy these
python deploy.py FOLDER PROJECT REGION --unlock             after a crash on another machine

The provider is a folder, CLOUD in the environment, with an empty file for each resource.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from statefs.errors import StatefsError
from statefs.state import DeployState, Found, Target

CLOUD = Path(os.environ.get("CLOUD", "cloud"))


def lookup(urn: str) -> Found | None:
    """Find a resource by the URN that it was tagged with."""
    return Found(f"id-of-{urn}") if (CLOUD / urn).exists() else None


def create(urn: str) -> Found:
    """Make a resource, tagged with its URN; refuse one that is there."""
    (CLOUD / urn).touch(exist_ok=False)
    return Found(f"id-of-{urn}", {"made_by": "deploy.py"})


def main(folder: str, project: str, region: str, *wanted: str) -> None:
    """Deploy what is wanted, and list all that is deployed."""
    CLOUD.mkdir(exist_ok=True)
    state = DeployState(folder, project, Target("cloud", region))
    if wanted == ("--unlock",):
        state.force_unlock()
    elif wanted:
        with state.lock("deploy", f"{len(wanted)} resources"):
            for each in wanted:
                type_, _, name = each.partition(".")
                state.ensure(state.urn(type_, name), lookup, create)
            script = f"#!/bin/sh\necho traffic goes to {region}\n"
            state.keep_artefact("cutover", "sh", script.encode())
    for resource in state.list():
        how = "adopted" if resource.adopted else "made"
        sys.stdout.write(f"{resource.urn}: {resource.id}, {how}\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except StatefsError as error:
        sys.exit(f"deploy: {error}")
