"""Loopback addresses and permitted host names."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Return True if every address of a host is a loopback address.

    Args:
        host: A name or an address; "" are all addresses of this machine.
    """
    with_addresses = [host]
    if host and not _is_address(host):
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            return False
        with_addresses = [str(entry[4][0]) for entry in found]
    return all(_is_address(a) and ipaddress.ip_address(a).is_loopback for a in with_addresses)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_own_name(given: str, allowed: Collection[str]) -> bool:
    """Return True if a Host header (or an Origin) names this machine or is allowed.

    A page of another site can make a browser send requests to a server on the loopback under that
    site's name (DNS rebinding); under a loopback name it cannot read the answer.

    Args:
        given: ``host[:port]``, or ``http://host[:port]``.
        allowed: Other names, without ports.
    """
    try:
        parts = urlsplit(given if "://" in given else f"//{given}")
        name, _ = (parts.hostname or "").lower(), parts.port  # the port: only that it is one
    except ValueError:
        return False
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return False
    if name in {each.lower() for each in allowed} or name == "localhost":
        return True
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
