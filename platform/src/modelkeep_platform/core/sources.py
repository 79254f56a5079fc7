"""Where a request comes from, as everything that counts by source takes it: what one subscriber has.

That is an address of IPv4, and of IPv6 a /64: whoever has one has all of its addresses, and would have each count anew
with every one of them.
"""

from ipaddress import IPv6Address, ip_address
from typing import Final

UNKNOWN: Final = "unknown"
_MAX_CHARS: Final = 64
_HOST_BITS: Final = 64


def subscriber(address: str) -> str:
    """Return whose `address` it is: itself, of IPv6 its /64, of one that maps IPv4 that; other text is cut.

    Args:
        address: of the connection, as the server has it.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return address[:_MAX_CHARS] or UNKNOWN
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    network = int(found) >> _HOST_BITS << _HOST_BITS
    return f"{IPv6Address(network)}/{128 - _HOST_BITS}"
