"""Registries through the API: push, auth, distribution and manifest lists, as clients see them."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import FakeAgent, FakeMachine
from image_fakes import FakeRegistry, Handler, digest, running, simple_image

from wherry.api.http import Request, Response, split_target
from wherry.api.routes import ROUTES
from wherry.engine.background import in_thread
from wherry.engine.engine import Engine
from wherry.errors import InvalidInput, NotFound, NotImplementedYet, Unauthorized
from wherry.images.auth import Credentials
from wherry.images.retry import RetryPolicy
from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings

IMAGE = simple_image()
ANONYMOUS = {"serveraddress": "anywhere"}


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


@pytest.fixture(autouse=True)
def no_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))


def header(fields: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()


class Api:
    """The routes of an engine whose images are real."""

    def __init__(self, engine: Engine, store: ImageStore) -> None:
        self.store = store
        self._engine = engine

    async def call(
        self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Response:
        path, version, query = split_target(target)
        handler, args = ROUTES.find(method, path)
        data = b"" if body is None else json.dumps(body).encode()
        sent = {"x-registry-auth": header(ANONYMOUS), **(headers or {})}
        request = Request(method, path, query, sent, data, version, args)
        answer = await handler(self._engine, request)
        assert isinstance(answer, Response)
        return answer

    async def json(self, *request: Any, **more: Any) -> Any:
        answer = await self.call(*request, **more)
        assert isinstance(answer.body, bytes)
        return json.loads(answer.body)

    async def lines(self, *request: Any, **more: Any) -> list[dict[str, Any]]:
        answer = await self.call(*request, **more)
        assert not isinstance(answer.body, bytes)
        return [json.loads(line) async for line in answer.body]


def play(tmp_path: Path, scene: Callable[[Api], Awaitable[None]]) -> None:
    async def run() -> None:
        retry = RetryPolicy(attempts=2, base=0.001)
        home = Home(tmp_path / "home")
        store = ImageStore(home, Settings(), retry=retry)
        machine: Any = FakeMachine(FakeAgent())
        engine = await Engine.open(home, "default", Settings(), machine=machine, store=store)
        try:
            await scene(Api(engine, store))
        finally:
            await engine.aclose()

    asyncio.run(run())


def test_a_push_tells_its_steps_and_what_the_tag_names(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    async def scene(api: Api) -> None:
        api.store.pull(registry.add("a", "1", IMAGE), auth=Credentials())
        api.store.tag(f"{registry.host}/a:1", f"{registry.host}/b:2")
        registry.owned = {"b": set()}
        said = await api.lines("POST", f"/v1.50/images/{registry.host}/b/push?tag=2")
        assert said[0] == {"status": f"The push refers to repository [{registry.host}/b]"}
        short = digest(IMAGE.layers[0])[7:19]
        steps = [line["status"] for line in said if line.get("id") == short]
        assert steps == ["Preparing", "Mounted from a"]
        assert said[-1] == {
            "progressDetail": {},
            "aux": {
                "Tag": "2",
                "Digest": IMAGE.manifest_digest,
                "Size": len(IMAGE.manifest),
            },
        }

    play(tmp_path, scene)


def test_a_push_without_a_tag_is_of_all_tags(tmp_path: Path, registry: FakeRegistry) -> None:
    async def scene(api: Api) -> None:
        name = api.store.pull(registry.add("a", "1", IMAGE), auth=Credentials()).tags[0]
        api.store.tag(name, f"{registry.host}/a:2")
        await api.lines("POST", f"/images/{registry.host}/a/push")
        assert {("a", "1"), ("a", "2")} <= set(registry.manifests)
        said = await api.lines("POST", f"/images/{registry.host}/none/push")
        assert "does not exist locally" in said[-1]["error"]

    play(tmp_path, scene)


def test_a_push_that_fails_says_so_in_its_stream(tmp_path: Path, registry: FakeRegistry) -> None:
    async def scene(api: Api) -> None:
        name = api.store.pull(registry.add("a", "1", IMAGE), auth=Credentials()).tags[0]
        api.store.tag(name, f"{registry.host}/b:1")
        registry.blobs.clear()
        registry.fault("/uploads/", lambda it: it.error(403, "DENIED", "read-only") or True)
        said = await api.lines("POST", f"/images/{registry.host}/b/push?tag=1")
        assert "read-only" in said[-1]["error"]
        assert said[-1]["errorDetail"]["message"] == said[-1]["error"]

    play(tmp_path, scene)


def test_an_image_is_looked_at_by_its_platform(tmp_path: Path, registry: FakeRegistry) -> None:
    async def scene(api: Api) -> None:
        other = simple_image(b"other", architecture="arm64")
        name = registry.add("a", "1", IMAGE, other)
        for platform in ("linux/arm64", "linux/amd64"):
            api.store.pull(name, platform=platform, auth=Credentials())
        for platform, architecture in (
            ("linux/arm64", "arm64"),
            ('{"os":"linux","architecture":"arm64"}', "arm64"),
            ('{"os":"linux","architecture":"amd64","variant":""}', "amd64"),
        ):
            found = await api.json("GET", f"/images/{name}/json?platform={platform}")
            assert (found["Os"], found["Architecture"]) == ("linux", architecture)
            await api.json("GET", f"/images/{name}/history?platform={platform}")
        with pytest.raises(NotFound, match="does not match the specified platform: wanted linux/s"):
            await api.json("GET", f"/images/{name}/json?platform=linux/s390x")
        with pytest.raises(InvalidInput, match="platform is no JSON object"):
            await api.json("GET", f"/images/{name}/json?platform={{os")
        with pytest.raises(NotImplementedYet, match="platforms is not implemented"):
            await api.call("DELETE", f"/images/{name}?platforms=linux/arm64")

    play(tmp_path, scene)


def test_a_push_for_another_platform_is_refused(tmp_path: Path, registry: FakeRegistry) -> None:
    async def scene(api: Api) -> None:
        api.store.pull(registry.add("a", "1", IMAGE), auth=Credentials())
        wanted = '{"os":"linux","architecture":"arm64"}'
        said = await api.lines("POST", f"/images/{registry.host}/a/push?tag=1&platform={wanted}")
        assert "is for linux/amd64, not for linux/arm64" in said[-1]["error"]

    play(tmp_path, scene)


def basic(handler: Handler) -> bool:
    if handler.headers.get("Authorization") == Credentials("me", "secret").basic_header():
        return False
    handler.reply(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
    return True


def test_a_login_is_checked_with_its_registry(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.authorize = basic

    async def scene(api: Api) -> None:
        login = {"username": "me", "password": "secret", "serveraddress": registry.host}
        assert await api.json("POST", "/auth", login) == {
            "Status": "Login Succeeded",
            "IdentityToken": "",
        }
        with pytest.raises(Unauthorized) as caught:
            await api.call("POST", "/auth", login | {"password": "wrong"})
        assert "wrong" not in caught.value.message
        with pytest.raises(InvalidInput, match="serveraddress must be a string"):
            await api.call("POST", "/auth", {"serveraddress": 1})

    play(tmp_path, scene)


def test_the_header_s_login_is_used(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.add("a", "1", IMAGE)
    registry.authorize = basic

    async def scene(api: Api) -> None:
        target = f"/distribution/{registry.host}/a:1/json"
        with pytest.raises(Unauthorized):
            await api.call("GET", target)
        login = {"x-registry-auth": header({"username": "me", "password": "secret"})}
        found = await api.json("GET", target, headers=login)
        assert found["Descriptor"]["digest"] == IMAGE.manifest_digest
        assert found["Platforms"] == [{"architecture": "amd64", "os": "linux"}]
        config = {"x-registry-config": header({registry.host: {"auth": "bWU6c2VjcmV0"}})}
        place = f"/wherry/v1/manifests/{registry.host}/a:1"
        found = await api.json("GET", place, headers=config)
        assert found["Manifests"][0]["Manifest"] == json.loads(IMAGE.manifest)

    play(tmp_path, scene)


def test_a_manifest_list_from_begin_to_end(tmp_path: Path, registry: FakeRegistry) -> None:
    source = registry.add("a", "1", IMAGE)

    async def scene(api: Api) -> None:
        place = f"/wherry/v1/manifests/{registry.host}/multi:1"
        made = await api.json("POST", f"{place}/create", {"Sources": [source]})
        assert made == {"Name": f"{registry.host}/multi:1"}
        assert await api.json("GET", f"{place}/sources") == {"Sources": [source]}
        platform = {"architecture": "arm64"}
        await api.call("POST", f"{place}/annotate", {"Source": source, "Platform": platform})
        found = await api.json("GET", place)
        assert found["List"]["manifests"][0]["platform"]["architecture"] == "arm64"
        found = await api.json("GET", f"{place}?of={source}")
        assert found["Manifests"][0]["Ref"] == source
        pushed = await api.json("POST", f"{place}/push")
        assert registry.manifests["multi", "1"][1] and pushed["Digest"].startswith("sha256:")
        await api.call("DELETE", place)
        with pytest.raises(NotFound):
            await api.call("DELETE", place)

    play(tmp_path, scene)


def test_work_ends_when_nobody_waits_for_it() -> None:
    begun, ended = threading.Event(), threading.Event()
    may_go_on = threading.Event()

    def work(progress: Callable[[Any], None]) -> None:
        try:
            begun.set()
            assert may_go_on.wait(10), "the test lets the work go on"
            progress("step")
        finally:
            ended.set()

    async def scene() -> None:
        task = asyncio.ensure_future(in_thread(work))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        may_go_on.set()
        assert await asyncio.to_thread(ended.wait, 10), "the work ends at its next step"

    asyncio.run(scene())
