"""Routes about registries: push, auth, distribution; and manifest lists, which are ours alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wherry.api.http import Request, Response, Route, json_lines, json_response
from wherry.api.images import decoded_header, progress_message, registry_auth
from wherry.api.platforms import asked_platform
from wherry.api.progress import Message, Report, with_progress
from wherry.errors import InvalidInput
from wherry.logins import server_of

if TYPE_CHECKING:
    from wherry.engine.engine import Engine
    from wherry.images.progress import PullEvent


async def push(engine: Engine, request: Request) -> Response:
    """Push a tag, or all tags of a repository. `allPlatforms` is ours."""
    auth = registry_auth(request.headers.get("x-registry-auth", ""))
    platform = asked_platform(request)
    name, tag = request.args["name"], request.text("tag") or None

    async def work(report: Report) -> Message | None:
        def event(pushed: PullEvent) -> None:
            report(progress_message(pushed))

        result = await engine.distribution.push(
            name,
            tag,
            auth,
            event,
            platform=platform,
            all_platforms=request.flag("allPlatforms"),
        )
        aux = {"Tag": result.tag, "Digest": result.digest, "Size": result.size}
        return {"progressDetail": {}, "aux": aux}

    return json_lines(with_progress(work))


async def auth(engine: Engine, request: Request) -> Response:
    """Check a login with its registry."""
    fields = request.json()
    server = server_of(_text(fields, "serveraddress"))
    token = await engine.distribution.log_in(server, fields)
    return json_response({"Status": "Login Succeeded", "IdentityToken": token or ""})


async def inspect(engine: Engine, request: Request) -> Response:
    login = registry_auth(request.headers.get("x-registry-auth", ""))
    return json_response(await engine.distribution.describe(request.args["name"], login))


async def manifest_inspect(engine: Engine, request: Request) -> Response:
    """{List: index or null, Manifests: [{Ref, Descriptor, Manifest}]}: a list that is not pushed,
    one manifest of it (`of`), or what the registry has."""
    distribution, name = engine.distribution, request.args["name"]
    if source := request.text("of"):
        entry = await distribution.list_entry(name, source)
        return json_response({"List": None, "Manifests": [entry]})
    if (index := await distribution.list_index(name)) is not None:
        return json_response({"List": index, "Manifests": []})
    found = await distribution.inspect(name, _auths(request))
    return json_response({"List": None, "Manifests": found})


async def manifest_sources(engine: Engine, request: Request) -> Response:
    """{Sources}: the names in a list, so that a client knows whose logins a push needs."""
    sources = await engine.distribution.list_sources(request.args["name"])
    return json_response({"Sources": list(sources)})


async def manifest_create(engine: Engine, request: Request) -> Response:
    fields = request.json()
    sources = fields.get("Sources")
    if not isinstance(sources, list) or not all(isinstance(it, str) for it in sources):
        raise InvalidInput("Sources must be a list of names")
    name = await engine.distribution.list_create(
        request.args["name"], sources, _auths(request), amend=fields.get("Amend") is True
    )
    return json_response({"Name": name}, 201)


async def manifest_annotate(engine: Engine, request: Request) -> Response:
    fields = request.json()
    platform = fields.get("Platform")
    if not isinstance(platform, dict):
        raise InvalidInput("Platform must be an object")
    await engine.distribution.list_annotate(request.args["name"], _text(fields, "Source"), platform)
    return Response(204)


async def manifest_push(engine: Engine, request: Request) -> Response:
    digest = await engine.distribution.list_push(
        request.args["name"], _auths(request), purge=request.flag("purge")
    )
    return json_response({"Digest": digest})


async def manifest_remove(engine: Engine, request: Request) -> Response:
    await engine.distribution.list_remove(request.args["name"])
    return Response(204)


def _auths(request: Request) -> dict[str, Any]:
    """X-Registry-Config: logins by registry, as Docker's clients send them to a build."""
    return decoded_header("X-Registry-Config", request.headers.get("x-registry-config", ""))


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name) or ""
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be a string")
    return value


_LISTS = "/wherry/v1/manifests/{name:path}"

TABLE: list[Route] = [
    ("POST", "/images/{name:path}/push", push),
    ("POST", "/auth", auth),
    ("GET", "/distribution/{name:path}/json", inspect),
    ("POST", f"{_LISTS}/create", manifest_create),
    ("POST", f"{_LISTS}/annotate", manifest_annotate),
    ("POST", f"{_LISTS}/push", manifest_push),
    ("GET", f"{_LISTS}/sources", manifest_sources),
    ("GET", _LISTS, manifest_inspect),
    ("DELETE", _LISTS, manifest_remove),
]
