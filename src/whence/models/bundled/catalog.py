"""The bundled models by name."""

from __future__ import annotations

from pathlib import Path

from whence.core.errors import unknown_name

_SUMMARIES = {
    "stories": "Llama decoder, 4 layers, 0.6 M parameters: short English stories with planted facts",
    "en-it": "Marian encoder-decoder, 2+2 layers, 1.1 M parameters: English to Italian, gender and number",
}
NAMES: tuple[str, ...] = tuple(_SUMMARIES)


def plain_name(name: str) -> str:
    """Check the name of a bundled model, and drop the optional `whence/` before it.

    Args:
        name: Such as "stories" or "whence/stories".

    Returns:
        The name without its prefix.

    Raises:
        UnknownNameError: When no model has this name.
    """
    plain = name.removeprefix("whence/")
    if plain not in NAMES:
        known = NAMES if plain == name else tuple(f"whence/{one}" for one in NAMES)
        raise unknown_name("bundled model", name, known)
    return plain


def path(name: str) -> Path:
    """Find the folder of a shipped checkpoint.

    Args:
        name: "stories" or "en-it", with or without "whence/" in front.

    Returns:
        A folder that `from_pretrained` of transformers can read.

    Raises:
        UnknownNameError: When no model has this name.
    """
    return Path(__file__).parent / "checkpoints" / plain_name(name)


def summary(name: str) -> str:
    """Describe a shipped model in one line.

    Args:
        name: "stories" or "en-it", with or without "whence/" in front.

    Returns:
        Architecture, size and purpose.

    Raises:
        UnknownNameError: When no model has this name.
    """
    return _SUMMARIES[plain_name(name)]
