"""Ray clusters without authentication are refused, except on this machine."""

import pytest

from evomerge.errors import EvaluatorError
from evomerge.evaluate.ray import check_authentication


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "127.0.0.2:6379", "localhost:6379", "[::1]:6379"])
def test_this_machine_needs_no_token(monkeypatch, address):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    check_authentication(address)


@pytest.mark.parametrize("address", ["10.0.0.5:6379", "ray://10.0.0.5:10001", "cluster.example:6379"])
@pytest.mark.parametrize("mode", ["", "disabled"])
def test_open_clusters_are_refused(monkeypatch, address, mode):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(EvaluatorError, match="RAY_AUTH_MODE=token"):
        check_authentication(address)


def test_a_token_is_enough(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check_authentication("10.0.0.5:6379")
