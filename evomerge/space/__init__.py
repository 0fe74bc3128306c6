"""ONE IDEA: a recipe with holes. Fill the holes and it is the recipe that `evomerge merge` takes.

A hole stands wherever a recipe may have a value:

    weight:  {float: [0, 1], init: 0.3, per: [expert, block/4]}
    density: {float: [0.05, 1], log: true}
    seed:    {int: [0, 2147483647]}
    rank:    {int: [1, 16]}
    method:  {choice: [ties, dare_ties]}
    edit:    {choice: [none, dare, {trim: {density: {float: [0.05, 1]}}}]}
    include: {bit: first, per: [slot]}
    share:   {float: [0.9, 1.1], init: 1, sd: 0.01}

Where numbers are drawn at random, they are spread evenly, and normally around `init` for a hole with `sd`. An option may
have holes of its own, whose genes do nothing where another option is chosen. A space that says how earlier candidates are
crossed names them by any words, `{member: mother}`, to be filled with the ids of whoever they are. Each hole expands into
named genes (`weight[math,block 2]`). A genome is float64 `(genes,)` in the genes' own units, where a choice is the index of
its option and a bit is 0 or 1. Drivers that want a unit cube use `to_unit` and `from_unit`.

A stack may stand in one of its short forms (`evomerge.recipe.short_forms`), which then has the holes: decoding keeps it within its
bounds and spells it out. A bit says whether a slot of a path is a hop; `first` starts with the first source's layers.
"""

from evomerge.space.box import Box
from evomerge.space.holes import Gene, Genome
from evomerge.space.library import from_method, read, shipped
from evomerge.space.space import SearchSpace, SpaceFile

__all__ = ["Box", "Gene", "Genome", "SearchSpace", "SpaceFile", "from_method", "read", "shipped"]
