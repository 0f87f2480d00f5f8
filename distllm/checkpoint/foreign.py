"""Files in a checkpoint that its manifest does not list, and whether they are pickles. Imports no torch.

The loader opens only files that the manifest lists, and reads only safetensors and JSON. Other tools are less
careful, so a pickle that somebody has put there, which could run code, is reported.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from distllm.checkpoint.format import MANIFEST, MARKER, listed_files

_PICKLE_PROTOCOLS = range(2, 6)
_PICKLE_OPCODE = 0x80


def foreign_files(path: Path) -> list[tuple[Path, str]]:
    """Return the files of the committed checkpoint ``path`` that distllm did not write, and what each is.

    Raises:
        CheckpointError: its manifest is not what was committed.
    """
    ours = {MANIFEST, MARKER, *listed_files(path)}
    strange = [file for file in sorted(path.rglob("*")) if str(file.relative_to(path)) not in ours]
    return [(file, _what(file)) for file in strange if not file.is_dir()]


def _what(file: Path) -> str:
    if file.is_symlink():
        return f"a link to {file.readlink()}"
    return (
        "a pickle, which can run any code when it is loaded" if holds_pickle(file) else "not in the manifest"
    )


def holds_pickle(file: Path) -> bool:
    """Whether a file is a pickle, or an archive (such as torch.save writes) that holds one."""
    with file.open("rb") as stream:
        start = stream.read(2)
    if len(start) == 2 and start[0] == _PICKLE_OPCODE and start[1] in _PICKLE_PROTOCOLS:
        return True
    if not zipfile.is_zipfile(file):
        return file.suffix in (".pkl", ".pickle")
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith((".pkl", ".pickle")) for name in archive.namelist())
