"""What is measured as a process of its own: `python -m tests.bench.child COMMAND ARGS`.

convert TAR OUT     a layer's tar to an EROFS image; prints its entries
pull HOME NAME      an image from a registry, until all its layers' files are there
push HOME NAME      an image to a registry
"""

from __future__ import annotations

import sys
from pathlib import Path

from wherry.images.auth import Credentials
from wherry.images.erofs import layer_uuid, write_erofs
from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings


def convert(tar: Path, out: Path) -> None:
    with tar.open("rb") as source, out.open("wb") as target:
        print(write_erofs(source, target, uuid=layer_uuid("").bytes).entries)


def pull(home: Home, name: str) -> None:
    store = ImageStore(home, Settings())
    try:
        image = store.pull(name, auth=Credentials())
        print(len(store.layer_files(image)))
    finally:
        store.close()


def push(home: Home, name: str) -> None:
    store = ImageStore(home, Settings())
    try:
        print(store.distribution.push(name, Credentials()).digest)
    finally:
        store.close()


if __name__ == "__main__":
    command, first, second = sys.argv[1:]
    if command == "convert":
        convert(Path(first), Path(second))
    elif command == "push":
        push(Home(Path(first)), second)
    else:
        pull(Home(Path(first)), second)
