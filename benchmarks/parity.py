"""Are the scores the same wherever the weights are? Every method, on every place, beside a model here.

Each line says how far a place's scores are from those of the same model here, and what was asked of the place.
Quantised weights are compared with plain PyTorch on the same quantised model, or with a model of plain weights that are
the quantised ones. The last run's lines are kept in ``docs/parity.json``, from which the documentation makes its page;
running some places replaces theirs only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import whence
from benchmarks.parity_models import NAMES, make_models
from whence.core.contract import PLACES as GIVEN
from whence.models.traffic import Traffic

EPILOG = """examples:
  python -m benchmarks.parity
  python -m benchmarks.parity --places here nf4 --methods saliency
  python -m benchmarks.parity --write docs/parity.json
  python -m benchmarks.parity --make-models /tmp/models
  scripts/ndif_stack.sh run /tmp/ndif /tmp/models/gpt2 /tmp/models/llama -- \\
      python -m benchmarks.parity --models /tmp/models --places ndif --write docs/parity.json
"""
PROMPT = "the cat sat on the mat because"
CONTINUATION = [15, 9, 21, 30]
GENERATE = {"max_new_tokens": 4}

# Every method of the library, with a call that is cheap and gives scores on every model: what places, and the tests of
# all methods, are compared with. A test holds this table to the registry.
CALLS: dict[str, dict[str, Any]] = {
    "alti": {},
    "alti_logit": {},
    "attention": {},
    "attention_rollout": {},
    "contextcite": {"segments": "word"},
    "deeplift": {"baseline": "mean", "keep": "none"},
    "direct_logit": {},
    "discretized_integrated_gradients": {"n_anchors": 8, "n_neighbors": 20, "baseline": "mean", "keep": "none"},
    "flashtrace": {},
    "gradient_shap": {"n_samples": 8, "stdev": 0.1, "baseline": ["mean", 11], "keep": "none"},
    "information_flow": {},
    "input_x_gradient": {},
    "integrated_gradients": {"n_steps": 16, "baseline": "mean", "keep": "none"},
    "jacobian_scope": {"scope": "temperature"},
    "kernel_shap": {"n_samples": 64, "baseline": "mean", "keep": "none"},
    "lime": {"n_samples": 32, "baseline": "mean", "keep": "none"},
    "loo_segments": {"segments": "word"},
    "none": {"step_scores": ["logprob"]},
    "occlusion": {"baseline": "mean", "keep": "none"},
    "reagent": {"n_rounds": 8},
    "saliency": {},
    "sequential_integrated_gradients": {"baseline": "mean", "keep": "none"},
    "shapley_sampling": {"n_permutations": 4, "baseline": "mean", "keep": "none"},
    "smoothgrad": {"n_samples": 4},
    "squaregrad": {"n_samples": 4},
    "value_norms": {},
    "value_zeroing": {},
    "vargrad": {"n_samples": 4},
}
PLACES = ("here", "nf4", "int8", "loopback", "server", "ndif", "petals")
# (model, place): why there is no line. None of these is for want of trying.
ABSENT = {
    ("t5", "ndif"): "NDIF loads models as text-generation pipelines, which transformers has for decoders only",
    ("t5", "petals"): "Petals serves decoders only",
    ("gpt2", "petals"): "Petals serves Llama, Mixtral, Falcon and BLOOM",
}
QUANTISED = ("nf4", "int8")
# Methods of which tests/slow_reference.py or tests/deeplift_reference.py has an implementation in plain PyTorch that
# runs on any weights.
UNTRACED = ("deeplift", "input_x_gradient", "integrated_gradients", "saliency")
# Largest difference that a place may make: rounding, which grows with the numbers where they are larger than 1.
TOLERANCE = 1e-5


def absent(model: str, place: str, method: str) -> str:
    """Why there is no line of a method on a model in a place, or nothing.

    Args:
        model: One of the models.
        place: One of `PLACES`.
        method: A method.
    """
    if (model, place) in ABSENT:
        return ABSENT[model, place]
    if place == "petals" and not whence.METHODS[method].needs <= GIVEN["petals"]:
        return "it needs values inside of blocks, which the servers of a swarm keep"
    if place == "here" and method not in UNTRACED:
        return "held against an implementation of its own in plain PyTorch, in tests/methods"
    if place == "int8" and method not in UNTRACED:
        return "LLM.int8() rounds activations as well, so that no model of plain weights computes the same"
    return ""


@dataclass(frozen=True)
class Line:
    """One method on one model in one place.

    Attributes:
        model: The model.
        method: The method.
        place: The place.
        difference: Largest absolute difference of a score.
        size: Largest absolute score.
        requests: Requests sent for generation and attribution.
        sent: Bytes of payload sent.
        received: Bytes of results received.
        seconds: How long it took.
    """

    model: str
    method: str
    place: str
    difference: float
    size: float
    requests: int
    sent: int
    received: int
    seconds: float

    @property
    def differs(self) -> bool:
        """Whether the difference is more than rounding."""
        return not self.difference <= TOLERANCE * max(self.size, 1.0)


def measure(name: str, folder: Path, place: str, methods: list[str]) -> list[Line]:
    """Compare all methods on one model in one place.

    Args:
        name: The model.
        folder: Its checkpoint.
        place: One of `PLACES`.
        methods: Which methods.

    Returns:
        A line per method.
    """
    lines = []
    with opened(folder, place) as model:
        # Servers of Petals have no fused attention, so the comparison has none either.
        attention = {"attn_implementation": "eager"} if place == "petals" else {}
        here = whence.load(folder, device="cpu", **attention)
        transport = getattr(model.remote, "transport", None) or getattr(model.nn._module, "swarm", None)
        traffic = getattr(transport, "traffic", Traffic())
        plain = plain_weights(model, folder) if place == "nf4" else here
        for method in methods:
            if absent(name, place, method):
                continue
            options = {"progress": False, **call_of(method)}
            before = astuple(traffic)
            start = time.perf_counter()
            if place in ("here", *QUANTISED):
                found = model.attribute(PROMPT, CONTINUATION, **options)
            else:
                found = model.attribute(PROMPT, generate=GENERATE, **options)
            seconds = time.perf_counter() - start
            costs = [b - a for a, b in zip(before, astuple(traffic), strict=True)]
            if place in ("here", *QUANTISED) and method in UNTRACED:
                expected = untraced(model, method).ravel()
            elif place in QUANTISED:
                expected = numbers(plain.attribute(PROMPT, CONTINUATION, **options))
            else:
                expected = numbers(here.attribute(PROMPT, generate=GENERATE, **options))
            difference = float(np.nanmax(np.abs(numbers(found) - expected)))
            size = float(np.nanmax(np.abs(expected)))
            lines.append(Line(name, method, place, difference, size, *costs, seconds))
    return lines


def call_of(method: str) -> dict[str, Any]:
    """The call of a method that everything is compared with, its target included where it takes any."""
    target = {"target": "logprob"} if whence.METHODS[method].targets is None else {}
    return {"method": method, **target, **CALLS[method]}


def numbers(out: whence.Attribution) -> np.ndarray:
    """The scores, and after them the step scores."""
    return np.concatenate([out.scores.values.ravel(), *out.step_scores.values()])


def plain_weights(model: whence.Model, folder: Path) -> whence.Model:
    """A model of plain weights that are the 4-bit ones of another.

    Args:
        model: The quantised model.
        folder: The checkpoint that it was made from.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit

    plain = whence.load(folder, device="cpu")
    with torch.no_grad():
        for path, module in model.nn._module.named_modules():
            if type(module).__name__ == "Linear4bit":
                weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
                other = plain.nn._module.get_submodule(path)
                # GPT-2's layers hold their weights the other way round.
                other.weight.copy_(weight.T if type(other).__name__ == "Conv1D" else weight)
    return plain


