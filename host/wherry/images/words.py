"""Words of a Dockerfile instruction: split at white space, quotes and `$NAME` resolved. Pure.

Dockerfile reference, "Environment replacement": `$NAME`, `${NAME}`, `${NAME:-word}`,
`${NAME:+word}` and the same without the colon; not in single quotes; a backslash escapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NESTING_MAX = 20


def split_words(text: str) -> list[str]:
    """Words between white space; quotes keep what they enclose together and stay in the word."""
    words: list[str] = []
    word = ""
    quote = ""
    position = 0
    while position < len(text):
        sign = text[position]
        if sign == "\\" and quote != "'" and position + 1 < len(text):
            word += text[position : position + 2]
            position += 2
            continue
        if quote:
            quote = "" if sign == quote else quote
            word += sign
        elif sign.isspace():
            if word:
                words.append(word)
            word = ""
        else:
            quote = sign if sign in "\"'" else ""
            word += sign
        position += 1
    if quote:
        raise ValueError(f"a {quote} is not closed")
    return [*words, word] if word else words


def expand(word: str, variables: Mapping[str, str]) -> str:
    """The word without its quotes and escapes, variables replaced; unknown ones are empty.

    Raises:
        ValueError: a quote or brace is not closed, or a modifier is not known.
    """
    return _Expander(word, variables, 0).run("")


class _Expander:
    def __init__(self, text: str, variables: Mapping[str, str], depth: int) -> None:
        self._text = text
        self._variables = variables
        self._depth = depth
        self._at = 0

    def run(self, until: str) -> str:
        """Up to the sign `until`, which is taken too, or the end."""
        result: list[str] = []
        quoted = False
        text = self._text
        while self._at < len(text):
            sign = text[self._at]
            if sign == until and not quoted:
                self._at += 1
                return "".join(result)
            self._at += 1
            if sign == "'" and not quoted:
                end = text.find("'", self._at)
                if end < 0:
                    raise ValueError("a ' is not closed")
                result.append(text[self._at : end])
                self._at = end + 1
            elif sign == '"':
                quoted = not quoted
            elif sign == "\\" and self._at < len(text):
                result.append(self._escaped(quoted))
            elif sign == "$":
                result.append(self._variable())
            else:
                result.append(sign)
        if quoted:
            raise ValueError('a " is not closed')
        if until:
            raise ValueError(f"a {until} is missing")
        return "".join(result)

    def _escaped(self, quoted: bool) -> str:
        sign = self._text[self._at]
        self._at += 1
        # In double quotes a backslash stands for itself before ordinary signs.
        return sign if not quoted or sign in '"$\\' else f"\\{sign}"

    def _variable(self) -> str:
        text = self._text
        if text.startswith("{", self._at):
            self._at += 1
            return self._braced()
        match = _NAME.match(text, self._at)
        if match is None:
            return "$"
        self._at = match.end()
        return self._variables.get(match[0], "")

    def _braced(self) -> str:
        text = self._text
        match = _NAME.match(text, self._at)
        if match is None:
            raise ValueError("${ must be followed by a variable's name")
        name = match[0]
        self._at = match.end()
        if text.startswith("}", self._at):
            self._at += 1
            return self._variables.get(name, "")
        colon = text.startswith(":", self._at)
        self._at += colon
        modifier = text[self._at : self._at + 1]
        if modifier not in ("-", "+", "?"):
            raise ValueError(f"${{{name}… has an unknown modifier")
        self._at += 1
        if self._depth >= _NESTING_MAX:
            raise ValueError("variables are nested too deeply")
        self._depth += 1
        word = self.run("}")
        self._depth -= 1
        value = self._variables.get(name)
        is_set = bool(value) if colon else value is not None
        if modifier == "+":
            return word if is_set else ""
        if modifier == "?" and not is_set:
            raise ValueError(f"{name} is not set: {word or 'it must be'}")
        return (value or "") if is_set else word
