"""Times, sizes, templates, detach keys and log streams: pure functions of the API and the CLI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.api.streams import log_bytes
from wherry.api.timefmt import parse_time, rfc3339
from wherry.cli import template
from wherry.cli.options import ContainerOptions
from wherry.cli.output import signal_name
from wherry.cli.progress import split_name
from wherry.detachkeys import DetachScanner, parse_keys
from wherry.errors import InvalidInput
from wherry.units import human_duration, human_size, parse_size


def test_never_is_gos_zero_time() -> None:
    assert rfc3339(None) == rfc3339(0) == "0001-01-01T00:00:00Z"


def test_trailing_zeros_are_cut_unless_the_width_is_fixed() -> None:
    assert rfc3339(1_700_000_000_500_000_000) == "2023-11-14T22:13:20.5Z"
    assert rfc3339(1_700_000_000_500_000_000, fixed=True) == "2023-11-14T22:13:20.500000000Z"


@given(st.integers(min_value=1, max_value=2**62))
def test_times_survive_being_written_as_seconds(time_ns: int) -> None:
    assert parse_time(f"{time_ns // 10**9}.{time_ns % 10**9:09d}") == time_ns


def test_a_time_may_be_rfc3339() -> None:
    assert parse_time("2023-11-14T22:13:20Z") == 1_700_000_000 * 10**9
    with pytest.raises(InvalidInput):
        parse_time("yesterday")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
        (150, "2 minutes"), (3600, "About an hour"), (7200, "2 hours"), (50 * 3600, "2 days"),
        (20 * 86400, "2 weeks"), (70 * 86400, "2 months"), (800 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_durations_read_as_docker_says_them(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (999, "999B"), (4_060_000, "4.06MB"), (117_000_000, "117MB"), (999_999, "1000kB")],
)
def test_sizes_read_as_docker_says_them(count: int, text: str) -> None:
    assert human_size(count) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("64m", 64 << 20), ("1.5g", 3 << 29), ("2KiB", 2048), ("1GB", 1 << 30)],
)
def test_sizes_are_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-5m", "1x", "1 2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_size(text)


def test_templates_show_fields_functions_and_pipelines() -> None:
    data = {"Names": "a", "State": {"Pid": 3, "On": True}, "List": ["x", "y"], "Map": {"k": "v"}}
    assert template.render(r"{{.Names}}\t{{.State.Pid}}", data) == "a\t3"
    assert template.render("{{json .State}}", data) == '{"Pid":3,"On":true}'
    assert template.render("{{.Names | upper}} {{.State.On}}", data) == "A true"
    assert (
        template.render('{{join .List ", "}} {{index .Map "k"}} {{len .List}}', data) == "x, y v 2"
    )
    assert template.render("{{.List}}", data) == "[x y]"
    assert template.fields("table {{.Names}} {{.State.Pid}}") == ["Names", "Pid"]


@pytest.mark.parametrize(
    "text", ["{{.Nope}}", "{{range .List}}", "{{.Names |}}", "{{nope .Names}}"]
)
def test_templates_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="template"):
        template.render(text, {"Names": "a", "List": []})


def test_detach_keys_are_read_in_dockers_notation() -> None:
    assert parse_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse_keys("ctrl-@,a,ctrl-_") == b"\x00a\x1f"
    with pytest.raises(InvalidInput):
        parse_keys("ctrl-p,")


@given(st.binary(), st.lists(st.integers(0, 50)))
def test_input_without_the_keys_passes_whole_however_it_is_split(
    data: bytes, cuts: list[int]
) -> None:
    data = data.replace(b"\x10", b"p")
    scanner, out, rest = DetachScanner(b"\x10\x11"), b"", data
    for cut in cuts:
        passed, found = scanner.feed(rest[:cut])
        assert not found
        out, rest = out + passed, rest[cut:]
    assert out + scanner.feed(rest)[0] == data


@given(st.binary(max_size=20), st.binary(max_size=20), st.integers(0, 40))
def test_the_keys_are_found_wherever_the_input_is_cut(
    before: bytes, after: bytes, cut: int
) -> None:
    before, after = before.replace(b"\x10", b"p"), after.replace(b"\x10", b"p")
    data = before + b"\x10\x11" + after
    scanner = DetachScanner(b"\x10\x11")
    first, found = scanner.feed(data[:cut])
    second = b""
    if not found:
        second, found = scanner.feed(data[cut:])
    assert found
    assert first + second == before


def test_a_broken_sequence_is_passed_on() -> None:
    scanner = DetachScanner(b"\x10\x11")
    assert scanner.feed(b"\x10x") == (b"\x10x", False)
    assert scanner.feed(b"\x10\x10") == (b"\x10", False)
    assert scanner.feed(b"\x11") == (b"", True)


@dataclass(frozen=True)
class Frame:
    stream: int
    time_ns: int
    payload: bytes


def render_log(*frames: Frame, tty: bool, timestamps: bool) -> bytes:
    async def source() -> AsyncIterator[Frame]:
        for frame in frames:
            yield frame

    async def collect() -> bytes:
        parts = log_bytes(source(), tty=tty, timestamps=timestamps)  # type: ignore[arg-type]  # a look-alike
        return b"".join([part async for part in parts])

    return asyncio.run(collect())


def test_log_frames_without_a_tty_are_multiplexed() -> None:
    frames = [Frame(1, 1, b"out"), Frame(2, 2, b"err")]
    assert render_log(*frames, tty=False, timestamps=False) == (
        b"\x01\0\0\0\0\0\0\x03out\x02\0\0\0\0\0\0\x03err"
    )


def test_timestamps_stand_once_before_each_line_also_across_frames() -> None:
    stamp = b"1970-01-01T00:00:01.000000000Z "
    second = 10**9
    frames = [Frame(1, second, b"a\nb\r"), Frame(1, 2 * second, b"c\n"), Frame(1, second, b"d")]
    assert render_log(*frames, tty=True, timestamps=True) == (
        stamp + b"a\n" + stamp + b"b\rc\n" + stamp + b"d"
    )


def test_names_are_split_at_the_tag_not_at_a_port() -> None:
    assert split_name("debian") == ("debian", "latest")
    assert split_name("localhost:5000/debian") == ("localhost:5000/debian", "latest")
    assert split_name("localhost:5000/debian:13") == ("localhost:5000/debian", "13")
    assert split_name("debian@sha256:ab") == ("debian", "sha256:ab")


def test_signals_are_named_with_their_prefix() -> None:
    assert (signal_name("term"), signal_name("SIGHUP"), signal_name("9")) == (
        "SIGTERM",
        "SIGHUP",
        "9",
    )


def test_flags_become_the_body_of_a_create_request() -> None:
    options = ContainerOptions(
        image="debian", command=("sh", "-c", "true"), interactive=True, memory="64m", cpus="1.5",
        env=("A=b",), label=("k=v", "only"), entrypoint="/bin/tini --", memory_swap="-1",
    )  # fmt: skip
    body = options.body(attach=True)
    assert body["Cmd"] == ["sh", "-c", "true"]
    assert body["Entrypoint"] == ["/bin/tini", "--"]
    assert body["Env"] == ["A=b"]
    assert body["Labels"] == {"k": "v", "only": ""}
    assert body["StdinOnce"]
    assert not options.body(attach=False)["StdinOnce"]
    host = body["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (64 << 20, -1, 1_500_000_000)


def test_an_empty_entrypoint_resets_the_images() -> None:
    assert ContainerOptions("i", (), entrypoint="").body(attach=True)["Entrypoint"] == [""]
    assert ContainerOptions("i", ()).body(attach=True)["Entrypoint"] is None
