"""File locks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wherry.errors import StorageError
from wherry.osutil import LockHeld, lock_file
from wherry.osutil.files import disk_hint

_HOLDER = """
import sys
from pathlib import Path
from wherry.osutil import lock_file
with lock_file(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_in_the_same_process_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with lock_file(lock), pytest.raises(LockHeld) as caught, lock_file(lock, timeout=0):
        pass
    assert caught.value.holder == os.getpid()


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_file(tmp_path / "lock", timeout=0):
            pass


def test_a_waiter_gets_the_lock_when_the_holder_leaves(tmp_path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        with lock_file(tmp_path / "lock", timeout=10):
            order.append("waiter")

    thread = threading.Thread(target=wait)
    with lock_file(tmp_path / "lock"):
        thread.start()
        assert waiting.wait(10), "the thread did not start within 10 s"
        order.append("holder")
    thread.join(10)
    assert order == ["holder", "waiter"]


def test_a_lock_is_free_when_its_holder_was_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        with pytest.raises(LockHeld) as caught, lock_file(tmp_path / "lock", timeout=0):
            pass
        assert caught.value.holder == holder.pid
        holder.kill()
    with lock_file(tmp_path / "lock", timeout=5):
        pass


def test_a_lock_that_cannot_be_made_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "x.lock"
    with pytest.raises(StorageError, match="cannot lock") as caught, lock_file(path):
        pass
    assert str(path) in caught.value.message


def test_a_full_disk_does_not_keep_a_lock_from_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    path = tmp_path / "x.lock"
    with lock_file(path), pytest.raises(LockHeld, match="unknown"), lock_file(path, timeout=0):
        pass


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EROFS, "wherry doctor"),
        (errno.EACCES, "wherry doctor"),
        (errno.EIO, None),
    ],
)
def test_what_can_be_done_about_a_file_that_cannot_be_written(
    number: int, words: str | None
) -> None:
    hint = disk_hint(OSError(number, "x"))
    assert hint is None if words is None else words in str(hint)
