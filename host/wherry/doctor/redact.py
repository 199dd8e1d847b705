"""Text made fit to be shown to strangers: no secrets, no names of people. Pure.

What is secret is known by its place (a URL's user part, a header, the value of a field that is
called like one) or by its form (tokens with a prefix, JWTs, private keys). Too much is taken rather
than too little. `redact(redact(x)) == redact(x)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GONE = "***"

_SECRET_NAME = (
    r"[\w.-]*(?:pass(?:word|wd|phrase)?|secret|token|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|credential|signature|authorization|cookie|auths?|sig)s?"
)
_URL_USER = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#\"'<>]*@")
_QUERY = re.compile(rf"(?P<before>[?&;]{_SECRET_NAME}=)[^&;#\s\"'<>]*", re.IGNORECASE)
_HEADER = re.compile(
    r"(?P<before>\b(?:proxy-)?authorization\b[\"']?\s*[:=]\s*|\b(?:bearer|basic)\s+)"
    r"(?!\*\*\*)(?:(?:bearer|basic|token)\s+)?[^\s\"',;]+",
    re.IGNORECASE,
)
_FIELD = re.compile(
    rf"(?P<before>(?<![\w.-]){_SECRET_NAME}[\"']?\s*[:=]\s*)"
    r"(?P<value>\"(?:[^\"\\\n]|\\.)*\"?|'(?:[^'\n]|'')*'?|[^\s,;}\]\)\"'&]+)",
    re.IGNORECASE,
)
_OPTION = re.compile(
    rf"(?P<before>(?:^|\s)--?{_SECRET_NAME}\s+)(?![-*])[^\s]+", re.IGNORECASE | re.MULTILINE
)
_FORMS = (
    re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S
    ),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"),
    re.compile(
        r"\b(?:gh[pousr]_|github_pat_|glpat-|dckr_[a-z]+_|npm_|pypi-|xox[a-z]-|sk-)[\w-]{8,}"
    ),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
)
_HOME_OF_ANYBODY = re.compile(
    r"(?:/home/|/Users/|\b[A-Za-z]:[\\/]+Users[\\/]+)(?!Shared\b)[^\s/\\:\"']+"
)

_PASSED_VARIABLES = re.compile(
    r"(?:WHERRY_\w+|DOCKER_HOST|DOCKER_CONTEXT|DOCKER_CONFIG|(?:https?|all|no)_proxy|LANG|LC_\w+"
    r"|PATH|TERM|SHELL|TMPDIR|XDG_RUNTIME_DIR|CI|GITHUB_ACTIONS|RUNNER_(?:OS|ARCH)|SSL_CERT_\w+"
    r"|VIRTUAL_ENV|PROCESSOR_ARCHITECTURE|OS)",
    re.IGNORECASE,
)

_TOO_COMMON = frozenset({"root", "user", "admin", "ubuntu", "runner", "debian", "wherry"})
"""User names that are words: replacing them would make a text unreadable and hide nobody."""
_SHORTEST_NAME = 3


@dataclass(frozen=True, slots=True)
class Person:
    """Whose traces are removed.

    Attributes:
        user: login name. homes: home directories, replaced by `~`. host: this computer's name.
    """

    user: str = ""
    homes: tuple[str, ...] = ()
    host: str = ""


def redact(text: str, person: Person = Person()) -> str:
    """`text` without secrets and without the person's names."""
    for form in _FORMS:
        text = form.sub(GONE, text)
    text = redact_urls(text)
    text = _QUERY.sub(rf"\g<before>{GONE}", text)
    text = _HEADER.sub(rf"\g<before>{GONE}", text)
    text = _FIELD.sub(_without_value, text)
    text = _OPTION.sub(rf"\g<before>{GONE}", text)
    return _without_person(text, person)


def redact_urls(text: str) -> str:
    """`text` with the user parts of its URLs gone."""
    return _URL_USER.sub(rf"\g<scheme>{GONE}@", text)


def redact_environment(environ: Mapping[str, str], person: Person) -> dict[str, str]:
    """The variables that tell something about Wherry, without secrets; all others are left out."""
    return {
        name: GONE if re.fullmatch(_SECRET_NAME, name, re.IGNORECASE) else redact(value, person)
        for name, value in sorted(environ.items())
        if _PASSED_VARIABLES.fullmatch(name)
    }


def redact_argv(argv: Sequence[str], person: Person) -> list[str]:
    return [redact(word, person) for word in argv]


def _without_value(match: re.Match[str]) -> str:
    """The quotes stay, so that JSON stays JSON."""
    quote = match["value"][:1] if match["value"][:1] in "\"'" else ""
    return f"{match['before']}{quote}{GONE}{quote}"


def _without_person(text: str, person: Person) -> str:
    for home in sorted(person.homes, key=len, reverse=True):
        if len(home) > 1:
            for form in {home, home.replace("\\", "\\\\"), home.replace("\\", "/")}:
                text = re.sub(rf"{re.escape(form)}(?![\w-])", "~", text)
    text = _HOME_OF_ANYBODY.sub("~", text)
    for name, stand_in in ((person.user, "USER"), (person.host, "HOST")):
        if len(name) >= _SHORTEST_NAME and name.lower() not in _TOO_COMMON:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", stand_in, text)
    return text
