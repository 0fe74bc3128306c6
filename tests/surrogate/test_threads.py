"""Small matrices are worked on by one thread, and what comes after has as many as before."""

import numpy as np
from threadpoolctl import ThreadpoolController

from evomerge.surrogate.threads import on_one_thread


def counts():
    return [library["num_threads"] for library in ThreadpoolController().info() if library["user_api"] == "blas"]


@on_one_thread
def inside(rows):
    """Say what is inside."""
    return np.eye(rows) @ np.eye(rows), counts()


def test_inside_there_is_one_thread_and_afterwards_there_are_as_many_as_before():
    before = counts()
    product, during = inside(3)
    assert during == [1] * len(before)
    assert counts() == before
    np.testing.assert_array_equal(product, np.eye(3))
    assert inside.__doc__ == "Say what is inside."
