"""Files from mirrors, checked before they are kept.

Nothing that a mirror sends is trusted: each file must have the digest that a signed index or a lock
promises. Packages go to a cache keyed by SHA-256, by way of a temporary file, fsync and rename,
so a file in the cache is whole. The standard library's HTTP client is enough: it knows the proxy
variables and the system's certificates, and this runs once per image.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from .archive import Package
from .errors import MirrorError, PackageGone
from .mirror import VARIABLE, Mirror
from .progress import Progress, nobody_watches

_TIMEOUT = 30.0
"""Seconds without a byte after which a mirror counts as dead."""

_PARALLEL = 6
_CHUNK = 1 << 16
_REPORT_SECONDS = 0.1


class _AbsentError(Exception):
    """A mirror answered, and does not have the file."""


_FAILURES = (_AbsentError, OSError, http.client.HTTPException)
"""What one mirror may do wrong before the next one is asked. urllib's errors are OSErrors."""


def fetch_bytes(sources: Sequence[Mirror], path: str, limit: int) -> bytes:
    """The content of `ARCHIVE/…` from the first mirror that has it, at most `limit` bytes.

    Raises:
        MirrorError: no mirror has it; PackageGone when each one said that there is no such file.
    """
    failures: list[Exception] = []
    for mirror in sources:
        url = mirror.url(path)
        if url is None:
            continue
        try:
            with _open(url) as response:
                data = response.read(limit + 1)
        except _FAILURES as error:
            failures.append(error)
            continue
        if len(data) <= limit:
            return data
        failures.append(OSError(f"more than {limit} bytes"))
    raise _failure(path, failures)


def fetch_packages(
    packages: Iterable[Package],
    cache: Path,
    sources: Callable[[], Sequence[Mirror]],
    progress: Progress = nobody_watches,
) -> dict[str, Path]:
    """Make every package present in `cache`; a map from package name to file.

    Nothing is asked of a mirror for what is there already (`sources` is not even called).

    Raises:
        PackageGone: the mirrors answer, but one of the packages is on none of them.
        MirrorError: no mirror could be reached.
    """
    files = {package.name: cache / f"{package.sha256}.deb" for package in packages}
    missing = [package for package in packages if not files[package.name].exists()]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        missing.sort(key=lambda package: package.size, reverse=True)
        _fetch_all(missing, cache, sources(), progress)
    return files


def _fetch_all(
    missing: Sequence[Package], cache: Path, sources: Sequence[Mirror], progress: Progress
) -> None:
    total = sum(package.size for package in missing)
    received: Counter[str] = Counter()
    with ThreadPoolExecutor(_PARALLEL) as pool:
        waiting: set[Future[None]] = {
            pool.submit(_fetch, package, cache, sources, received) for package in missing
        }
        try:
            while waiting:
                done, waiting = wait(waiting, _REPORT_SECONDS, FIRST_COMPLETED)
                for job in done:
                    job.result()
                progress("download", min(sum(received.copy().values()), total), total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(
    package: Package, cache: Path, sources: Sequence[Mirror], received: Counter[str]
) -> None:
    failures: list[Exception] = []
    for mirror in sources:
        url = mirror.url(package.path)
        if url is None:
            continue
        try:
            _download(url, package, cache, received)
        except _FAILURES as error:
            failures.append(error)
        else:
            return
    raise _failure(package.path, failures)


def _download(url: str, package: Package, cache: Path, received: Counter[str]) -> None:
    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(prefix=".download-", dir=cache)
    try:
        with os.fdopen(handle, "wb") as file, _open(url) as response:
            received[package.name] = 0
            while chunk := response.read(_CHUNK):
                received[package.name] += len(chunk)
                if received[package.name] > package.size:
                    break
                digest.update(chunk)
                file.write(chunk)
            if received[package.name] != package.size or digest.hexdigest() != package.sha256:
                raise OSError("size or SHA-256 is not what the lock promises")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(cache / f"{package.sha256}.deb")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _open(url: str) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "wherry"})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise _AbsentError from error
        raise OSError(f"HTTP {error.code}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, FileNotFoundError):
            raise _AbsentError from error
        raise OSError(str(error.reason)) from error
    return response


def _failure(path: str, failures: Sequence[Exception]) -> MirrorError:
    """What to tell when every mirror failed: a missing file counts for more than a dead mirror."""
    name = path.rpartition("/")[2]
    reasons = [str(failure) or type(failure).__name__ for failure in failures]
    others = [
        reason
        for reason, failure in zip(reasons, failures, strict=True)
        if not isinstance(failure, _AbsentError)
    ]
    remark = "; ".join(dict.fromkeys(others))
    if len(others) < len(failures):
        return PackageGone(f"no mirror has {name} any more" + (f" ({remark})" if remark else ""))
    return MirrorError(
        f"cannot download {name}: {remark or 'there is no mirror'}",
        hint=f"check the connection, or set {VARIABLE} to a Debian mirror",
    )
