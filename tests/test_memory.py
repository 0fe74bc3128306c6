"""Memory that goes back to the system."""

import subprocess
import sys

import pytest

from evomerge import memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_freed_memory_goes_back_to_the_system():
    # Blocks below the allocator's threshold for mapping, with one that stays above them.
    program = """
import resource
from pathlib import Path
from evomerge import memory

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

blocks = [bytearray(60_000) for _ in range(2000)]
last = bytearray(60_000)
full = held()
del blocks
memory.give_back()
print(full, held())
"""
    full, after = map(int, subprocess.check_output([sys.executable, "-c", program], text=True).split())
    if memory._trim() is None:
        pytest.skip("the allocator is not glibc's")
    assert full - after > 80, "MiB, of the 114 that were freed"
