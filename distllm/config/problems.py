"""Collecting all problems of a configuration, to raise them as one error."""

from __future__ import annotations

from collections.abc import Iterable

from distllm.errors import ConfigError, ConfigProblems, DistllmError, calling_line


class Problems:
    """A list of configuration problems that becomes one error.

    Attributes:
        found: the problems, in the order in which they were noted.
        suspects: keys with unreliable values (wrong, or probably meant by a mistyped key); checks of
            combinations skip them, because their problems would only be consequences.
    """

    def __init__(self) -> None:
        self.found: list[ConfigError] = []
        self.suspects: set[str] = set()

    def add(self, cause: str, *, where: str, remedy: str) -> None:
        """Add one problem: what is wrong, at which key or file, and what to do."""
        self._note(cause, where, remedy)

    def pass_on(self, error: DistllmError, *, where: str, remedy: str) -> None:
        """Add an error that was raised, with another place and remedy."""
        self.found.append(error.recast(ConfigError, where=where, remedy=remedy))

    def check(self, holds: bool, cause: str, *, keys: Iterable[str], remedy: str) -> None:
        """Add a problem with a combination of ``keys`` unless it ``holds``, or one of them is suspect."""
        involved = list(keys)
        if not holds and not self.suspects.intersection(involved):
            self._note(cause, ", ".join(involved), remedy)

    def _note(self, cause: str, where: str, remedy: str) -> None:
        problem = ConfigError(cause, where=where, remedy=remedy)
        problem.made_at = calling_line(2)
        self.found.append(problem)

    def __len__(self) -> int:
        return len(self.found)

    def raise_if_any(self) -> None:
        """Raise ConfigProblems with everything noted so far, or do nothing."""
        if self.found:
            raise ConfigProblems(self.found)
