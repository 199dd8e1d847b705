"""PID 1's boot: from the kernel's first process to the loop in `core.pid1`.

Rules: quick under emulation. No subprocesses; imports only when needed; kernel modules load in a
forked child while this process imports, and the core is imported while the agent starts. What goes
wrong is one console line, `wherry: fatal: …`, and the machine is powered off.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    import socket

    from wherry_guest.core.pid1 import Program
    from wherry_guest.core.syscalls import Kernel

INIT_SCRIPT: Final[str] = """\
#!/usr/bin/python3 -IBS
import sys
sys.path.insert(0, "/usr/lib/wherry")
from wherry_guest.lean import make_lean
make_lean()
from wherry_guest.init import main
main()
"""
"""The text of the initramfs's /init."""

MODULES: Final = "/etc/wherry/modules"
"""Kernel modules (decompressed), one path per line, in load order."""

CGROUPS: Final = "/sys/fs/cgroup"
_LOOPS: Final = 8
_DEVICES: Final = (
    # path, type and mode, major, minor (Documentation/admin-guide/devices.txt)
    ("/dev/net/tun", 0o20666, 10, 200),
    ("/dev/loop-control", 0o20600, 10, 237),
    *((f"/dev/loop{number}", 0o60660, 7, number) for number in range(_LOOPS)),
)
"""Nodes of drivers that the kernel loads when somebody opens them: udev makes such too. Without
them nobody could, and a container's /dev has what is there when it starts."""

INIT_MEMORY: Final = 32 << 20
AGENT_MEMORY: Final = 64 << 20
"""Bytes that the kernel does not reclaim from PID 1 and from the agent (memory.min)."""

OPEN_FILES: Final = 524_288
"""PID 1's RLIMIT_NOFILE: it holds every container's descriptors. systemd's hard limit."""

_AGENT_CODE: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from wherry_guest.init import run_agent; run_agent(int(sys.argv[2]))"
)
_SWAP_FLAG_PREFER: Final = 0x8000  # uapi/linux/swap.h
_SWAP_PRIORITY: Final = 100
_RLIMIT_NPROC: Final = 6  # asm-generic/resource.h
_RLIMIT_NOFILE: Final = 7

_os: Final[Any] = os


def main() -> NoReturn:
    """Run as PID 1 of the VM; never returns."""
    from wherry_guest.core.syscalls import RB_POWER_OFF, Kernel

    kernel = Kernel()
    try:
        _boot(kernel)
    except BaseException as error:  # noqa: BLE001 - PID 1 must not end by itself: a kernel panic
        say(f"wherry: fatal: {last_line(error)}")
    kernel.reboot(RB_POWER_OFF)
    os._exit(1)


def run_agent(control: int) -> NoReturn:
    """The agent's process: run `wherry_guest.agent.main` on the control socket; never returns."""
    code = 0
    try:
        from importlib import import_module

        from wherry_guest.lean import make_lean

        make_lean()  # nothing is left to do in a fork of PID 1, but in an agent that replaced one
        import_module("wherry_guest.agent").main(control)
    except BaseException as error:  # noqa: BLE001 - the process ends here, with its last words
        code = 1
        say(f"wherry: agent failed: {last_line(error)}")
    finally:
        os._exit(code)


def say(line: str) -> None:
    """One line on the console (stderr)."""
    os.write(2, f"{line}\n".encode(errors="replace"))


