"""Finds the stack of repeated blocks in a module, without a table of architectures."""

from torch import nn

from evomerge.errors import ModelError

_RIVAL = 0.1  # a second stack this large, relative to the largest, is a second tower and not a small front end


def stacks(module: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the stacks in `module` by name, the one with the most parameters first.

    A stack is a list of modules of one class that is not inside another stack: the experts inside a block are no stack.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if not inside and type(part) is nn.ModuleList and len({type(block) for block in part}) == 1:
            lists[name] = part
    return dict(sorted(lists.items(), key=lambda item: -_size(item[1])))


def find_blocks(module: nn.Module) -> nn.ModuleList:
    """Return the one stack of repeated blocks of `module`.

    Raises `ModelError` naming the stacks where there is none, or where a second one is at least a tenth as large as the
    first, as in an encoder-decoder.
    """
    lists = stacks(module)
    sizes = {name: _size(stack) for name, stack in lists.items()}
    largest = max(sizes.values(), default=0)
    rivals = [name for name, size in sizes.items() if size and size >= _RIVAL * largest]
    if len(rivals) != 1:
        what = ", ".join(f"`{name}` ({len(lists[name])} blocks, {sizes[name]} parameters)" for name in rivals)
        msg = f"expected one stack of repeated blocks (a ModuleList of one class) in {type(module).__name__}, found {what or 'none'}"
        raise ModelError(msg)
    return lists[rivals[0]]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
