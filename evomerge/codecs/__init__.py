"""Codecs: many experts of one base stored in little space, each of which can be decoded again.

Unlike a merge, which is one model, an artefact decodes to another model for every expert. `make` returns a codec of `CODECS`
by name, `encode` writes a pool as an artefact folder, `Artefact` reads one, `compress` also measures what is lost.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from evomerge.codecs.artefact import CODECS, Artefact, encode
from evomerge.codecs.codec import Codec
from evomerge.codecs.compression import Compression, Loss, compress
from evomerge.errors import RecipeError, nearest
from evomerge.recipe import describe

__all__ = ["CODECS", "Artefact", "Codec", "Compression", "Loss", "compress", "encode", "make"]


def make(name: str, parameters: Mapping[str, Any] | None = None) -> Codec:
    """Return the codec `name` with these parameters and defaults for the others. Raises `RecipeError`."""
    if name not in CODECS:
        raise RecipeError(f"no codec `{name}`; {nearest(name, CODECS)}")
    schema = CODECS[name]
    names = [field.alias or key for key, field in schema.model_fields.items()]
    try:
        return schema.model_validate(dict(parameters or {}))
    except ValidationError as error:
        raise RecipeError(describe(error, f"codec `{name}`", {"": names})) from None
