"""Header: `study.json`, which says what a study is: its settings, its identity, and the versions that started it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, field_validator

from evomerge import files
from evomerge.errors import StudyError
from evomerge.models import engine
from evomerge.parts import Parts, identity, versions
from evomerge.placement import describe as describe_device
from evomerge.placement import find
from evomerge.recipe import describe
from evomerge.settings import StudySettings

NAME = "study.json"


class Header(BaseModel):
    """The content of `study.json`."""

    format: Literal[1]
    settings: StudySettings
    identity: dict[str, Any]
    versions: dict[str, str]

    @field_validator("settings")
    @classmethod
    def _without_notices(cls, settings: StudySettings) -> StudySettings:
        """Leave out an address to post to: a directory may come from another person, and evomerge writes none."""
        return settings.model_copy(update={"notify": None})

    @field_validator("settings", mode="before")
    @classmethod
    def _without_mixtures(cls, settings: Any) -> Any:
        """Keep the references of a study from before there were mixtures: showing it scores nothing new."""
        report = settings.get("report") if isinstance(settings, dict) else None
        return settings if not isinstance(report, dict) else settings | {"report": {"mixtures": 0} | report}


def read(folder: Path) -> Header:
    """Return the header of the study in `folder`. Raises `StudyError` if there is none or it is damaged."""
    path = folder / NAME
    if folder.is_file():
        raise StudyError(
            f"{folder}: is a file; expected a study's directory, as `evomerge run {folder} -o DIR` makes it"
        )
    if not path.is_file():
        msg = f"{folder}: no study here (no study.json); start one with `evomerge run STUDY.yaml -o {folder}`"
        raise StudyError(msg)
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.resolve().is_relative_to(folder.resolve()):
            msg = f"{entry}: links to {entry.resolve()}, outside of the study, whose files are written to; put the file itself there"
            raise StudyError(msg)
    try:
        return Header.model_validate(json.loads(path.read_bytes()))
    except ValidationError as error:
        reason = describe(error, str(path), {"settings": tuple(StudySettings.model_fields)})
    except (ValueError, RecursionError) as error:
        reason = f"{path}: expected JSON ({error})"
    msg = f"{reason}; restore the file from a copy, install the evomerge that wrote it, or start a new study"
    raise StudyError(msg)


def write(folder: Path, settings: StudySettings, parts: Parts) -> None:
    """Write the header of a study into its `folder`."""
    header: dict[str, Any] = {
        "format": 1,
        "settings": settings.model_dump(mode="json"),
        "identity": identity(settings, parts),
        "versions": versions() | ({} if settings.engine is None else {"vllm": engine.version()}),
    }
    files.write(folder / NAME, json.dumps(header, indent=2) + "\n")  # unsorted: tasks have an order


def check_same(header: Header, settings: StudySettings, parts: Parts, folder: Path) -> None:
    """Raise `StudyError` with the differences, unless `settings` describe the study of this header, in `folder`.

    Digests that an older version did not record are not compared, nor is the name of the device: see `check_device`.
    """
    now = json.loads(json.dumps(identity(settings, parts)))
    for key in ("code_digests", "text_digests"):
        for name in now.get(key, {}).keys() - header.identity.get(key, {}).keys():
            del now[key][name]
        if not now.get(key, True):
            del now[key]
    then = dict(header.identity)
    for one in (then, now):
        if "device" in one:
            one["device"] = one["device"].partition(" ")[0]
    if now != then:
        lines = "\n".join(_differences(then, now, ""))
        msg = f"{folder}: not the study that was started here:\n{lines}\nundo the change, or start anew with the "
        msg += f"same settings in another directory: `evomerge resume {folder} --fork DIR`, or `evomerge run STUDY.yaml -o DIR`"
        raise StudyError(msg)


def check_device(header: Header, device: str, folder: Path) -> None:
    """Raise `StudyError` unless `device` has the name of the one that the study of this header in `folder` was started on.

    A study may be opened and looked at anywhere; it is only scored there. Raises `DeviceError` where there is no such device.
    """
    was, here = header.identity.get("device", "cpu"), describe_device(find(device))
    if was != here:
        msg = f"{folder}: was started on {was}, and the device here is {here}, whose scores differ in their last bits; go on where it was "
        msg += f"started, or start anew with the same settings here: `evomerge resume {folder} --fork DIR`"
        raise StudyError(msg)


def _differences(then: Any, now: Any, where: str) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted(then.keys() | now.keys()):
            yield from _differences(then.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif then != now:
        yield f"  {where}: was {json.dumps(then)}, is {json.dumps(now)}"
