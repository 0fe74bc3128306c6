"""Which Ray clusters may be used: none where anyone in the network can run what they like as this user.

Ray's sockets listen on every interface; its token is the only fence (CVE-2023-48022 is what happens without).
"""

import os
from ipaddress import ip_address

from evomerge.errors import EvaluatorError


def check_authentication(address: str) -> None:
    """Raise `EvaluatorError` unless the cluster at `address` (`host:port`) is local or has a token."""
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
