"""Exchange: recipes of other tools. mergekit's configurations come in by `read`, and go out by `write`.

mergekit itself is not needed: its files are read as data.
"""

from pathlib import Path

from evomerge.exchange.documents import parse, read_all
from evomerge.exchange.genome import ImportedStudy, is_genome, read_genome
from evomerge.exchange.methods import Note
from evomerge.exchange.reading import Imported, Reader
from evomerge.exchange.writing import Exported, write

__all__ = ["Exported", "Imported", "ImportedStudy", "Note", "read", "write"]


def read(path: Path, *, exact: bool = False) -> Imported | ImportedStudy:
    """Return what a configuration of mergekit says as a recipe, or one of mergekit-evolve as a study.

    With `exact`, mergekit's definitions are taken where there are options for them. Folders are relative to the current
    folder, as in mergekit, or to that of the file. No tensor is read, only the names of the base's. Raises `RecipeError` for
    whatever has no meaning here.
    """
    data = read_all(path)
    if is_genome(data):
        return read_genome(data[0], path, exact=exact)
    return Reader(parse(data, str(path)), str(path), path.parent, exact=exact).imported()
