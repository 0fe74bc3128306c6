"""The connection to a Ray cluster: started, reached and checked, with errors that say what to type."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from evomerge.errors import EvaluatorError
from evomerge.evaluate.worker import describe

# By default Ray prints each worker's death to the study's standard output, and sends usage statistics.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Workers are as nice as this process, not by 15 more: on a shared machine they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")
# A try to connect takes 40 seconds where nothing answers as Ray does, and by default Ray makes 20 of them.
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")

import ray  # reads the environment when it is imported

_CONNECT_SECONDS = 5.0  # to open a connection to a cluster
_MOST_PER_CPU = 8  # threads of workers on this machine: more only fill its memory
_CLIENT_PORT = 10001  # Ray's default in `ray://HOST`
_OBJECT_STORE = 256 << 20  # bytes; only scores pass through it, never weights
# Ray turns 127.0.0.1 into the machine's public address, but none of Linux's other loopback addresses.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else None


def connect(cpus: int) -> bool:
    """Connect to the Ray cluster at `RAY_ADDRESS`, by default a new one on this machine with `cpus` CPUs. Raises `EvaluatorError`.

    Returns whether the connection was made here: False where this process was connected before.
    """
    if ray.is_initialized():
        with start_errors("cannot use the connected Ray cluster"):
            check_authentication(ray.get_runtime_context().gcs_address)
        return False
    address = _address()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if is_local():
        most = _MOST_PER_CPU * (os.cpu_count() or 1)
        if cpus > most:
            raise EvaluatorError(
                f"workers with {cpus} threads in all were asked for on this machine; expected at most {most}, {_MOST_PER_CPU} per CPU; "
                "type a smaller --workers, or give a cluster by RAY_ADDRESS"
            )
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        options["_node_ip_address"] = _LOOPBACK
    elif address != "auto":
        check_authentication(address)
        check_reachable(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with start_errors(f"no Ray cluster at `{address}`"):
            ray.init(address, **options)
            _hide_token()
            if address == "auto":  # its address is known only now
                check_authentication(ray.get_runtime_context().gcs_address)
    except EvaluatorError:
        ray.shutdown()
        raise
    finally:  # Ray installs its own, which aborts the process
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    return True


def is_local() -> bool:
    """Return whether `connect` starts a cluster on this machine, which cannot grow."""
    return _address() == "local"


def _address() -> str:
    return os.environ.get("RAY_ADDRESS") or "local"


def check_start() -> int:
    """Connect as a search with one worker does, disconnect, and return the CPUs of the cluster. Raises `EvaluatorError`."""
    connected = connect(1)
    try:
        return int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]  # the library has no types here
    finally:
        if connected:
            ray.shutdown()


def _hide_token() -> None:
    """Let only this user read the file in which Ray keeps a cluster's token: Ray writes it for all to read."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with suppress(OSError):
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def check_authentication(address: str) -> None:
    """Raise `EvaluatorError` unless the cluster at `address` (`host:port`) is local or requires a token.

    Ray's sockets listen on every interface, and only token authentication protects them (CVE-2023-48022).
    """
    host = address.rpartition("://")[2].rpartition(":")[0].strip("[]")
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise EvaluatorError(
            f"the Ray cluster at {address} is open to its network; expected token authentication: "
            "type RAY_AUTH_MODE=token before `ray start` and before this command"
        )


def check_reachable(address: str) -> None:
    """Raise `EvaluatorError` unless something accepts connections at `address`, `HOST:PORT` or `ray://HOST:PORT`.

    Ray itself tries for minutes without a word.
    """
    scheme, _, rest = address.rpartition("://")
    if scheme not in ("", "ray"):  # of a plug-in of Ray's
        return
    host, colon, port = rest.partition("/")[0].rpartition(":")
    if scheme and (not colon or port.endswith("]")):
        host, port = f"{host}{colon}{port}", str(_CLIENT_PORT)
    problem = "" if host and port.isdecimal() and int(port) < 1 << 16 else "expected HOST:PORT"
    if not problem:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            problem = error.strerror or str(error)
    if problem:
        raise EvaluatorError(
            f"no Ray cluster at `{address}` (RAY_ADDRESS): {problem}; start the cluster, type `unset RAY_ADDRESS` to start one on "
            "this machine, or type --workers 1 to do without Ray"
        )


@contextmanager
def start_errors(what: str) -> Iterator[None]:
    """Turn every exception into an `EvaluatorError` that begins with `what`. A time-out of Ray's start is a bare `Exception`."""
    try:
        yield
    except EvaluatorError:
        raise
    except Exception as error:
        advice = "try again when the machine is less busy, or type --workers 1 to do without Ray"
        raise EvaluatorError(f"{what}: {describe(error)}; {advice}") from error
