"""Routes of upkeep: prune, system df; and ours: tag logs, verification, what is in images."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from wherry.api import views
from wherry.api.http import Request, Response, Route, json_lines, json_response
from wherry.api.images import progress_message
from wherry.api.progress import Message, Report, with_progress
from wherry.api.timefmt import parse_moment, rfc3339
from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.engine.engine import Engine
    from wherry.images.progress import PullEvent
    from wherry.images.pruning import Pruned

_TYPES = ("container", "image", "volume", "build-cache")


async def prune(engine: Engine, request: Request) -> Response:
    pruned = await engine.upkeep.prune(request.filters(), parse_moment)
    engine.trims.soon()
    return json_response(_pruned(pruned))


async def prune_blobs(engine: Engine, _request: Request) -> Response:
    """As `/images/prune` answers; only blobs that can be fetched again go."""
    return json_response(_pruned(await engine.upkeep.prune_blobs()))


def _pruned(pruned: Pruned) -> dict[str, Any]:
    removals = [removal.as_json() for removal in pruned.removals]
    return {"ImagesDeleted": removals or None, "SpaceReclaimed": pruned.bytes}


async def disk_usage(engine: Engine, request: Request) -> Response:
    """Docker's DataUsage. `type` may stand several times; none: all."""
    wanted = request.query.get("type") or list(_TYPES)
    for name in wanted:
        if name not in _TYPES:
            raise InvalidInput(f"unknown object type: {name}", hint=f"known: {', '.join(_TYPES)}")
    answer: dict[str, Any] = {}
    containers = engine.containers.list(all=True)
    if "image" in wanted:
        images = await asyncio.to_thread(engine.images.list)
        shared = await engine.upkeep.shared_sizes()
        used = Counter(container.image_id for container in containers)
        answer["LayersSize"] = (await engine.upkeep.usage()).layers_bytes
        answer["Images"] = [
            views.image_summary(image, used[image.id], shared.get(image.id, 0)) for image in images
        ]
    if "container" in wanted:
        sizes, source = await engine.sizes.of(containers), engine.volumes.mount_point
        answer["Containers"] = [
            views.container_summary(it, source, size=sizes[it.id]) for it in containers
        ]
    if "volume" in wanted:
        answer["Volumes"] = await _volumes(engine)
    if "build-cache" in wanted:
        answer["BuildCache"] = []
    return json_response(answer)


async def _volumes(engine: Engine) -> list[dict[str, Any]]:
    """With `UsageData`; a size of -1: not known, because the machine is off."""
    sizes = await engine.volumes.usage()
    return [
        views.volume_inspect(volume)
        | {
            "UsageData": {
                "Size": sizes.get(volume.name, -1),
                "RefCount": len(engine.volumes.users(volume.name)),
            }
        }
        for volume in engine.volumes.list()
    ]


async def store_usage(engine: Engine, _request: Request) -> Response:
    """{Blobs, Erofs, Unfinished: {Count, Size}, LayersSize, DroppableSize}, in bytes on disk."""
    usage = await engine.upkeep.usage()
    kinds = {"Blobs": usage.blobs, "Erofs": usage.erofs, "Unfinished": usage.unfinished}
    files = {name: {"Count": it.count, "Size": it.bytes} for name, it in kinds.items()}
    sizes = {"LayersSize": usage.layers_bytes, "DroppableSize": usage.droppable_bytes}
    return json_response({**files, **sizes})


async def log(engine: Engine, request: Request) -> Response:
    """[{Name, Time, Id, Digest, Present}], the newest first; Id is "" where the tag was removed."""
    changes = await engine.upkeep.log(request.args["name"])
    return json_response(
        [
            {
                "Name": change.name,
                "Time": rfc3339(change.time_ns),
                "Id": change.image_id or "",
                "Digest": change.digest or "",
                "Present": change.present,
            }
            for change in changes
        ]
    )


async def verify(engine: Engine, request: Request) -> Response:
    """JSON lines: progress, then {"aux": {checked, bytes, damages}}. `repair`, `names`."""
    names = [name for name in request.query.get("names", []) if name]
    repair = request.flag("repair")

    async def work(report: Report) -> Message:
        def event(verifying: PullEvent) -> None:
            report(progress_message(verifying))

        found = await engine.upkeep.verify(names, repair=repair, progress=event)
        return {"progressDetail": {}, "aux": found.as_json()}

    return json_lines(with_progress(work))


async def explore(engine: Engine, request: Request) -> Response:
    """See `exploring.Exploration.as_json`; `files`: with every file of every layer."""
    found = await engine.upkeep.explore(request.args["name"])
    return json_response(await asyncio.to_thread(found.as_json, files=request.flag("files")))


async def compare(engine: Engine, request: Request) -> Response:
    """The paths in which `a` and `b` differ: see `comparing.Difference.as_json`."""
    a, b = request.text("a"), request.text("b")
    if not (a and b):
        raise InvalidInput("a and b must name images")
    found = await engine.upkeep.compare(a, b)
    return json_response([difference.as_json() for difference in found])


_OURS = "/wherry/v1/images"

TABLE: list[Route] = [
    ("POST", "/images/prune", prune),
    ("GET", "/system/df", disk_usage),
    ("GET", "/wherry/v1/store", store_usage),
    ("POST", f"{_OURS}/prune-blobs", prune_blobs),
    ("POST", f"{_OURS}/verify", verify),
    ("GET", f"{_OURS}/diff", compare),
    ("GET", f"{_OURS}/{{name:path}}/log", log),
    ("GET", f"{_OURS}/{{name:path}}/explore", explore),
]
