"""Checks of the network. None of them is a failure: what is stored does without.

Each asks once, with a short deadline, the way that pulls and builds would ask: through the proxies
of the environment.
"""

from __future__ import annotations

import email.utils
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from urllib.parse import urlsplit

from wherry.doctor.finding import Context, Finding, ok, skipped, warn
from wherry.doctor.redact import redact_urls
from wherry.images.reach import DOCKER_HUB_HOST
from wherry_image import VmImageError
from wherry_image.mirror import mirrors

_SECONDS = 4.0
_SKEW_SECONDS = 300.0
"""Certificates and signed indices are valid for days, but tokens of registries for minutes."""

_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
_DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080, "socks4": 1080}


def proxies(context: Context) -> Iterator[Finding]:
    """Are the proxies of the environment URLs, and does somebody listen there?"""
    found = proxy_settings(context.environ)
    if not found:
        yield ok("proxy", "none is set")
        return
    for name, url in found.items():
        shown = redact_urls(url)
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
        except ValueError:
            host, port = None, None
        if not host or port is None:
            yield warn("proxy", f"{name} is no URL of a proxy: {shown}", f"correct {name}")
            continue
        try:
            socket.create_connection((host, port), timeout=_SECONDS).close()
        except OSError as error:
            why = error.strerror or error
            yield warn("proxy", f"{name}={shown} cannot be reached: {why}", f"correct {name}")
        else:
            yield ok("proxy", f"{name}={shown} answers")


def proxy_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Variable to URL; both spellings are known, as in curl and Python."""
    lowered = {name.lower(): (name, value) for name, value in sorted(environ.items()) if value}
    return dict(lowered[name] for name in _PROXY_VARIABLES if name in lowered)


def names(context: Context) -> Iterator[Finding]:
    """Name resolution of the hosts that pulls and builds need."""
    if proxy_settings(context.environ):
        yield skipped("dns", "the proxy resolves names")
        return
    hosts = dict.fromkeys([DOCKER_HUB_HOST, *_mirror_hosts(context)])
    failed = []
    for host in hosts:
        try:
            socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
        except OSError as error:
            failed.append(f"{host} ({error.strerror or error})")
    if failed:
        advice = "check the connection and the name servers; a VPN may have its own"
        yield warn("dns", f"not resolved: {', '.join(failed)}", advice)
    else:
        yield ok("dns", f"{', '.join(hosts)} are resolved")


def mirror(context: Context) -> Iterator[Finding]:
    """The package mirrors in their order; one that answers is enough."""
    try:
        sources = mirrors(context.settings.debian_mirror, datetime.now(UTC), context.environ)
    except VmImageError as error:
        yield warn("mirror", error.message, error.hint or "")
        return
    problems = []
    for source in sources:
        url = source.url("debian/dists/")
        if url is None or urlsplit(url).scheme == "file":
            continue
        answer = ask(url)
        if isinstance(answer, str):
            problems.append(f"{redact_urls(url)}: {answer}")
            continue
        yield ok("mirror", f"{redact_urls(url)} answers")
        yield from _clock(answer)
        return
    if problems:
        yield warn(
            "mirror",
            "; ".join(problems),
            "VM images that are built already do not need it; else check the proxy, or set "
            "WHERRY_DEBIAN_MIRROR",
        )


def registry(context: Context) -> Iterator[Finding]:
    """The registry that names without a host mean, or what mirrors it."""
    configured = dict(context.settings.registry_mirrors).get("docker.io", ())
    base = configured[0].rstrip("/") if configured else f"https://{DOCKER_HUB_HOST}"
    answer = ask(f"{base}/v2/")
    if isinstance(answer, str):
        advice = "check the proxy (HTTPS_PROXY) and registry_mirrors in config.yml"
        yield warn("registry", f"{redact_urls(base)}: {answer}", advice)
        return
    yield ok("registry", f"{redact_urls(base)} answers")


def ask(url: str) -> Mapping[str, str] | str:
    """The headers of the answer, whatever its status; a reason in words when there is none."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
            return dict(reply.headers.items())
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= 500:
                return f"it answers with status {error.code}"
            return dict(error.headers.items())
    except urllib.error.URLError as error:
        return _words(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _words(error)


def _words(error: object) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted here: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"no answer within {_SECONDS:g} s"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _clock(headers: Mapping[str, str]) -> Iterator[Finding]:
    """A server's clock beside ours."""
    skew = clock_skew(headers, time.time())
    if skew is None:
        return
    if abs(skew) > _SKEW_SECONDS:
        side = "behind" if skew > 0 else "ahead"
        yield warn(
            "clock",
            f"this computer's clock is {abs(skew) / 60:.0f} minutes {side}: certificates and "
            "signatures are then refused",
            "turn automatic time on",
        )
    else:
        yield ok("clock", f"right within {max(abs(skew), 1):.0f} s")


def clock_skew(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server's Date is ahead of `now`; None when it tells none."""
    date = next((value for name, value in headers.items() if name.lower() == "date"), None)
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() - now if date else None
    except (ValueError, TypeError):
        return None


def _mirror_hosts(context: Context) -> list[str]:
    try:
        sources = mirrors(context.settings.debian_mirror, datetime.now(UTC), context.environ)
    except VmImageError:
        return []  # the check of the mirror tells
    urls = [urlsplit(url).hostname for it in sources if (url := it.url("debian/"))]
    return [host for host in urls if host]
