"""Names and ids of containers: made, checked, and found by what people type. Pure but for
randomness.
"""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Callable, Mapping
from typing import TypeVar

from wherry.errors import InvalidInput, NotFound

_VALID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
"""Docker's rule for container names."""

_HEX = re.compile(r"[0-9a-f]+")
_ATTEMPTS = 20

_T = TypeVar("_T")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_MOODS = _words(
    "able airy amber ample azure balmy beaming bold bonny breezy bright brisk buoyant calm candid "
    "cheery chipper clear clever cosy cozy crisp daring deft dewy eager early earnest easy fair "
    "fleet fond frank fresh gallant gentle gleaming glad golden grand hale handy happy hardy "
    "hearty honest humble jaunty jolly jovial keen kind lasting light limber lively loyal lucid "
    "lucky mellow merry mighty mild misty modest neat nimble noble patient peppy placid plucky "
    "polite proud quick quiet ready restful roaming roomy rosy rugged salty serene sharp shiny "
    "silver simple smooth snug sober solid spry stable steady stout stray sturdy sunny sure swift "
    "tidal tidy trim trusty upbeat valiant vivid warm wary windy wise witty worthy young zesty"
)

_BOATS = _words(
    "argosy barge bark barque bateau brig brigantine bugeye canoe caravel carrack catamaran "
    "clipper coaster coble cog coracle corvette currach cutter dhow dinghy dory dragger drifter "
    "dugout felucca ferry flatboat folkboat frigate galleon galley galliot gig gondola hooker hoy "
    "hulk jangada jolly junk kayak keelboat ketch knarr launch lighter longboat longship lugger "
    "monitor narrowboat nef outrigger packet pilot pinnace pirogue pontoon pram proa punt raft "
    "catboat sampan schooner scow scull shallop shell skerry skiff skipjack sloop smack snow "
    "steamer tanker tartane tender trawler trimaran trireme trow tug umiak waka whaler wherry "
    "xebec yacht yawl"
)


def new_id() -> str:
    """A new container's or exec's id: 64 hex digits."""
    return secrets.token_hex(32)


def random_name(taken: Callable[[str], bool], choose: random.Random | None = None) -> str:
    """A name such as `brisk_ketch` that is not taken; a number is appended when luck runs out."""
    source = choose or random.SystemRandom()
    for _ in range(_ATTEMPTS):
        name = f"{source.choice(_MOODS)}_{source.choice(_BOATS)}"
        if not taken(name):
            return name
    while True:
        numbered = f"{name}{source.randrange(10, 1_000_000)}"
        if not taken(numbered):
            return numbered


def checked_name(name: str) -> str:
    """`name` without Docker's leading slash. Raises InvalidInput when Docker would refuse it."""
    name = name.removeprefix("/")
    if not _VALID.fullmatch(name):
        raise InvalidInput(
            f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    return name


def find(ref: str, by_id: Mapping[str, _T], by_name: Mapping[str, str]) -> _T:
    """The container meant by `ref`: its full id, else its name, else a prefix of its id.

    Raises:
        NotFound: there is none.
        InvalidInput: the prefix fits several, or `ref` is empty.
    """
    ref = ref.removeprefix("/")
    if not ref:
        raise InvalidInput("a container's name or id must not be empty")
    if ref in by_id:
        return by_id[ref]
    if ref in by_name:
        return by_id[by_name[ref]]
    if _HEX.fullmatch(ref):
        matches = [id for id in by_id if id.startswith(ref)]
        if len(matches) > 1:
            raise InvalidInput(
                f"multiple IDs found with provided prefix: {ref}", hint="type more of the id"
            )
        if matches:
            return by_id[matches[0]]
    raise NotFound(f"No such container: {ref}", hint="list them: wherry ps --all")