def last_line(error: BaseException) -> str:
    """What a traceback's last line says, and where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = ""
    if trace is not None:
        name = trace.tb_frame.f_code.co_filename.rpartition("/wherry_guest/")[2]
        where = f" ({name}:{trace.tb_lineno})"
    return f"{type(error).__name__}: {error}".replace("\n", " ") + where


def _boot(kernel: Kernel) -> None:
    os.umask(0o022)
    os.chmod("/", 0o755)  # noqa: PTH101 - pathlib is slow to import; the kernel makes it 1777
    make_pivotable_root(kernel)
    mount_filesystems(kernel)
    open_console(kernel)
    say("wherry: init")
    loader = _fork_module_loader(kernel)
    kernel.write("/proc/self/oom_score_adj", "-1000")
    kernel.setrlimit(_RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
    kernel.setrlimit(_RLIMIT_NPROC, -1, -1)
    make_cgroups(kernel)
    import wherry_guest.zygote  # what the agent needs too, so that it inherits it

    del wherry_guest
    _await_module_loader(loader)
    make_zram_swap(kernel)
    _serve(kernel)


def _serve(kernel: Kernel) -> None:
    import gc
    import socket

    gc.collect()
    gc.freeze()  # what exists now is never collected, so collections do not unshare its pages
    ours, theirs = socket.socketpair(_socket_family(), socket.SOCK_SEQPACKET)
    pid = os_fork()
    if pid == 0:
        _become_agent(kernel, theirs)
    theirs.close()
    from wherry_guest.core.pid1 import Pid1  # meanwhile the agent starts
    from wherry_guest.core.plan import Layout

    layout = Layout(open_files=(1024, OPEN_FILES))  # a container's, as systemd and Docker have it

    def launch(control: socket.socket, program: Program) -> int:
        child = os_fork()
        if child == 0:
            if program.directory is None:
                _become_agent(kernel, control)
            _exec_agent(kernel, control, program)
        return child

    loop = Pid1(kernel, layout, launch, say, first_agent=(pid, ours))
    gc.freeze()
    loop.run()


# The machine's ground.


def make_pivotable_root(kernel: Kernel) -> None:
    """Put a bind mount of the initramfs over itself: an initramfs's own root cannot be pivoted.

    The mount below, through which this interpreter was executed, becomes read-only: through
    /proc/PID/exe a container could otherwise write to the very binary of PID 1.
    """
    from wherry_guest.core.syscalls import MS_BIND, MS_MOVE, MS_RDONLY, MS_REMOUNT

    for path in ("/.root", "/proc", "/sys", "/dev", "/run", "/tmp", "/var", "/var/lib"):
        _make_directory(kernel, path)
    _make_directory(kernel, "/var/lib/wherry")
    kernel.mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)
    kernel.mount("/", "/.root", None, MS_BIND, None)
    kernel.chdir("/.root")
    kernel.mount(None, ".", None, MS_REMOUNT | MS_BIND, None)
    kernel.mount(".", "/", None, MS_MOVE, None)
    kernel.chroot(".")
    kernel.chdir("/")


def mount_filesystems(kernel: Kernel) -> None:
    """proc, sys, dev and their kin; /run with the directories that Wherry needs."""
    from wherry_guest.core.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID

    plain = MS_NOSUID | MS_NODEV | MS_NOEXEC
    kernel.mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755")
    for path in ("/dev/pts", "/dev/shm"):
        _make_directory(kernel, path)
    kernel.mount("proc", "/proc", "proc", plain, None)
    kernel.mount("sysfs", "/sys", "sysfs", plain, None)
    kernel.mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666")
    kernel.mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    kernel.mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    kernel.mount("cgroup2", CGROUPS, "cgroup2", plain, None)
    for path in ("/run/wherry", "/run/wherry/l", "/run/wherry/root"):
        _make_directory(kernel, path)


def open_console(kernel: Kernel) -> None:
    """Make /dev/console stdio: the kernel gives PID 1 of an initramfs none."""
    fd = kernel.open("/dev/console", os.O_RDWR | _os.O_NOCTTY)
    for target in (0, 1, 2):
        kernel.dup2(fd, target)
    if fd > 2:
        kernel.close(fd)


def make_cgroups(kernel: Kernel) -> None:
    """Leaf groups for PID 1 and the agent, whose memory is theirs, and one for the containers."""
    from wherry_guest.core.cgroups import enable_controllers

    enable_controllers(kernel, CGROUPS)
    for name in ("init", "agent", "containers"):
        _make_directory(kernel, f"{CGROUPS}/{name}")
    enable_controllers(kernel, f"{CGROUPS}/containers")
    kernel.write(f"{CGROUPS}/init/memory.min", str(INIT_MEMORY))
    kernel.write(f"{CGROUPS}/agent/memory.min", str(AGENT_MEMORY))
    kernel.write(f"{CGROUPS}/init/cgroup.procs", "0")


def make_zram_swap(kernel: Kernel) -> None:
    """Swap on compressed memory, half of it in size, when the module is there."""
    control = "/sys/block/zram0/disksize"
    if not os.path.exists(control):  # noqa: PTH110 - pathlib is a slow import for PID 1
        return
    page: int = _os.sysconf("SC_PAGE_SIZE")
    pages: int = _os.sysconf("SC_PHYS_PAGES") // 2
    kernel.write(control, str(pages * page))
    fd = kernel.open("/dev/zram0", os.O_WRONLY)
    os.write(fd, swap_header(page, pages))
    kernel.close(fd)
    kernel.swapon("/dev/zram0", _SWAP_FLAG_PREFER | _SWAP_PRIORITY)


def swap_header(page: int, pages: int) -> bytes:
    """The first page of a swap area: union swap_header, include/linux/swap.h."""
    header = bytearray(page)
    for position, value in ((1024, 1), (1028, pages - 1)):  # version, last_page
        header[position : position + 4] = value.to_bytes(4, sys.byteorder)
    header[-10:] = b"SWAPSPACE2"
    return bytes(header)


def load_modules(kernel: Kernel, listing: str = MODULES) -> None:
    """Load every module of the list; one that is there already, or has no hardware, is fine."""
    import errno

    if not os.path.exists(listing):  # noqa: PTH110 - as above
        return
    with open(listing, encoding="utf-8") as file:  # noqa: PTH123 - as above
        paths = file.read().split()
    for path in paths:
        fd = kernel.open(path, os.O_RDONLY)
        try:
            kernel.finit_module(fd)
        except OSError as error:
            if error.errno == errno.ENODEV:
                say(f"wherry: {path}: {error.strerror}")
            elif error.errno != errno.EEXIST:
                raise OSError(error.errno, error.strerror, path) from error
        finally:
            kernel.close(fd)


def make_devices(kernel: Kernel) -> None:
    """Nodes of drivers that are not loaded yet."""
    _make_directory(kernel, "/dev/net")
    os.umask(0)
    for path, mode, major, minor in _DEVICES:
        try:
            kernel.mknod(path, mode, major, minor)
        except FileExistsError:
            continue  # the driver is built into this kernel


def _fork_module_loader(kernel: Kernel) -> int:
    pid = os_fork()
    if pid:
        return pid
    code = 1
    try:
        make_devices(kernel)
        load_modules(kernel)
        code = 0
    except BaseException as error:  # noqa: BLE001 - the forked child ends here
        say(f"wherry: loading kernel modules: {last_line(error)}")
    finally:
        os._exit(code)


def _await_module_loader(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError("a kernel module could not be loaded (see the line above)")


def _make_directory(kernel: Kernel, path: str) -> None:
    try:
        kernel.mkdir(path)
    except FileExistsError:
        return


# The agent's process.


def os_fork() -> int:
    """os.fork (which Windows lacks)."""
    pid: int = _os.fork()
    return pid


def _socket_family() -> int:
    import socket

    family: Any = socket
    unix: int = family.AF_UNIX
    return unix


def _become_agent(kernel: Kernel, control: socket.socket) -> NoReturn:
    fd = control.detach()
    _prepare_agent(kernel, fd)
    run_agent(fd)


def _exec_agent(kernel: Kernel, control: socket.socket, program: Program) -> NoReturn:
    fd = control.detach()
    _prepare_agent(kernel, fd)
    os.set_inheritable(fd, True)
    directory = program.directory or ""
    args = ["python3", "-IBS", "-c", _AGENT_CODE, directory, str(fd)]
    env = [f"{name}={value}" for name, value in os.environ.items()]
    try:
        kernel.execve(sys.executable, args, [*env, f"WHERRY_AGENT_DIGEST={program.digest}"])
    except OSError as error:
        say(f"wherry: agent failed: {last_line(error)}")
    finally:
        os._exit(1)


def _prepare_agent(kernel: Kernel, control: int) -> None:
    from wherry_guest.core.child import close_others, reset_signals

    reset_signals()
    close_others(kernel, [control])
    kernel.write(f"{CGROUPS}/agent/cgroup.procs", "0")


if __name__ == "__main__":
    main()
