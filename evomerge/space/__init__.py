"""Search spaces: recipes with holes. With its holes filled, a space is a recipe that `evomerge merge` takes.

A hole stands in place of any value of a recipe:

    weight:  {float: [0, 1], init: 0.3, per: [expert, block/4]}
    density: {float: [0.05, 1], log: true}
    seed:    {int: [0, 2147483647]}
    rank:    {int: [1, 16]}
    method:  {choice: [ties, dare_ties]}
    edit:    {choice: [none, dare, {trim: {density: {float: [0.05, 1]}}}]}
    include: {bit: first, per: [slot]}
    share:   {float: [0.9, 1.1], init: 1, sd: 0.01}
    weight:  {mixture: [0, 2], init: 1, per: [expert]}

A `mixture` is a total, from a range or fixed, and shares of it for each expert; uniform genes are uniform shares. Random values
are uniform, or normal around `init` for a hole with `sd`. Options may have holes, whose genes do nothing
where another option is chosen. A space of merges of earlier candidates gives each a name, `{member: mother}`, in place of its id. Each
hole expands into named genes (`weight[math,block 2]`). A genome is float64 `(genes,)` in the genes' own units; a choice is
the index of its option, a bit is 0 or 1. Drivers over a unit cube use `to_unit` and `from_unit`.

A stack may stand in a short form (`evomerge.recipe.short_forms`), which then has the holes: decoding keeps it within its bounds
and spells it out. A bit says whether a slot of a path is included; `first` starts with the first source's layers.
"""

from evomerge.space.box import Box
from evomerge.space.holes import Gene, Genome
from evomerge.space.library import from_method, read, shipped
from evomerge.space.space import SearchSpace, SpaceFile

__all__ = ["Box", "Gene", "Genome", "SearchSpace", "SpaceFile", "from_method", "read", "shipped"]
