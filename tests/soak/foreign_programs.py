"""Root file systems of other architectures with dynamically linked programs, made without them."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from needs import require
from rootfs import debian_tar

SUITES = {"arm64": "trixie", "armhf": "bookworm", "ppc64el": "bookworm", "s390x": "bookworm"}
"""Debian's architectures: the release that the packages are from."""

SCRIPT = "uname -m; busybox seq 1 5000 | busybox sort -rn | busybox tr 5 x | busybox head -n 2"
"""A pipeline of dynamically linked programs."""

_RISCV = "riscv64-linux-gnu"
_LOADER = "lib/ld-linux-riscv64-lp64d.so.1"

_PIPELINE = r"""
/* uname -m; seq 1 5000 | sort -rn | tr 5 x | head -n 2, by processes of one program. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

static int down(const void *a, const void *b) { return *(const int *)b - *(const int *)a; }

static int stage(const char *name)
{
    static int numbers[5000];
    int count = 0;
    if (!strcmp(name, "seq"))
        while (count < 5000)
            printf("%d\n", ++count);
    else {
        while (count < 5000 && scanf("%d", numbers + count) == 1)
            count++;
        qsort(numbers, count, sizeof *numbers, down);
        for (int i = 0; i < 2; i++) {
            char text[16];
            for (char *at = text + !snprintf(text, sizeof text, "%d", numbers[i]); *at; at++)
                putchar(*at == '5' ? 'x' : *at);
            putchar('\n');
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct utsname name;
    int ends[2], status;
    if (argc > 1 && !strcmp(argv[1], "crash"))
        abort();
    if (argc > 1)
        return stage(argv[1]);
    uname(&name);
    puts(name.machine);
    fflush(stdout);
    if (pipe(ends))
        return 1;
    for (int child = 0; child < 2; child++)
        if (!fork()) {
            dup2(ends[!child], !child);
            close(ends[0]);
            close(ends[1]);
            execl("/proc/self/exe", argv[0], child ? "head" : "seq", (char *)NULL);
            return 1;
        }
    close(ends[0]);
    close(ends[1]);
    for (int child = 0; child < 2; child++)
        if (wait(&status) < 0 || status)
            return 1;
    return 0;
}
"""


def packaged(cache: Path, arch: str) -> tuple[Path, list[str], list[str]]:
    """(tar, command of the pipeline, command that dies of SIGSEGV): Debian's busybox and dash."""
    packages = ("base-files", "busybox", "coreutils", "dash")
    suite = SUITES[arch]
    tar = debian_tar(cache, *packages, variant="extract", architecture=arch, suite=suite)
    return tar, ["sh", "-c", SCRIPT], ["sh", "-c", "kill -SEGV $$"]


def compiled(directory: Path) -> tuple[Path, list[str], list[str]]:
    """The same for riscv64, with a program of its own: a cross compiler and its C library."""
    compiler = require(f"gcc-{_RISCV}", f"{_RISCV}-gcc")
    require("libc6-dev-riscv64-cross", f"{_RISCV}-gcc")
    program = directory / "pipeline"
    subprocess.run(
        [compiler, "-O1", "-x", "c", "-", "-o", program], input=_PIPELINE, text=True, check=True
    )
    tar = directory / "riscv64.tar"
    with tarfile.open(tar, "w") as out:
        out.add(program, "pipeline")
        for name in (_LOADER, "lib/libc.so.6"):
            out.add(Path("/usr", _RISCV, name).resolve(), name)
    return tar, ["/pipeline"], ["/pipeline", "crash"]
