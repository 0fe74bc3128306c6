"""The stack of blocks is inferred from the modules; an ambiguous module is an error that names its stacks."""

import pytest
from torch import nn

from evomerge.errors import ModelError
from evomerge.models.blocks import find_blocks


def stack(count, width, block=nn.Linear):
    return nn.ModuleList(block(width, width) for _ in range(count))


def test_lists_inside_of_blocks_are_no_stacks():
    outer = nn.ModuleList(nn.ModuleDict({"experts": stack(4, 8)}) for _ in range(3))
    assert find_blocks(nn.ModuleDict({"layers": outer})) is outer


def test_small_front_end_is_no_rival():
    blocks = stack(3, 16)
    assert find_blocks(nn.ModuleDict({"front": stack(2, 2), "blocks": blocks})) is blocks


def test_rivals_are_named():
    with pytest.raises(ModelError, match=r"`one` \(3 blocks, 216 parameters\), `other` \(2 blocks, 144 parameters\)"):
        find_blocks(nn.ModuleDict({"one": stack(3, 8), "other": stack(2, 8)}))


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2), nn.Bilinear(2, 2, 2)])])
def test_module_without_a_stack_is_an_error(module):
    with pytest.raises(ModelError, match="found none"):
        find_blocks(nn.ModuleDict({"part": module}))
