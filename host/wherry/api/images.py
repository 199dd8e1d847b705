"""Routes under /images, as far as pulling, listing and removing go."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from wherry.api import views
from wherry.api.http import Request, Response, Route, json_lines, json_response
from wherry.api.platforms import asked_platform
from wherry.api.progress import Message, Report, with_progress
from wherry.api.timefmt import parse_moment
from wherry.errors import InvalidInput, NotImplementedYet

if TYPE_CHECKING:
    from wherry.engine.engine import Engine
    from wherry.images.pull import PullEvent

_BAR_WIDTH = 50


async def pull(engine: Engine, request: Request) -> Response:
    """`POST /images/create` with `fromImage`; its route is in `archives`, beside import's."""
    name = request.text("fromImage")
    if not name:
        raise InvalidInput("fromImage is empty")
    if tag := request.text("tag"):
        name = f"{name}@{tag}" if tag.startswith("sha256:") else f"{name}:{tag}"
    auth = registry_auth(request.headers.get("x-registry-auth", ""))
    platform = request.text("platform") or None

    async def work(report: Report) -> Message | None:
        def event(pulled: PullEvent) -> None:
            report(progress_message(pulled))

        await engine.images.pull(
            name,
            platform=platform,
            auth=auth,
            progress=event,
            all_platforms=request.flag("allPlatforms"),
        )
        return None

    return json_lines(with_progress(work))


def registry_auth(header: str) -> dict[str, Any] | None:
    """`X-Registry-Auth`: base64url of {username, password, …} or {identitytoken}; None when empty.

    Raises:
        InvalidInput: not base64url of a JSON object.
    """
    data = decoded_header("X-Registry-Auth", header)
    return data if any(data.values()) else None


def decoded_header(name: str, value: str) -> dict[str, Any]:
    """A header that holds base64url of a JSON object; {} when it is empty.

    Raises:
        InvalidInput: it holds something else.
    """
    if not value:
        return {}
    try:
        data = json.loads(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)))
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{name} is not base64url-encoded JSON") from error
    if not isinstance(data, dict):
        raise InvalidInput(f"{name} must be a JSON object")
    return data


def progress_message(event: PullEvent) -> Message:
    """A pull's progress as Docker's clients draw it."""
    message: dict[str, Any] = {"status": event.status}
    if event.id:
        message["id"] = event.id
        message["progressDetail"] = {}
    if event.total:
        message["progressDetail"] = {"current": event.current, "total": event.total}
        message["progress"] = _bar(event.current, event.total)
    return message


def _bar(current: int, total: int) -> str:
    filled = min(_BAR_WIDTH, current * _BAR_WIDTH // total)
    bar = "=" * filled + (">" if filled < _BAR_WIDTH else "")
    return f"[{bar:<{_BAR_WIDTH}}]  {_size(current)}/{_size(total)}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g}{unit}"
        count /= 1000
    return f"{count:.4g}GB"


async def listing(engine: Engine, request: Request) -> Response:
    if request.flag("manifests"):
        raise NotImplementedYet("manifests is not implemented")
    images = await asyncio.to_thread(engine.images.list, request.filters(), parse_moment)
    used = Counter(container.image_id for container in engine.containers.list(all=True))
    shared = None
    if request.flag("shared-size"):
        shared = await engine.upkeep.shared_sizes()
    return json_response(
        [
            views.image_summary(
                image, used[image.id], -1 if shared is None else shared.get(image.id, 0)
            )
            for image in images
        ]
    )


async def inspect(engine: Engine, request: Request) -> Response:
    if request.flag("manifests"):
        raise NotImplementedYet("manifests is not implemented")
    image = await engine.images.resolve(request.args["name"], asked_platform(request))
    return json_response(views.image_inspect(image))


async def history(engine: Engine, request: Request) -> Response:
    image = await engine.images.resolve(request.args["name"], asked_platform(request))
    entries = engine.images.history(image)
    return json_response(
        [
            {
                "Id": entry.id,
                "Created": entry.created_ns // 1_000_000_000,
                "CreatedBy": entry.created_by,
                "Tags": list(image.tags) if index == 0 else None,
                "Size": entry.size,
                "Comment": entry.comment,
            }
            for index, entry in enumerate(entries)
        ]
    )


async def tag(engine: Engine, request: Request) -> Response:
    repository = request.text("repo")
    if not repository:
        raise InvalidInput("repo is empty")
    name = f"{repository}:{request.text('tag') or 'latest'}"
    await engine.images.tag(request.args["name"], name)
    return Response(201)


async def remove(engine: Engine, request: Request) -> Response:
    if request.query.get("platforms"):
        raise NotImplementedYet(
            "platforms is not implemented: an image is removed with its last name",
            hint="remove the one for a platform by its id",
        )
    removals = await engine.images.remove(request.args["name"], force=request.flag("force"))
    return json_response([removal.as_json() for removal in removals])


TABLE: list[Route] = [
    ("GET", "/images/json", listing),
    ("GET", "/images/{name:path}/json", inspect),
    ("GET", "/images/{name:path}/history", history),
    ("POST", "/images/{name:path}/tag", tag),
    ("DELETE", "/images/{name:path}", remove),
]
