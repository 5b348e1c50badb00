"""Attributions in one JSON file: readable headers, and every array in one safetensors payload.

The file is a JSON object with ``format``, ``format_version``, ``sha256`` and ``content``; the content holds
the headers of all attributions and, as base64, the arrays. Nothing in a file is ever executed or imported.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from secrets import token_hex
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as unpack
from safetensors.numpy import save as pack

from whence.core.errors import FileFormatError, InputError, WhenceError
from whence.core.tokens import Token
from whence.scores.array import Axis, Scores
from whence.scores.attribution import Attribution, Check
from whence.scores.attributions import Attributions
from whence.scores.inseq_file import from_inseq, is_inseq
from whence.scores.plain import plain

FORMAT = "whence/attribution"
FORMAT_VERSION = 1

# pydantic's own str refuses lone surrogates, which byte-level tokenizers can produce.
Text = InstanceOf[str]
Number = float | Literal["nan", "inf", "-inf"]


class _Header(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Axis(_Header):
    name: Text
    labels: list[Text]


class _Token(_Header):
    id: int
    text: Text
    start: int | None
    stop: int | None
    side: Literal["source", "prefix"]
    segment: Text
    special: bool
    fixed: bool
    ids: list[int]

    def token(self) -> Token:
        return Token(**{**self.model_dump(), "ids": tuple(self.ids)})


class _Check(_Header):
    name: Text
    value: Number
    tolerance: Number | None
    passed: bool | None
    note: Text

    def check(self) -> Check:
        return Check(**self.model_dump())


class _Extra(_Header):
    name: Text
    axes: list[_Axis]


class _Attribution(_Header):
    axes: list[_Axis]
    tokens: list[_Token]
    steps: list[_Token]
    step_scores: list[Text]
    checks: list[_Check]
    info: dict[Text, Any]
    extras: list[_Extra]


class _Content(_Header):
    attributions: list[_Attribution]
    arrays: Annotated[str, Field(description="safetensors bytes as base64")]


class _File(_Header):
    format: Literal["whence/attribution"]
    format_version: int
    sha256: Text
    content: _Content


def write(attributions: Iterable[Attribution], path: str | os.PathLike[str]) -> None:
    """Write attributions to one file: entirely, or not at all. An existing file is replaced.

    Args:
        attributions: What to write.
        path: Name of the file; compressed when it ends in ``.gz``.

    Raises:
        InputError: The path is a folder, or lies in a folder that does not exist.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot save to {target}: it is a folder; name a file in it, such as out.json.")
    if not target.parent.is_dir():
        raise InputError(f"cannot save to {target}: the folder {target.parent} does not exist.")
    headers, arrays = [], {}
    for k, item in enumerate(attributions):
        headers.append(_header(item))
        arrays[f"{k}.scores"] = item.scores.values
        arrays[f"{k}.step_scores"] = _stacked(item)
        arrays |= {f"{k}.extras.{place}": one.values for place, one in enumerate(item.extras.values())}
    # safetensors writes the buffer as it lies in memory, whatever the strides say.
    payload = pack({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    content = {"attributions": headers, "arrays": base64.b64encode(payload).decode()}
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "sha256": _digest(content)}
    data = _encode({**head, "content": content})
    if target.name.endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    _replace(target, data)


def read(path: str | os.PathLike[str]) -> Attributions:
    """Read every attribution in a file of whence's, or in one of Inseq's.

    Raises:
        InputError: There is no such file.
        FileFormatError: The file is damaged, or was written by a newer version of the format.
    """
    target = Path(path)
    if not target.is_file():
        raise InputError(f"cannot load {target}: {'it is a folder' if target.is_dir() else 'no such file'}.")
    raw = target.read_bytes()
    try:
        return _parsed(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        _refuse(target, f"{where}: {first['msg']}")
    except (OSError, EOFError, zlib.error) as error:
        _refuse(target, f"the compressed data is damaged ({error})")
    except SafetensorError as error:
        _refuse(target, f"the arrays cannot be read ({error})")
    except (ValueError, RecursionError) as error:
        _refuse(target, f"this is not the JSON of an attribution ({error})")
    except WhenceError as error:
        _refuse(target, str(error))


def read_one(path: str | os.PathLike[str]) -> Attribution:
    """Read the only attribution in a file.

    Raises:
        InputError: There is no such file.
        FileFormatError: The file is damaged, of a newer format, or holds several attributions.
    """
    found = read(path)
    if len(found) != 1:
        _refuse(Path(path), f"it holds {len(found)} attributions; use Attributions.load")
    return found[0]


def _refuse(path: Path, why: str) -> NoReturn:
    raise FileFormatError(f"cannot load {path}: {why.rstrip('.')}.") from None


def _parsed(raw: bytes) -> Attributions:
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    constants: list[str] = []

    def noted(name: str) -> float:
        constants.append(name)
        return float(name)

    found = json.loads(raw.decode("utf-8", "surrogatepass"), parse_constant=noted)
    if is_inseq(found):
        return from_inseq(found)
    if constants:
        raise FileFormatError(f"this is not the JSON of an attribution ({constants[0]} is not JSON)")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FileFormatError(f"it is not a file of format {FORMAT!r}")
    version = found.get("format_version")
    if type(version) is not int or version < 1:
        raise FileFormatError(f"its format version is {version!r}, not a positive number")
    if version > FORMAT_VERSION:
        raise FileFormatError(
            f"written by format version {version}, this whence reads up to {FORMAT_VERSION}; upgrade whence"
        )
    content = _File.model_validate(found).content
    if _digest(found["content"]) != found["sha256"]:
        raise FileFormatError("its content does not match its checksum: it was changed after it was written")
    arrays = unpack(base64.b64decode(content.arrays, validate=True))
    wanted = [f"{k}.{part}" for k, header in enumerate(content.attributions) for part in _parts(header)]
    if sorted(arrays) != sorted(wanted):
        odd = sorted(set(arrays) ^ set(wanted))
        raise FileFormatError(f"arrays missing or unknown: {', '.join(odd)}")
    if odd := [name for name in wanted if arrays[name].dtype != np.float32]:
        raise FileFormatError(f"array {odd[0]!r} is {arrays[odd[0]].dtype}, not float32")
    return Attributions(
        tuple(
            _attribution(header, *(arrays[f"{k}.{part}"] for part in _parts(header)))
            for k, header in enumerate(content.attributions)
        )
    )


def _parts(header: _Attribution) -> list[str]:
    return ["scores", "step_scores", *(f"extras.{place}" for place in range(len(header.extras)))]


def _header(item: Attribution) -> dict[str, Any]:
    return {
        "axes": _axes(item.scores),
        "tokens": [plain(vars(token)) for token in item.tokens],
        "steps": [plain(vars(token)) for token in item.steps],
        "step_scores": list(item.step_scores),
        "checks": [plain(vars(check)) for check in item.checks],
        "info": plain(item.info),
        "extras": [{"name": name, "axes": _axes(one)} for name, one in item.extras.items()],
    }


def _axes(scores: Scores) -> list[dict[str, Any]]:
    return [{"name": axis.name, "labels": list(axis.labels)} for axis in scores.axes]


def _scores(values: np.ndarray, axes: list[_Axis]) -> Scores:
    return Scores(values, tuple(Axis(axis.name, tuple(axis.labels)) for axis in axes))


def _stacked(item: Attribution) -> np.ndarray:
    """Step scores as one array, so that their names, which may be any text, stay in the header."""
    rows = list(item.step_scores.values())
    return np.stack(rows) if rows else np.empty((0, len(item.steps)), dtype=np.float32)


def _attribution(header: _Attribution, scores: np.ndarray, step_scores: np.ndarray, *extras: np.ndarray) -> Attribution:
    if len({one.name for one in header.extras}) < len(header.extras):
        raise FileFormatError("two extras have the same name")
    if len(set(header.step_scores)) < len(header.step_scores):
        raise FileFormatError("two step scores have the same name")
    if step_scores.shape != (len(header.step_scores), len(header.steps)):
        raise FileFormatError(
            f"step scores have shape {step_scores.shape}, but the header names {len(header.step_scores)} "
            f"for {len(header.steps)} steps"
        )
    return Attribution(
        scores=_scores(scores, header.axes),
        tokens=tuple(token.token() for token in header.tokens),
        steps=tuple(token.token() for token in header.steps),
        step_scores=dict(zip(header.step_scores, step_scores, strict=True)),
        checks=tuple(check.check() for check in header.checks),
        info=header.info,
        extras={one.name: _scores(values, one.axes) for one, values in zip(header.extras, extras, strict=True)},
    )


def _encode(value: Any, **options: Any) -> bytes:
    """JSON in which every text reads back exactly.

    Lone surrogates are escaped. A high one before a low one is the exception: escaped side by side they
    would read back as one character, so the second is written raw.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_scalar, **options)
    text = re.sub("(?<![\ud800-\udbff])[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.encode("utf-8", "surrogatepass")


def _digest(content: Any) -> str:
    """Checksum of the content, whatever the order of keys and the white space in the file."""
    return hashlib.sha256(_encode(content, sort_keys=True, separators=(",", ":"))).hexdigest()


def _scalar(value: Any) -> Any:
    """Numpy's numbers as Python's: token ids come from arrays."""
    if isinstance(value, np.generic):
        return value.item()
    raise InputError(f"cannot save a {type(value).__name__}: {value!r}.")


def _replace(target: Path, data: bytes) -> None:
    """Write beside the target, then rename: no reader ever sees half a file."""
    target = target.resolve()
    part = target.with_name(f".{target.name[:50]}.{token_hex(6)}.part")
    try:
        part.write_bytes(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
