"""Tell the addresses of the public internet from those of this machine and of its own network."""

import ipaddress

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # addresses of IPv6 with an IPv4 address in their last 32 bits


def is_public(address: str) -> bool:
    """Return whether an address that a socket connects to is one of the public internet.

    Loopback, link-local, private, shared, multicast, reserved and unspecified addresses are not, nor are
    those of IPv6 that lead to one of these. A text that is no address is not public.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return _is_global(found)
    inner = found.ipv4_mapped or found.sixtofour
    if found in _NAT64:
        inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return _is_global(inner) if inner else _is_global(found) and not found.is_site_local


def _is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    is_special = address.is_multicast or address.is_reserved or address.is_link_local
    return address.is_global and not is_special
