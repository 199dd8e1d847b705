"""The flags of `run` and `create` that limit processors and block I/O. Text in, HostConfig out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from wherry.errors import InvalidInput
from wherry.units import parse_size

FLAGS = [
    click.option("--cpu-period", type=int, default=0, metavar="MICROSECONDS",
                 help="Of the CPU quota (100000)."),
    click.option("--cpu-quota", type=int, default=0, metavar="MICROSECONDS",
                 help="CPU time in each period."),
    click.option("--cpuset-mems", metavar="LIST", help="Memory nodes to use, as in 0-1."),
    click.option("--blkio-weight", type=int, default=0, metavar="N",
                 help="Relative weight of block I/O, 10 to 1000."),
    click.option("--blkio-weight-device", multiple=True, metavar="PATH:N",
                 help="The same for one of the machine's devices."),
    click.option("--device-read-bps", multiple=True, metavar="PATH:SIZE",
                 help="Bytes a second to read, as in /dev/vda:1mb."),
    click.option("--device-write-bps", multiple=True, metavar="PATH:SIZE",
                 help="Bytes a second to write."),
    click.option("--device-read-iops", multiple=True, metavar="PATH:N", help="Reads a second."),
    click.option("--device-write-iops", multiple=True, metavar="PATH:N", help="Writes a second."),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class LimitFlags:
    """The flags as they were given."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_mems: str | None = None
    blkio_weight: int = 0
    blkio_weight_device: tuple[str, ...] = ()
    device_read_bps: tuple[str, ...] = ()
    device_write_bps: tuple[str, ...] = ()
    device_read_iops: tuple[str, ...] = ()
    device_write_iops: tuple[str, ...] = ()

    def host_config(self) -> dict[str, Any]:
        """Raises InvalidInput for what cannot be read."""
        return {
            "CpuPeriod": self.cpu_period,
            "CpuQuota": self.cpu_quota,
            "CpusetMems": self.cpuset_mems or "",
            "BlkioWeight": self.blkio_weight,
            "BlkioWeightDevice": [_device(text, "Weight") for text in self.blkio_weight_device],
            "BlkioDeviceReadBps": [_throttle(text) for text in self.device_read_bps],
            "BlkioDeviceWriteBps": [_throttle(text) for text in self.device_write_bps],
            "BlkioDeviceReadIOps": [_device(text, "Rate") for text in self.device_read_iops],
            "BlkioDeviceWriteIOps": [_device(text, "Rate") for text in self.device_write_iops],
        }


def _throttle(text: str) -> dict[str, Any]:
    path, number = _parts(text)
    return {"Path": path, "Rate": parse_size(number)}


def _device(text: str, key: str) -> dict[str, Any]:
    path, number = _parts(text)
    if not number.isdecimal():
        raise InvalidInput(f"{text!r}: {number!r} is no number", hint="as in /dev/vda:100")
    return {"Path": path, key: int(number)}


def _parts(text: str) -> tuple[str, str]:
    path, colon, number = text.rpartition(":")
    if not colon or not path.startswith("/dev/"):
        raise InvalidInput(f"bad format: {text}", hint="as in /dev/vda:100")
    return path, number
