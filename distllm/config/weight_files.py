"""The weight files of a Hugging Face folder, and whether two of its weights are tied. Imports no torch."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any, NamedTuple

from distllm.errors import IntegrityError
from distllm.fsio import read_json

_WHOLE = "model.safetensors"
_BLOCK = 2**20


class Alike(enum.Enum):
    """Which of two weights that may be tied a folder holds."""

    UNKNOWN = "no first, or no files that can be read"
    ALONE = "the first only"
    SAME = "both, of the same bytes"
    DIFFERENT = "both, of other bytes"


class _Place(NamedTuple):
    """Where a tensor's bytes are."""

    file: Path
    start: int
    size: int


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the model in ``folder``, by the rules of transformers.

    Other files next to these are ignored: an adapter, the same weights in another precision. In a folder
    without the usual names, all safetensors files are read.

    Raises:
        IntegrityError: the index of the files cannot be read.
    """
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    index = folder / f"{_WHOLE}.index.json"
    if index.is_file():
        parts = read_json(index).get("weight_map")
        if not (isinstance(parts, dict) and parts and all(isinstance(part, str) for part in parts.values())):
            raise IntegrityError(
                f"{index} does not say which file holds which weights",
                where=f"{index}: weight_map",
                remedy="copy the folder again, or save the model again with transformers",
            )
        return sorted({folder / Path(part).name for part in parts.values()})
    return sorted(folder.glob("*.safetensors"))


def holds_model(folder: Path) -> bool:
    """Whether a folder has the weights of a model under the usual names."""
    return (folder / _WHOLE).is_file() or (folder / f"{_WHOLE}.index.json").is_file()


def tensor_sizes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the size of each tensor in a safetensors file, by name.

    Raises:
        IntegrityError: its header cannot be read.
    """
    try:
        _, header = _header(file)
        return {name: tuple(said["shape"]) for name, said in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"a weight file cannot be read: {error}", where=str(file), remedy="get the folder again"
        ) from error


def alike_weights(folder: Path, first: str, second: str) -> Alike:
    """Compare the bytes of two weights of a folder.

    A damaged file is not reported here, but when its weights are read.
    """
    try:
        places = {name: place for file in weight_files(folder) for name, place in _places(file).items()}
    except (OSError, IntegrityError, ValueError, KeyError, TypeError, AttributeError):
        return Alike.UNKNOWN
    one, other = places.get(first), places.get(second)
    if one is None or other is None:
        return Alike.UNKNOWN if one is None else Alike.ALONE
    return Alike.SAME if one.size == other.size and _equal(one, other) else Alike.DIFFERENT


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Return the length of a safetensors file's header, and what it says."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("the header is cut off")
        return length, json.loads(stream.read(length))


def _places(file: Path) -> dict[str, _Place]:
    """Return where the tensors of a safetensors file are."""
    length, header = _header(file)
    return {
        name: _Place(
            file, 8 + length + said["data_offsets"][0], said["data_offsets"][1] - said["data_offsets"][0]
        )
        for name, said in header.items()
        if name != "__metadata__"
    }


def _equal(one: _Place, other: _Place) -> bool:
    with one.file.open("rb") as mine, other.file.open("rb") as theirs:
        mine.seek(one.start)
        theirs.seek(other.start)
        for offset in range(0, one.size, _BLOCK):
            block = min(_BLOCK, one.size - offset)
            if mine.read(block) != theirs.read(block):
                return False
    return True
