"""Everything that whence raises on purpose.

* WhenceError
  - InputError                 the prompt, continuation, ids, options or batch cannot be used as given
    - TargetIndependentOfInput ... and the target does not depend on what is to be explained
  - UnknownNameError           no method, step function, site, model or option of that name
  - UnsupportedError           this model, or this place, cannot do what the method needs
  - ModelError                 the model itself cannot be used: unknown family, no tokenizer, bad weights
  - NonFiniteScore             a score that must be a number is not
  - CheckFailed                an identity did not hold and ``strict=True``
  - FileFormatError            a saved file that cannot be read
  - RemoteError                a model that runs elsewhere could not answer
    - SwarmError               ... and it runs in a Petals swarm
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WhenceError(Exception):
    """Base class of all errors that whence raises on purpose."""


class InputError(WhenceError):
    """The prompt, the continuation, the ids or an option cannot be used as given."""


class TargetIndependentOfInput(InputError):  # noqa: N818 - the specification's name
    """The target is a constant of the input that is explained, so its scores would all be 0."""


class UnknownNameError(WhenceError):
    """A name that is not registered; the message lists the nearest valid ones."""


class UnsupportedError(WhenceError):
    """A method needs something that this model, or the place where it runs, cannot give."""


class ModelError(WhenceError):
    """The model cannot be used: unknown architecture, missing tokenizer, non-finite weights."""


class NonFiniteScore(WhenceError):  # noqa: N818 - the specification's name
    """A score that is defined came out as NaN or infinite."""


class CheckFailed(WhenceError):  # noqa: N818 - the specification's name
    """A method's identity did not hold, and ``strict=True`` was asked for."""


class FileFormatError(WhenceError):
    """A saved file is damaged, or was written by a newer version of the format."""


class RemoteError(WhenceError):
    """A model that runs elsewhere could not answer; the message ends with the server's last line.

    Attributes:
        details: All that the server said, such as its traceback.
    """

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class SwarmError(RemoteError):
    """A Petals swarm could not answer: no server holds a block, or none answered in time."""


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """Build the error for a name that does not exist, with the nearest names that do.

    Args:
        kind: What the name should have named, such as ``"method"``.
        name: The name as the user gave it.
        known: Every valid name.
        hint: A closing sentence, such as where to list the valid names.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    text = f"unknown {kind} {name!r}."
    if near:
        text += f" Did you mean {' or '.join(repr(n) for n in near)}?"
    shown = names if len(names) <= 30 else [*names[:30], f"... ({len(names)} in all)"]
    text += f" Known: {', '.join(shown)}."
    return UnknownNameError(f"{text} {hint}".rstrip())
