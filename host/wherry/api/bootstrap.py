"""The route of `wherry image bootstrap`, which Docker has nothing for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wherry.api import views
from wherry.api.http import Request, Response, Route, json_lines
from wherry.api.progress import Message, Report, with_progress
from wherry.build.bootstrap import parse_recipe
from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.engine.engine import Engine

_FIELDS: dict[str, type] = {
    "distribution": str,
    "name": str,
    "architecture": str,
    "include": list,
    "slim": bool,
    "refresh": bool,
    "lock": str,
}


async def create(engine: Engine, request: Request) -> Response:
    """JSON lines: {"phase", "done", "total"}, …, then {"image", "lock", "notices"}."""
    body = _checked(request.json())
    recipe = parse_recipe(
        body.get("distribution") or "debian",
        body.get("architecture") or engine.emulation.native.architecture,
        body.get("include") or (),
        slim=bool(body.get("slim")),
    )

    async def work(report: Report) -> Message:
        def progress(phase: str, done: int, total: int) -> None:
            report({"phase": phase, "done": done, "total": total})

        made = await engine.bootstrapper.bootstrap(
            recipe,
            body.get("name") or None,
            progress,
            lock=body.get("lock") or None,
            refresh=bool(body.get("refresh")),
        )
        image = views.image_inspect(made.image)
        return {"image": {"Image": image, "Lock": made.lock, "Notices": list(made.notices)}}

    return json_lines(with_progress(work))


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    """Raises InvalidInput for a field that is not known or not of its type."""
    for name, value in body.items():
        if name not in _FIELDS:
            raise InvalidInput(f"{name} is not a field of this request")
        if value is not None and not isinstance(value, _FIELDS[name]):
            raise InvalidInput(f"{name} must be of type {_FIELDS[name].__name__}")
    if not all(isinstance(item, str) for item in body.get("include") or ()):
        raise InvalidInput("include must be a list of names")
    return body


TABLE: list[Route] = [("POST", "/wherry/v1/images/bootstrap", create)]