@contextlib.contextmanager
def opened(folder: Path, place: str) -> Iterator[Any]:
    """The model in a place, for the ``with`` block."""
    if place == "here":
        yield whence.load(folder, device="cpu")
    elif place in QUANTISED:
        yield whence.load(folder, device="cpu", dtype=place)
    elif place == "loopback":
        from tests.places.loopback import Loopback
        from whence.models.ndif.loading import load_ndif

        answering = whence.load(folder, device="cpu")
        yield load_ndif(str(folder), transport=Loopback(answering.nn._module, answering.tokenizer, str(folder)))
    elif place == "server":
        from tests.places.server_process import serve

        with tempfile.TemporaryDirectory() as environment, serve(Path(environment), folder) as server:
            yield whence.load(folder, remote=server.url)
    elif place == "ndif":
        yield whence.load(folder, remote=os.environ["WHENCE_NDIF_HOST"])
    else:
        peers = os.environ["WHENCE_PETALS_PEERS"].split()
        prefix = os.environ["WHENCE_PETALS_PREFIX"]
        model = whence.load(folder, remote="petals", peers=peers, dht_prefix=prefix)
        try:
            yield model
        finally:
            model.nn._module.swarm.close()


def untraced(model: whence.Model, method: str) -> np.ndarray:
    """The scores by plain PyTorch on the same model, with hooks and without a tracer."""
    from tests.deeplift_reference import deeplift
    from tests.slow_reference import embedding_modules, whole_text_attribution

    hf = model.nn._module
    prompt = model.encode(PROMPT)
    means = [module.weight.detach().float().mean(0) for module in embedding_modules(hf)]
    if hasattr(whence.METHODS[method], "removal"):
        return perturbed(hf, prompt, method, means)
    if method == "deeplift":
        scores = deeplift(hf, list(prompt.ids), CONTINUATION, target="logprob", baselines=means, keep_start=False)
        return scores.numpy()
    return whole_text_attribution(
        hf,
        list(prompt.ids),
        CONTINUATION,
        method=method,
        target="logprob",
        baselines=means,
        n_steps=CALLS[method].get("n_steps", 1),
    ).numpy()


