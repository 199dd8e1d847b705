"""What the pages say: links lead somewhere, commands and flags exist, settings are all there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from commands_page import PAGE, ROOT, page

from wherry.cli.main import wherry
from wherry.settings import _ENVIRONMENT, Settings

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENDS = {";", "&&", "||", "|", ">", "<", ">>", "2>", "&"}


def links(path: Path) -> Iterator[tuple[Path, str]]:
    """The files that a page's relative links name, and the headings in them."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            name, _, heading = target.partition("#")
            yield (path.parent / name).resolve() if name else path, heading


def headings(path: Path) -> set[str]:
    """As anchors: lower case, spaces as hyphens, other signs left out."""
    found = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in found}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, heading in links(path):
        assert target.exists(), target
        assert not heading or heading in headings(target), (target.name, heading)


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += [target for target, _ in links(path) if target.suffix == ".md"]
    assert not {path.name for path in DOCS.glob("*.md") if path not in reached}


def test_the_page_of_commands_is_what_the_command_line_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def examples() -> Iterator[tuple[str, list[str]]]:
    """The page and the words behind `wherry` of each command in a block of shell."""
    for path in PAGES:
        for block in FENCE.findall(path.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
                lexer.whitespace_split = True
                command: list[str] = []
                for word in [*lexer, ";"]:
                    if word in ENDS:
                        if "wherry" in command[:1] or "./bootstrap" in command[:1]:
                            yield path.name, command[1:]
                        command = []
                    else:
                        command.append(word)


def test_examples_name_commands_and_flags_that_exist() -> None:
    count = 0
    for name, words in examples():
        if words[:1] in (["--test"], ["--bench"]):
            continue
        command: click.Command = wherry
        context = click.Context(wherry, info_name="wherry")
        try:
            while True:
                parser = command.make_parser(context)
                _, rest, _ = parser.parse_args(list(words))
                if not isinstance(command, click.Group):
                    break
                _, found, words = command.resolve_command(context, rest or [""])
                assert found is not None
                context = click.Context(found, parent=context, **found.context_settings)
                command = found
        except click.UsageError as error:
            raise AssertionError(f"{name}: {words}: {error.format_message()}") from None
        count += 1
    assert count > 30


def test_every_setting_and_variable_has_a_line() -> None:
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    wanted = {field.name for field in fields(Settings)} | set(_ENVIRONMENT.values())
    assert not {name for name in wanted if f"`{name}`" not in text}


@pytest.mark.parametrize(
    ("room", "name"),
    [("", "architecture.md"), ("machine", "machine.md"), ("engine", "engine.md")],
)
def test_the_map_names_every_module_and_folder(room: str, name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    found = [it for it in (ROOT / "host/wherry" / room).iterdir() if not it.name.startswith("_")]
    modules = {it.stem for it in found if it.suffix == ".py"}
    folders = {it.name for it in found if it.is_dir() and list(it.glob("*.py"))}
    assert modules or folders
    assert not {it for it in modules if f"{it}.py" not in text and f"`{it}`" not in text}
    assert not {it for it in folders if f"{it}/" not in text}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_modules_that_a_page_names_exist(path: Path) -> None:
    folders = ("host", "guest-agent", "vm-images", "tests")
    there = {it.name for folder in folders for it in (ROOT / folder).rglob("*.py")}
    named = set(re.findall(r"`(?:[\w/-]*/)?(\w+\.py)`", path.read_text(encoding="utf-8")))
    assert not named - there
