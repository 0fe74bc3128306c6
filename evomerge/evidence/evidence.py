"""Evidence: for each expert, the task and the search examples that say what it is good at; and the statistics collected of them.

A study's pool names it (`evidence:`), by default the task of the expert's name. What a search space, or a recipe, needs is
collected before any work, and read by all workers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from evomerge import cache
from evomerge.checkpoints.pool import Pool
from evomerge.errors import PoolError, nearest
from evomerge.evaluate import Setup
from evomerge.evidence import repairs
from evomerge.evidence.collectors import Collector, Price, Repairs, collector, tasks_of
from evomerge.evidence.entries import Entry, chosen, left, shared
from evomerge.evidence.models import Models
from evomerge.recipe import Recipe
from evomerge.statistics import Collected, EvidenceSettings
from evomerge.tasks import Task


class Evidence:
    """The statistics of some kinds of a pool's experts. It adds them to the pool, collected or not."""

    def __init__(
        self,
        pool: Pool,
        setup: Setup,
        tasks: Mapping[str, Task],
        given: Mapping[str, EvidenceSettings],
        kinds: Sequence[str],
        recipes: Sequence[Recipe] = (),
        *,
        searched: bool = False,
    ) -> None:
        """Find the examples of each expert. Nothing is run.

        `recipes` are those that read the statistics: `KIND@TASK` is of the models that they name, by default of all, and `repair` of the
        repairs in them. With `searched` they are examples of a space, whose other paths may have layers of other models: `hidden@TASK` is
        then of all.

        Raises `PoolError` for wrong evidence, and for models that cannot be repaired.
        """
        self._models = Models(pool, setup, tasks)
        for expert in given:
            if expert not in pool.experts:
                raise PoolError(
                    f"`evidence` names `{expert}`, which is no expert of the pool; {nearest(expert, pool.experts)}"
                )
        # An expert without evidence is refused by the merge that needs it.
        own = {one: chosen(one, given.get(one), tasks) for one in pool.experts if one in given or one in tasks}
        every = ("base", *pool.experts)
        named = tuple(dict.fromkeys(model for recipe in recipes for model in recipe.models)) or every
        self._collectors: dict[str, Collector] = {}
        for kind in kinds:
            if kind == repairs.KIND:  # it reads the others
                continue
            name, _, task = kind.partition("@")
            of = every if searched and name == "hidden" else named
            judged = dict.fromkeys(of, shared(task, given, tasks)) if task else own
            self._collectors[kind] = collector(kind, self._models, judged)
        if repaired := list(dict.fromkeys(repair for recipe in recipes for repair in recipe.repairs)):
            examples = {task: shared(task, given, tasks)[1] for repair in repaired for task in tasks_of(repair)}
            self._collectors[repairs.KIND] = Repairs(repaired, self._models, examples, self.entries)
        folders: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
        for entry in self.entries:
            folders[entry.kind][entry.expert] = str(entry.folder)
        self.folders = folders
        pool.evidence = Collected(folders)

    @property
    def entries(self) -> list[Entry]:
        """The statistics, one of one model each."""
        return [entry for one in self._collectors.values() for entry in one.entries]

    @property
    def digests(self) -> dict[str, dict[str, str]]:
        """The key of each statistic, by kind and expert."""
        return {kind: {expert: Path(folder).name for expert, folder in of.items()} for kind, of in self.folders.items()}

    @property
    def left(self) -> list[Entry]:
        """Those that have not been collected."""
        return left(self.entries)

    def collect(self, console: Console) -> None:
        """Collect what is not in the cache, and show progress."""
        if not self.left:
            return
        live = self._models.load()
        for one in self._collectors.values():
            if rest := left(one.entries):
                one.collect(live, rest, console)
        cache.prune(cache.LIMIT, keep=[entry.folder for entry in self.entries])

    def price(self) -> dict[str, Price]:
        """Return what collecting the rest costs, by kind, measured on one example of one model."""
        if not self.left:
            return {}
        live = self._models.load()
        return {kind: one.price(live, rest) for kind, one in self._collectors.items() if (rest := left(one.entries))}
