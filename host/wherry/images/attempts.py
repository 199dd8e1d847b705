"""Doing something with a registry until it works, or saying why it does not.

Rule: what breaks is tried again, within limits (`retry.py`); what cannot get better is said at
once. Every error names registry and repository, and the thing, and never holds a secret.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import urllib3

from wherry.errors import RegistryError, Unauthorized
from wherry.images.answers import Complaint
from wherry.images.auth import Credentials
from wherry.images.retry import Backoff, RetryPolicy
from wherry.images.session import RetryLater, Session
from wherry.images.transport import explain, is_hopeless

TRANSIENT = (urllib3.exceptions.HTTPError, OSError)

T = TypeVar("T")


class Stopped(Exception):
    """The transfer was told to stop; raised in the thread that transfers."""


class Attempts:
    """Retries and errors of one registry's client. Thread-safe.

    Args:
        stop: when set, waiting ends with `Stopped`.
    """

    def __init__(
        self,
        domain: str,
        credentials: Credentials,
        session: Session,
        policy: RetryPolicy,
        stop: threading.Event,
    ) -> None:
        self.stop = stop
        self._domain = domain
        self._credentials = credentials
        self._session = session
        self._policy = policy

    def backoff(self) -> Backoff:
        return Backoff(self._policy)

    def until_it_works(
        self, repository: str | None, what: str, action: Callable[[], T], backoff: Backoff
    ) -> T:
        """Call `action` until it raises nothing that may pass.

        Raises:
            RegistryError: it never worked. Stopped. Other errors of `action` pass through.
        """
        while True:
            try:
                return action()
            except (RetryLater, *TRANSIENT) as error:
                self.wait(error, repository, what, backoff)

    def retried(self, repository: str | None, what: str, action: Callable[[], T]) -> T:
        """`until_it_works` with a patience of its own."""
        return self.until_it_works(repository, what, action, self.backoff())

    def wait(self, error: Exception, repository: str | None, what: str, backoff: Backoff) -> None:
        """Pause after a failure; errors as `until_it_works`."""
        cause, after = explain(error), None
        if isinstance(error, RetryLater):
            cause, after = error.cause, error.after
        elif is_hopeless(error, self._session.reached):
            raise self.unreachable(repository, what, cause) from error
        pause = backoff.failed(after)
        if pause is None:
            raise self.unreachable(repository, what, cause) from error
        if self.stop.wait(pause):
            raise Stopped

    def unreachable(self, repository: str | None, what: str, cause: str) -> RegistryError:
        return RegistryError(
            self.message(repository, what, cause),
            hint="check the registry's name, the network and the proxy settings",
        )

    def refusal(
        self, complaint: Complaint, repository: str | None, what: str
    ) -> RegistryError | Unauthorized:
        """The error for an answer that a repetition would not change."""
        if complaint.status not in (401, 403):
            return RegistryError(self.message(repository, what, str(complaint)))
        if not self._credentials.is_anonymous:
            return Unauthorized(
                self.message(repository, what, f"access denied: {complaint}"),
                hint=f"does this login have access? wherry login {self._domain}",
            )
        return Unauthorized(
            self.message(
                repository,
                what,
                f"access denied, the repository does not exist or needs a login: {complaint}",
            ),
            hint=f"check the name, or log in: wherry login {self._domain}",
        )

    def message(self, repository: str | None, what: str, cause: str) -> str:
        """What went wrong, with its place in front."""
        place = [f"registry {self._domain}"]
        place += [f"repository {repository}"] if repository else []
        place += [what] if what else []
        return f"{', '.join(place)}: {self._credentials.redacted(cause)}"
