"""One HTTP request over urllib3: TLS with the system's trust store, the user's proxies, timeouts.

Only this, `session.py` and `registry.py` know urllib3. No retries and no redirects happen here.
"""

from __future__ import annotations

import ipaddress
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import truststore
import urllib3

from wherry import __version__
from wherry.errors import InvalidInput
from wherry.images.trust import Trust

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""A connection on which nothing arrives for so long is broken."""

COMMIT_SECONDS = 120.0
"""How long a registry may take to put an upload into its place: it may have to copy it."""

USER_AGENT = f"wherry/{__version__}"
_POOL_SIZE = 16

Body = bytes | Callable[[], Iterable[bytes]]
"""A request's body; a function, when it is long: called for each time that it is sent. Its pieces
must be small: each has to get through within `CONNECT_SECONDS`."""


class Transport:
    """Sends requests; connections are kept and shared by all threads.

    Args:
        trust: private CAs, by host.
    """

    def __init__(
        self,
        *,
        trust: Trust | None = None,
        connect_seconds: float = CONNECT_SECONDS,
        read_seconds: float = READ_SECONDS,
        commit_seconds: float = COMMIT_SECONDS,
    ) -> None:
        self.trust = trust or Trust()
        self._timeout = urllib3.Timeout(connect=connect_seconds, read=read_seconds)
        self._patience = urllib3.Timeout(connect=connect_seconds, read=commit_seconds)
        self._managers: dict[_Way, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        form: Mapping[str, str] | None = None,
        body: Body | None = None,
        verify: bool = True,
        patient: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """Send one request; the body of the answer is not read yet. Close the answer.

        Args:
            form: the body is this form.
            body: its length stands in `headers` when it is a function.
            patient: the answer may take `COMMIT_SECONDS`.

        Raises:
            urllib3.exceptions.HTTPError, OSError: no answer came.
        """
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        if form is not None:
            body = urllib.parse.urlencode(form).encode()
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        return self._manager(url, verify).request(
            method,
            url,
            headers=sent,
            body=body() if callable(body) else body,
            redirect=False,
            retries=False,
            preload_content=False,
            timeout=self._patience if patient else self._timeout,
        )

    def close(self) -> None:
        with self._lock:
            for manager in self._managers.values():
                manager.clear()
            self._managers.clear()

    def _manager(self, url: str, verify: bool) -> urllib3.PoolManager:
        https = url.startswith("https:")
        netloc = urllib.parse.urlsplit(url).netloc
        authorities = self.trust.authorities(netloc) if https and verify else ()
        key = (proxy_for(url), https, verify, authorities)
        with self._lock:
            if key not in self._managers:
                self._managers[key] = _new_manager(*key)
            return self._managers[key]


def proxy_for(url: str) -> str | None:
    """The user's proxy for a URL (environment, macOS and Windows settings); none for loopback."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address (without a port) is certainly this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def explain(error: BaseException) -> str:
    """The root cause of a connection's failure, in few words."""
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return f"the name {error.conn.host} cannot be resolved"
    never_connected = isinstance(error, urllib3.exceptions.NewConnectionError)
    if isinstance(error, urllib3.exceptions.TimeoutError) and not never_connected:
        return "no answer in time"
    root = error
    while inner := root.__cause__ or getattr(root, "reason", None) or root.__context__:
        if not isinstance(inner, BaseException):
            break
        root = inner
    if isinstance(root, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {root.verify_message}"
    if isinstance(root, urllib3.exceptions.IncompleteRead):
        return "the connection broke off"
    if isinstance(root, OSError) and root.strerror:
        return root.strerror[:1].lower() + root.strerror[1:]
    return str(root) or type(root).__name__


def is_hopeless(error: BaseException, reached: bool) -> bool:
    """Whether trying again is pointless: a certificate that is not trusted, or a host that does
    not exist or listen and never did (`reached`: it has answered before)."""
    if isinstance(error, urllib3.exceptions.SSLError):
        return isinstance(error.__cause__ or error.args[0], ssl.SSLCertVerificationError)
    return isinstance(error, urllib3.exceptions.NewConnectionError) and not reached


_Way = tuple[str | None, bool, bool, tuple[Path, ...]]
"""Proxy, HTTPS, whether certificates are checked, private CAs: what a connection's TLS is about."""


def _new_manager(
    proxy: str | None, https: bool, verify: bool, authorities: tuple[Path, ...]
) -> urllib3.PoolManager:
    to_proxy = (proxy or "").startswith("https:")
    context = _tls(verify, authorities) if https or to_proxy else None
    if proxy is None:
        return urllib3.PoolManager(maxsize=_POOL_SIZE, ssl_context=context)
    parts = urllib.parse.urlsplit(proxy)
    headers = None
    if parts.username is not None:
        user = urllib.parse.unquote(parts.username)
        password = urllib.parse.unquote(parts.password or "")
        headers = urllib3.make_headers(proxy_basic_auth=f"{user}:{password}")
    return urllib3.ProxyManager(
        proxy, maxsize=_POOL_SIZE, ssl_context=context, proxy_headers=headers
    )


def _tls(verify: bool, authorities: tuple[Path, ...]) -> ssl.SSLContext:
    """Reading the trust store takes 40 ms, so this is for connections that need it."""
    if verify:
        trusting = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for path in authorities:
            try:
                _trust_file(trusting, path)
            except (OSError, ValueError) as error:  # ssl.SSLError, too
                raise InvalidInput(
                    f"{path} is no certificate in PEM or DER form: {error}",
                    hint="on macOS: security find-certificate -a -p -c NAME > FILE",
                ) from error
        return trusting
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _trust_file(context: ssl.SSLContext, path: Path) -> None:
    """PEM, which may hold several, is what `security find-certificate -p` and most servers' tools
    write; DER what Keychain Access and Windows export as `.cer`."""
    data = path.read_bytes()
    context.load_verify_locations(
        cadata=data.decode("ascii", errors="ignore") if b"-----BEGIN" in data else data
    )
