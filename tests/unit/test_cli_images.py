"""`wherry image`, `save`, `load`, `import`, `system`: commands on an engine without a machine."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Wherry
from image_fakes import gz, tar_of

from wherry.paths import Home

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the engine needs Unix sockets")

ONE = tar_of({"etc/": b"", "etc/motd": b"one", "big": b"1" * 3000})
TWO = tar_of({"etc/": b"", "etc/motd": b"two!"})


@pytest.fixture(scope="module")
def engine() -> Iterator[Wherry]:
    root = Path(tempfile.mkdtemp(prefix="wh-"))
    it = Wherry(Home(root))
    yield it
    it.run("machine", "rm", "--force")
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def cli(engine: Wherry) -> Wherry:
    """The commands on an empty store."""
    engine.run("image", "prune", "--all", "--force", check=True)
    assert engine.out("images", "-q") == ""
    return engine


def imported(cli: Wherry, data: bytes, *arguments: str) -> str:
    return cli.out("import", *arguments[:-1], "-", *arguments[-1:], input=data)


def test_import_prints_the_id_and_applies_changes(cli: Wherry) -> None:
    identifier = imported(cli, gz(ONE), "-c", "ENV A=1", "-m", "by hand", "mine:1")
    (found,) = json.loads(cli.out("image", "inspect", "mine:1"))
    assert (found["Id"], found["Config"]) == (identifier, {"Env": ["A=1"]})
    assert cli.out("image", "history", "mine:1", "--format", "{{.Comment}}") == "by hand"


def test_save_and_load_by_file_and_by_pipe(cli: Wherry, tmp_path: Path) -> None:
    first = imported(cli, ONE, "mine:1")
    imported(cli, TWO, "mine:2")
    file = tmp_path / "a.tar"
    cli.run("save", "-o", str(file), "mine", check=True)
    piped = cli.run("save", "mine", check=True).stdout
    assert piped == file.read_bytes()
    cli.run("rmi", "mine:1", "mine:2", check=True)
    loaded = cli.out("load", "-q", "-i", str(file))
    assert loaded.splitlines() == ["Loaded image: mine:1", "Loaded image: mine:2"]
    assert cli.out("images", "-q", "--no-trunc", "mine:1") == first
    assert "Loaded image: mine:2" in cli.out("image", "load", input=gz(piped))


def test_a_failed_save_leaves_no_file(cli: Wherry, tmp_path: Path) -> None:
    done = cli.run("save", "-o", str(tmp_path / "a.tar"), "nothing")
    assert done.returncode == 1
    assert b"No such image: nothing" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bad_archive_is_one_line_and_a_hint(cli: Wherry) -> None:
    done = cli.run("load", input=b"<html>" + b"x" * 100_000)
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert "the archive is not a tar archive" in lines[0]
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2


def test_a_file_that_cannot_be_read_is_said(cli: Wherry, tmp_path: Path) -> None:
    done = cli.run("load", "-i", str(tmp_path / "nothing"))
    assert (done.returncode, b"cannot read" in done.stderr) == (1, True)


def test_a_tag_goes_back(cli: Wherry) -> None:
    first = imported(cli, ONE, "app:1")
    second = imported(cli, TWO, "app:1")
    log = [line.split() for line in cli.out("image", "log", "app:1", "--no-trunc").splitlines()[1:]]
    assert [row[2] for row in log[:2]] == [second[7:], first[7:]]
    assert "<none>" in cli.out("images", "-f", "dangling=true")
    cli.run("tag", f"app:1@{log[1][1]}", "app:1", check=True)
    assert cli.out("images", "-q", "--no-trunc", "app:1") == first


def test_prune_asks_first(cli: Wherry) -> None:
    imported(cli, ONE, "mine:1")
    assert cli.run("image", "prune", "-a").returncode == 130  # nobody answered
    assert cli.run("image", "prune", "-a", input=b"n\n", check=True).stdout == b""
    assert cli.out("images", "-q") != ""
    gone = cli.out("image", "prune", "-a", input=b"y\n")
    assert "untagged: mine:1" in gone
    assert "Total reclaimed space: " in gone
    assert cli.out("images", "-q") == ""


def test_prune_takes_filters(cli: Wherry) -> None:
    imported(cli, ONE, "-c", "LABEL keep=1", "mine:1")
    imported(cli, TWO, "mine:2")
    cli.run("image", "prune", "-af", "--filter", "label!=keep", check=True)
    assert cli.out("images", "--format", "{{.Tag}}") == "1"
    done = cli.run("image", "prune", "-f", "--filter", "nope=1")
    assert b"invalid filter 'nope'" in done.stderr


def test_verify_names_damage_and_ends_with_1(cli: Wherry) -> None:
    imported(cli, ONE, "mine:1")
    assert "all as they should be" in cli.out("image", "verify")
    (erofs,) = cli.home.layers.iterdir()
    good = erofs.read_bytes()
    erofs.write_bytes(good[:5000] + b"!" + good[5001:])
    done = cli.run("image", "verify", "mine:1")
    assert done.returncode == 1
    assert b"1 damaged, 0 repaired" in done.stdout
    assert b"mine:1" in done.stdout
    mended = json.loads(cli.out("image", "verify", "--repair", "--json"))
    assert [it["repaired"] for it in mended["damages"]] == [True]
    assert erofs.read_bytes() == good


def test_explore_and_diff_as_tables_and_json(cli: Wherry) -> None:
    imported(cli, ONE, "mine:1")
    imported(cli, TWO, "mine:2")
    assert "3kB in 1 layers, 0B wasted" in cli.out("image", "explore", "mine:1")
    assert "A /etc/motd (3B)" in cli.out("image", "explore", "--files", "mine:1")
    found = json.loads(cli.out("image", "explore", "--json", "mine:1"))
    assert [it["path"] for it in found["layers"][0]["added_files"]] == ["/big", "/etc", "/etc/motd"]
    assert cli.out("image", "diff", "mine:1", "mine:2").splitlines() == [
        "D /big",
        "C /etc/motd (size, content)",
    ]
    (gone, changed) = json.loads(cli.out("image", "diff", "--json", "mine:1", "mine:2"))
    assert (gone["a"]["size"], gone["b"]) == (3000, None)
    assert changed["b"]["digest"].startswith("sha256:")


def test_df_counts_what_docker_counts_and_the_files(cli: Wherry) -> None:
    imported(cli, ONE, "mine:1")
    imported(cli, ONE, "mine:2")
    rows = json.loads(f"[{','.join(cli.out('system', 'df', '--format', 'json').splitlines())}]")
    counts = {row["Type"]: row["TotalCount"] for row in rows}
    assert counts == {
        "Images": 2,
        "Containers": 0,
        "Local Volumes": 0,
        "Image blobs": 5,
        "EROFS layers": 1,
        "Unfinished": 0,
    }
    verbose = cli.out("system", "df", "-v")
    assert "SHARED SIZE   UNIQUE SIZE" in verbose


def test_images_by_filters_and_format(cli: Wherry) -> None:
    imported(cli, ONE, "mine:1")
    imported(cli, TWO, "other:1")
    assert cli.out("image", "ls", "--format", "{{.Repository}}", "mi*") == "mine"
    assert cli.out("images", "-f", "reference=other:*", "--format", "{{.Repository}}") == "other"
    assert cli.out("images", "-q", "-f", "until=1h") == ""
    assert b"invalid filter" in cli.run("images", "-f", "nope=1").stderr


def test_the_image_group_has_every_command(cli: Wherry) -> None:
    listed = cli.out("image", "--help")
    names = {line.split()[0] for line in listed.splitlines() if line.startswith("  ")}
    for name in names & {"ls", "rm", "save", "load", "import", "push", "bootstrap", "verify"}:
        assert "Usage: wherry image" in cli.out("image", name, "--help")