def perturbed(hf: Any, prompt: Any, method: str, means: list[Any]) -> np.ndarray:
    """The same, of a method that removes tokens: its own arithmetic on values of plain PyTorch."""
    from tests.perturbed import plain_game

    kind = whence.METHODS[method]
    # Every word of the prompt is one token.
    made = kind(
        **{name: value for name, value in CALLS[method].items() if name not in ("baseline", "keep", "segments")}
    )
    sides = kind.defaults.get("sides", ("source", "prefix"))
    special = [k for k, token in enumerate(prompt.tokens("source")) if token.special]
    game = plain_game(
        hf,
        list(prompt.ids),
        CONTINUATION,
        means,
        removal=made.removal,
        span=kind.defaults.get("steps") == "whole",
        sides=sides,
        fixed=[] if CALLS[method].get("keep") == "none" else special,
    )
    return np.where(game.defined, made(game).scores, np.nan)[0]


def possible(place: str) -> str:
    """Why a place cannot be reached from here, or nothing."""
    needed = {"ndif": "WHENCE_NDIF_HOST", "petals": "WHENCE_PETALS_PEERS"}.get(place, "")
    script = {"ndif": "scripts/ndif_stack.sh", "petals": "scripts/petals_swarm.sh"}.get(place, "")
    return f"{needed} is not set; {script} starts one" if needed and needed not in os.environ else ""


def table(lines: list[Line]) -> str:
    """The lines for people, as a Markdown table."""
    rows = [
        (
            "model",
            "method",
            "place",
            "difference",
            "largest score",
            "requests",
            "bytes sent",
            "bytes returned",
            "seconds",
        )
    ]
    for line in lines:
        counts = [str(n) if line.requests else "" for n in (line.requests, line.sent, line.received)]
        numbers = [f"{line.difference:.1e}", f"{line.size:.2f}", *counts, f"{line.seconds:.2f}"]
        rows.append((line.model, f"`{line.method}`", line.place, *numbers))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([shown[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *shown[1:]])


def merged(path: Path, lines: list[Line]) -> dict[str, Any]:
    """The kept lines with those of this run in their place."""
    kept = json.loads(path.read_text(encoding="utf-8"))["lines"] if path.exists() else []
    new = {(line.model, line.method, line.place): asdict(line) for line in lines}
    every = {(one["model"], one["method"], one["place"]): one for one in kept} | new
    order = {place: number for number, place in enumerate(PLACES)}
    rows = sorted(every.values(), key=lambda one: (NAMES.index(one["model"]), order[one["place"]], one["method"]))
    packages = ("whence", "torch", "transformers", "nnsight", "bitsandbytes")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "lines": rows,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parity",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--methods", nargs="+", choices=list(CALLS), default=list(CALLS))
    parser.add_argument("--models", type=Path, help="folder with the checkpoints (default: made for this run)")
    parser.add_argument("--make-models", type=Path, metavar="DIR", help="write the checkpoints and stop")
    parser.add_argument("--write", type=Path, help="keep the lines in this file")
    asked = parser.parse_args(arguments)
    if asked.make_models is not None:
        for name, where in make_models(asked.make_models).items():
            print(f"{name}: {where}")
        return 0
    import torch

    # The last digits of a sum depend on the number of threads.
    torch.set_num_threads(1)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = make_models(Path(scratch)) if asked.models is None else {name: asked.models / name for name in NAMES}
        for place in asked.places:
            if reason := possible(place):
                print(f"{place}: not run, {reason}", file=sys.stderr)
                continue
            for name in NAMES:
                if (name, place) not in ABSENT:
                    lines += measure(name, folders[name], place, asked.methods)
    print(table(lines))
    if asked.write is not None:
        asked.write.write_text(json.dumps(merged(asked.write, lines), indent=1) + "\n", encoding="utf-8")
    worse = [line for line in lines if line.differs]
    for line in worse:
        print(f"{line.model} {line.method} {line.place}: differs by more than rounding", file=sys.stderr)
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
