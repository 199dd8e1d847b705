"""The PID 1 of test_vmimage_boot.py: tries what the real one needs, prints one JSON line, ends.

Runs in the guest, as source text; it must not import anything that the image lacks.
"""

import ctypes
import json
import os
import subprocess
import termios
import time
from pathlib import Path

FACTS = {"boot_s": round(time.clock_gettime(time.CLOCK_BOOTTIME), 2)}
LIBC = ctypes.CDLL(None, use_errno=True)
FINIT_MODULE = {"x86_64": 313, "aarch64": 273}[os.uname().machine]
POWER_OFF = 0x4321FEDC


def run(*command, stdin=b""):
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    return "ok" if done.returncode == 0 else (done.stdout + done.stderr).decode()[-300:]


def main():
    for source, target, kind in (
        ("proc", "/proc", "proc"),
        ("sysfs", "/sys", "sysfs"),
        ("dev", "/dev", "devtmpfs"),
    ):
        LIBC.mount(source.encode(), target.encode(), kind.encode(), 0, None)
    began = time.monotonic()
    for path in Path("/etc/wherry/modules").read_text().split():
        handle = os.open(path, os.O_RDONLY)
        if LIBC.syscall(FINIT_MODULE, handle, b"", 0):
            FACTS[path] = os.strerror(ctypes.get_errno())
        os.close(handle)
    FACTS["modules_ms"] = round((time.monotonic() - began) * 1000)
    index = Path("/lib/modules", os.uname().release, "modules.dep").read_text().splitlines()
    names = [line.split(":")[0].rpartition("/")[2].removesuffix(".ko") for line in index]
    FACTS["modprobe"] = {name: run("/sbin/modprobe", name) for name in names}
    modules = Path("/proc/modules").read_text().splitlines()
    FACTS["loaded"] = sorted(line.split()[0] for line in modules)
    FACTS["filesystems"] = Path("/proc/filesystems").read_text().split()
    for name in IMPORTS.split():
        __import__(name)
    FACTS["firewall"] = run("/usr/sbin/nft", "-f", "/etc/wherry/nftables.conf")
    FACTS["nat"] = run("/usr/sbin/nft", "-f", "-", stdin=NAT)
    with Path("/tmp/disk").open("wb") as disk:
        disk.truncate(1 << 28)
    FACTS["mkfs"] = run("/usr/sbin/mkfs.ext4", "-q", "/tmp/disk")
    FACTS["fsck"] = run("/usr/sbin/e2fsck", "-fp", "/tmp/disk")
    FACTS["ports"] = sorted(port.name for port in Path("/sys/class/virtio-ports").iterdir())
    memory = Path("/proc/meminfo").read_text().splitlines()
    FACTS["memory"] = {line.split(":")[0]: int(line.split()[1]) for line in memory}


IMPORTS = """
    array asyncio collections contextlib ctypes dataclasses enum errno fcntl functools gc hashlib io
    ipaddress json mmap os pty queue random re resource secrets select selectors shutil signal
    socket stat string struct subprocess tempfile termios threading time traceback types typing uuid
    zlib
"""
NAT = b"""
table inet test {
  chain out { type nat hook postrouting priority 100; ip saddr 172.17.0.0/16 masquerade; }
  chain in { type nat hook prerouting priority -100; tcp dport 80 dnat ip to 172.17.0.2:80; }
  chain guard {
    type filter hook input priority 0;
    ct state established,related accept
    limit rate 5/second accept
    fib saddr type local accept
    reject with icmpx type admin-prohibited
  }
}
"""

try:
    main()
except Exception as error:  # noqa: BLE001 - whatever it was, the test has to see it
    FACTS["error"] = repr(error)
print("FACTS " + json.dumps(FACTS), flush=True)
termios.tcdrain(1)  # the power goes off faster than a serial port writes
LIBC.reboot(POWER_OFF)
