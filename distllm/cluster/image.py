"""The container image of a run: which file it was at submission, and whether it is still the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distllm.cluster.snapshot import Submission
from distllm.config.schema import Config
from distllm.errors import ConfigError
from distllm.fsio import digest_file


def is_file(image: str) -> bool:
    """Whether an image is a file, not an address in a registry."""
    return image.startswith((".", "/", "~")) or image.endswith((".sif", ".sqsh"))


def image_facts(config: Config) -> dict[str, Any]:
    """Return what a submission records about its image: a file's digest, or an address in a registry."""
    container = config.cluster.container
    if container.kind == "none" or container.image is None:
        return {}
    if not is_file(container.image):
        return {"image": {"address": container.image}}
    path = Path(container.image).expanduser().absolute()
    return {"image": {"file": str(path), **_looks(path), "digest": digest_file(path)}}


def describe_image(submission: Submission) -> str | None:
    """Check that the image is the one of the submission, and return its description; None without an image.

    Raises:
        ConfigError: the content of the file has changed since then.
    """
    image = submission.facts().get("image")
    if image is None:
        return None
    if "address" in image:
        return f"{image['address']} (the registry decides which version this is now)"
    path = Path(image["file"])
    same = path.exists() and _looks(path) == {"bytes": image["bytes"], "changed": image["changed"]}
    if not same and (not path.exists() or digest_file(path) != image["digest"]):
        raise ConfigError(
            f"the image {path} is not the one that was submitted: its digest was {image['digest']}",
            where="cluster.container.image",
            remedy="restore it, or submit the run again; give each build of an image its own name",
        )
    return f"{path}, digest {image['digest']}"


def _looks(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"bytes": stat.st_size, "changed": stat.st_mtime_ns}
