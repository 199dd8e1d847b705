"""`--change`: what each instruction does to an image's config."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidInput
from wherry.images.changes import apply_changes


def change(*changes: str, **config: Any) -> dict[str, Any]:
    return apply_changes(config, changes)


def test_command_in_json_is_taken_word_for_word() -> None:
    assert change('CMD ["echo", "a b"]')["Cmd"] == ["echo", "a b"]


def test_command_without_json_goes_to_the_shell() -> None:
    assert change("CMD echo $HOME")["Cmd"] == ["/bin/sh", "-c", "echo $HOME"]


def test_command_uses_the_configs_shell() -> None:
    changed = change('SHELL ["/bin/bash", "-ec"]', "CMD echo")
    assert changed["Cmd"] == ["/bin/bash", "-ec", "echo"]


def test_what_only_looks_like_json_goes_to_the_shell() -> None:
    assert change("CMD [ -f /x ]")["Cmd"] == ["/bin/sh", "-c", "[ -f /x ]"]


def test_entrypoint_takes_the_old_command_away() -> None:
    assert change('ENTRYPOINT ["/e"]', Cmd=["old"]) == {"Entrypoint": ["/e"]}


def test_entrypoint_keeps_a_command_that_was_given_with_it() -> None:
    changed = change('CMD ["new"]', 'ENTRYPOINT ["/e"]', Cmd=["old"])
    assert changed == {"Entrypoint": ["/e"], "Cmd": ["new"]}


def test_variables_are_added_and_replaced_in_place() -> None:
    changed = change(
        'ENV A=1 B="two words" C=x\\ y', "ENV PATH $PATH:/opt", Env=["PATH=/bin", "A=0"]
    )
    assert changed["Env"] == ["PATH=/bin:/opt", "A=1", "B=two words", "C=x y"]


def test_variables_of_one_line_see_those_before_it_only() -> None:
    assert change("ENV A=new B=$A", Env=["A=old"])["Env"] == ["A=new", "B=old"]


def test_variables_in_single_quotes_are_left_alone() -> None:
    assert change("ENV A='$B'", Env=["B=1"])["Env"] == ["B=1", "A=$B"]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("$A", "1"),
        ("${A}", "1"),
        ("${A:-x}", "1"),
        ("${NONE:-x}", "x"),
        ("${NONE:-$A}", "1"),
        ("${A:+y}", "y"),
        ("${NONE:+y}", ""),
        ("${EMPTY-z}", ""),
        ("${EMPTY:-z}", "z"),
        ("\\$A", "$A"),
        ("a$", "a$"),
    ],
)
def test_variables_are_replaced_as_in_a_dockerfile(word: str, value: str) -> None:
    assert change(f"USER u{word}", Env=["A=1", "EMPTY="])["User"] == f"u{value}"


def test_labels_are_merged() -> None:
    changed = change('LABEL a=1 "b c"="d e"', "LABEL old style", Labels={"x": "y"})
    assert changed["Labels"] == {"x": "y", "a": "1", "b c": "d e", "old": "style"}


def test_ports_have_a_protocol_and_ranges_are_written_out() -> None:
    changed = change("EXPOSE 80 53/UDP 8000-8002/tcp", ExposedPorts={"1/tcp": {}})
    assert list(changed["ExposedPorts"]) == [
        "1/tcp", "80/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp",
    ]  # fmt: skip


def test_volumes_come_as_words_or_json() -> None:
    changed = change("VOLUME /a /b", 'VOLUME ["/c d"]')
    assert list(changed["Volumes"]) == ["/a", "/b", "/c d"]


def test_a_relative_working_directory_is_below_the_last_one() -> None:
    assert change("WORKDIR /a", "WORKDIR b/../c")["WorkingDir"] == "/a/c"


def test_health_check_with_flags() -> None:
    changed = change(
        "HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl -f x || exit 1"
    )
    assert changed["Healthcheck"] == {
        "Interval": 90 * 10**9,
        "Timeout": 500 * 10**6,
        "Retries": 3,
        "Test": ["CMD-SHELL", "curl -f x || exit 1"],
    }


def test_health_check_none() -> None:
    assert change("HEALTHCHECK NONE")["Healthcheck"] == {"Test": ["NONE"]}


def test_triggers_are_collected() -> None:
    assert change("ONBUILD RUN make", OnBuild=["COPY . /"])["OnBuild"] == ["COPY . /", "RUN make"]


def test_instructions_may_be_lower_case_continued_and_commented() -> None:
    assert change("# why\ncmd \\\n  echo \\\n  hi\n\nuser me") == {
        "Cmd": ["/bin/sh", "-c", "echo hi"],
        "User": "me",
    }


def test_the_given_config_stays_as_it_is() -> None:
    config = {"Labels": {"a": "1"}, "Env": ["A=1"]}
    apply_changes(config, ["LABEL b=2", "ENV B=2"])
    assert config == {"Labels": {"a": "1"}, "Env": ["A=1"]}


@pytest.mark.parametrize(
    "bad",
    [
        "RUN make",
        "FROM scratch",
        "ENV",
        "ENV A",
        "ENV =x",
        'ENV A="x',
        "LABEL a=1 b",
        "EXPOSE",
        "EXPOSE 0",
        "EXPOSE 70000",
        "EXPOSE 9-8",
        "EXPOSE x",
        "VOLUME",
        'VOLUME [""]',
        "WORKDIR",
        "USER",
        "STOPSIGNAL NOPE",
        "STOPSIGNAL 65",
        "SHELL bash",
        "SHELL []",
        "ONBUILD FROM x",
        "ONBUILD",
        "HEALTHCHECK",
        "HEALTHCHECK --interval=soon CMD x",
        "HEALTHCHECK --interval=1us CMD x",
        "HEALTHCHECK --what=1 CMD x",
        "HEALTHCHECK CMD",
        "USER ${A:=x}",
        "USER ${",
    ],
)
def test_what_is_malformed_is_named(bad: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        change(bad)
    assert bad.split()[0] in caught.value.message


@pytest.mark.parametrize("signal", ["SIGTERM", "term", "9", "SIGRTMIN+3", "RTMAX-1"])
def test_signals_have_names_and_numbers(signal: str) -> None:
    assert change(f"STOPSIGNAL {signal}")["StopSignal"] == signal


@given(st.text(max_size=60))
def test_any_text_is_applied_or_refused(text: str) -> None:
    for name in ("ENV", "LABEL", "EXPOSE", "HEALTHCHECK", "WORKDIR", "CMD", ""):
        try:
            apply_changes({"Env": ["A=1"]}, [f"{name} {text}"])
        except InvalidInput:
            pass
