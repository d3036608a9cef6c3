"""The errors that a user can mend: tools print them without a traceback and exit with code 2."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave is wrong; the message names the thing, its value and the remedy."""


class ConfigError(UserError):
    """One or more problems of a run's configuration, all reported at once."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        noun = "problem" if len(problems) == 1 else "problems"
        lines = [f"{len(problems)} {noun} in the configuration:", *(f"  - {problem}" for problem in problems)]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        """Pickled by its problems: the first rank's error is raised on the others too."""
        return ConfigError, (self.problems,)


class DataError(UserError):
    """Shards, images or captions that cannot be used."""


class LoaderError(UserError):
    """The processes that load the data cannot go on."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another run."""


class PeerFailedError(Exception):
    """Another rank failed, and says why itself: this one ends with code 1."""
