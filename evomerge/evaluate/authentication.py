"""Refuses Ray clusters that accept commands from anyone in the network.

Ray's sockets listen on every interface, and only token authentication protects them (CVE-2023-48022).
"""

import os
from ipaddress import ip_address

from evomerge.errors import EvaluatorError


def check_authentication(address: str) -> None:
    """Raise `EvaluatorError` unless the cluster at `address` (`host:port`) is local or requires a token."""
    host = address.rpartition("://")[2].rpartition(":")[0].strip("[]")
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        msg = (
            f"the Ray cluster at {address} is open to its network; expected token authentication: "
            "type RAY_AUTH_MODE=token before `ray start` and before this command"
        )
        raise EvaluatorError(msg)
