"""The container image of a run: which file it was when the run was submitted, and whether it still is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distllm.cluster.snapshot import Submission
from distllm.config.schema import Config
from distllm.errors import ConfigError
from distllm.fsio import digest_file


def is_file(image: str) -> bool:
    """Whether an image is a file, and not an address of a registry."""
    return image.startswith((".", "/", "~")) or image.endswith((".sif", ".sqsh"))


def image_facts(config: Config) -> dict[str, Any]:
    """Return what a submission keeps of its image: the digest of a file, the address of another."""
    container = config.cluster.container
    if container.kind == "none" or container.image is None:
        return {}
    if not is_file(container.image):
        return {"image": {"address": container.image}}
    path = Path(container.image).expanduser().absolute()
    return {"image": {"file": str(path), **_looks(path), "digest": digest_file(path)}}


def describe_image(submission: Submission) -> str | None:
    """Return the image in words, after making sure that it is the one of the submission; None without one.

    Raises:
        ConfigError: the file has another content by now.
    """
    image = submission.facts().get("image")
    if image is None:
        return None
    if "address" in image:
        return f"{image['address']} (the registry says which version it is now)"
    path = Path(image["file"])
    same = path.exists() and _looks(path) == {"bytes": image["bytes"], "changed": image["changed"]}
    if not same and (not path.exists() or digest_file(path) != image["digest"]):
        raise ConfigError(
            f"the image {path} is not the one that was submitted: its digest was {image['digest']}",
            where="cluster.container.image",
            remedy="put it back, or submit the run again; give each build of an image a name of its own",
        )
    return f"{path}, digest {image['digest']}"


def _looks(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"bytes": stat.st_size, "changed": stat.st_mtime_ns}
