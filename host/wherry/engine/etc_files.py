"""The texts of /etc/hosts, /etc/hostname and /etc/resolv.conf. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from wherry.errors import InvalidInput, NotImplementedYet

_HOSTS = (
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::\tip6-localnet",
    "ff00::\tip6-mcastprefix",
    "ff02::1\tip6-allnodes",
    "ff02::2\tip6-allrouters",
)
"""What Docker writes."""

HOST_GATEWAY = "host-gateway"
"""Docker's word for the address at which containers reach the host."""

HOSTNAME_LENGTH = 64
"""__NEW_UTS_LEN, uapi/linux/utsname.h."""


def check_names(config: Mapping[str, Any], host_config: Mapping[str, Any]) -> None:
    """Host name, name servers and added hosts. Raises InvalidInput, NotImplementedYet."""
    for name in ("Hostname", "Domainname"):
        text = config.get(name) or ""
        if len(text.encode()) > HOSTNAME_LENGTH or any(not _is_plain(part) for part in text):
            raise InvalidInput(f"invalid hostname format: {text}")
    for server in host_config.get("Dns") or ():
        _check_address(server)
    for name in ("DnsSearch", "DnsOptions"):
        for text in host_config.get(name) or ():
            if not text or any(not _is_plain(part) for part in text):
                raise InvalidInput(f"HostConfig.{name}: {text!r} is not one word")
    for text in host_config.get("ExtraHosts") or ():
        _host(text)


def hosts(host_config: Mapping[str, Any], hostname: str) -> str:
    lines = list(_HOSTS)
    lines += [
        f"{address}\t{name}" for name, address in map(_host, host_config.get("ExtraHosts") or ())
    ]
    if host_config.get("NetworkMode") == "host":
        lines.append(f"127.0.1.1\t{hostname}")
    return "\n".join(lines) + "\n"


def resolv_conf(host_config: Mapping[str, Any], servers: Sequence[str]) -> str:
    """`servers`: the machine's, where the container names none."""
    lines = [f"nameserver {server}" for server in host_config.get("Dns") or servers]
    domains = [domain for domain in host_config.get("DnsSearch") or () if domain != "."]
    if domains:
        lines.append(f"search {' '.join(domains)}")
    if options := host_config.get("DnsOptions"):
        lines.append(f"options {' '.join(options)}")
    return "".join(f"{line}\n" for line in lines)


def _host(text: str) -> tuple[str, str]:
    """`NAME:IP` as (name, address)."""
    name, separator, address = text.partition(":")
    if not name or not separator or not all(map(_is_plain, name)):
        raise InvalidInput(f'bad format for add-host: "{text}"')
    if address == HOST_GATEWAY:
        raise NotImplementedYet(f"HostConfig.ExtraHosts is not implemented for {HOST_GATEWAY}")
    _check_address(address)
    return name, address


def _check_address(text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise InvalidInput(f"invalid IP address: {text}") from None


def _is_plain(character: str) -> bool:
    """Whether it can stand in a word of one of these files."""
    return character.isprintable() and not character.isspace() and character != "#"
