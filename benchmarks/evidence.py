"""Do methods find the words that decide? Measured on texts where it is known which words do.

The bundled models were trained on texts from grammars that mark, for every determined word of a continuation,
the earlier words that decide it. For each determined token of held-out texts, the tokens that the step can see
(special and fixed ones left out) are ranked by their score, highest first, and the rank of the best evidence
token is noted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import whence
from benchmarks.ranking import Interval, gold_rank, mean_reciprocal_rank, top_share
from benchmarks.report import written
from whence.core.progress import Progress
from whence.models import bundled

EPILOG = """examples:
  python -m benchmarks.evidence
  python -m benchmarks.evidence --model whence/stories --examples 20 --methods saliency
  python -m benchmarks.evidence --write README.md --json evidence.json
"""
BASELINES = ("nearest", "random")
MODELS = tuple(f"whence/{name}" for name in bundled.NAMES)
# What all methods are asked alike, whatever is usual for one of them: a score for every token and every step.
ALIKE = {"segments": "token", "sides": ("source", "prefix"), "progress": False}

# Ranks need fewer points and draws than small gaps and standard errors do.
LIGHTER = {
    "discretized_integrated_gradients": {"n_anchors": 10},
    "integrated_gradients": {"n_steps": 20},
    "kernel_shap": {"n_samples": 512},
    "lime": {"n_samples": 256},
    "shapley_sampling": {"n_permutations": 8},
    "smoothgrad": {"n_samples": 10},
    "squaregrad": {"n_samples": 10},
    "vargrad": {"n_samples": 10},
}


def scoring_methods() -> list[str]:
    """The methods that have scores to rank."""
    return [name for name in whence.METHODS if name != "none"]


@dataclass(frozen=True)
class Figures:
    """What one method reached on one model.

    Attributes:
        model: The bundled model.
        method: The method, or a baseline: ``"nearest"`` ranks the tokens nearest to the step first,
            ``"random"`` draws an order.
        tokens: How many determined tokens were explained.
        top1: Share whose best-ranked token is evidence.
        top3: Share with evidence among the best three.
        mrr: Mean reciprocal rank of the best evidence token.
        kinds: Share with evidence among the best three, for each kind of determined token.
        seconds: How long it took.
    """

    model: str
    method: str
    tokens: int
    top1: Interval
    top3: Interval
    mrr: Interval
    kinds: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Case:
    """A determined token: its step, and which tokens of the token axis decide it."""

    kind: str
    step: int
    gold: tuple[int, ...]


def cases(model: whence.Model, example: bundled.Example) -> list[Case]:
    """The determined tokens of an example, with their evidence as places of the token axis.

    Args:
        model: A bundled model.
        example: One of its examples.
    """
    source = len(model.encode(example.prompt))
    # The decoder of an encoder-decoder model begins with a token of its own.
    offset = {"source": 0, "prefix": source + int(model.encoder_decoder)}
    return [
        Case(one.kind, one.step, tuple(offset[side] + index for side, index in one.evidence))
        for one in bundled.determined_tokens(example, model.tokenizer)
    ]


def candidates(out: whence.Attribution, row: int) -> list[int]:
    """Tokens that a step can see and that carry text of their own."""
    seen = ~np.isnan(out.view().values[row])
    return [k for k, token in enumerate(out.tokens) if seen[k] and not token.special and not token.fixed]


def score(name: str, out: whence.Attribution, row: int, rng: np.random.Generator) -> Sequence[float]:
    """What a method or a baseline says of every token, for one step."""
    if name == "random":
        return rng.random(len(out.tokens)).tolist()
    if name == "nearest":
        return list(range(len(out.tokens)))
    return out.view().values[row].tolist()


def measure(
    model: whence.Model, methods: Sequence[str], examples: Sequence[bundled.Example], *, target: str, seed: int
) -> list[Figures]:
    """Rank the evidence of all determined tokens of some examples.

    Args:
        model: A bundled model.
        methods: Methods, and any of `BASELINES`.
        examples: Examples of the model's grammar.
        target: The step function that is explained.
        seed: Seed of the random baseline and of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    # Baselines need only to know which tokens a step sees, so they share a pass with a method.
    asked = [name for name in methods if name not in BASELINES] or ["saliency"]
    ranks: dict[str, list[list[int]]] = {name: [] for name in methods}
    seconds = dict.fromkeys(asked, 0.0)
    kinds: list[str] = []
    with Progress(model.name, len(examples)) as bar:
        for example in examples:
            found = cases(model, example)
            steps = sorted({case.step for case in found})
            kinds += [case.kind for case in found]
            outs = {}
            for name in asked:
                start = time.monotonic()
                outs[name] = _attribution(model, name, example, steps, target)
                seconds[name] += time.monotonic() - start
            for name in methods:
                out = outs.get(name, outs[asked[0]])
                rows = [(steps.index(case.step), case.gold) for case in found]
                ranks[name].append(
                    [gold_rank(score(name, out, row, rng), gold, candidates(out, row)) for row, gold in rows]
                )
            bar.advance()
    return [_figures(model.name, name, ranks[name], kinds, seed, seconds.get(name, 0.0)) for name in methods]


def _attribution(
    model: whence.Model, method: str, example: bundled.Example, steps: list[int], target: str
) -> whence.Attribution:
    # Some methods explain a number of their own, or none.
    asked: dict[str, Any] = {"target": target} if whence.METHODS[method].targets is None else {}
    asked |= LIGHTER.get(method, {})
    out = model.attribute(example.prompt, example.continuation, method=method, steps=steps, **asked, **ALIKE)
    assert isinstance(out, whence.Attribution)
    return out


def _figures(
    model: str, method: str, ranks: Sequence[Sequence[int]], kinds: Sequence[str], seed: int, seconds: float
) -> Figures:
    by_kind: dict[str, list[bool]] = {}
    for kind, rank in zip(kinds, (rank for example in ranks for rank in example), strict=True):
        by_kind.setdefault(kind, []).append(rank <= 3)
    return Figures(
        model=model,
        method=method,
        tokens=len(kinds),
        top1=top_share(ranks, 1, seed),
        top3=top_share(ranks, 3, seed),
        mrr=mean_reciprocal_rank(ranks, seed),
        kinds={kind: float(np.mean(found)) for kind, found in sorted(by_kind.items())},
        seconds=seconds,
    )


def run(models: Sequence[str], methods: Sequence[str], *, examples: int, target: str, seed: int) -> Iterator[Figures]:
    """Measure methods and baselines on models.

    Args:
        models: Names of bundled models.
        methods: Names of methods and baselines.
        examples: Held-out examples per model.
        target: The step function that is explained.
        seed: Seed of the examples, of the random baseline and of the bootstrap.
    """
    for name in models:
        model = whence.load(name)
        sample = list(bundled.examples(name, examples, seed))
        possible = [method for method in methods if method in BASELINES or supports(model, method)]
        yield from measure(model, possible, sample, target=target, seed=seed)


def supports(model: whence.Model, method: str) -> bool:
    """Whether a method can be asked of a model."""
    try:
        model.estimate("a", [0], method=method, steps=0, **ALIKE)
    except whence.UnsupportedError:
        return False
    return True


def markdown(figures: Sequence[Figures], *, examples: int, target: str, seed: int) -> str:
    """The figures as a Markdown table, a row per method."""
    models = list(dict.fromkeys(one.model for one in figures))
    methods = list(dict.fromkeys(one.method for one in figures))
    by = {(one.model, one.method): one for one in figures}
    head = "| method |" + "".join(f" `{model}`: top 3 | top 1 | MRR |" for model in models)
    lines = [head, "|---|" + "---|---|---|" * len(models)]
    mean = {name: np.mean([one.top3.mean for one in figures if one.method == name]) for name in methods}
    for method in sorted(methods, key=lambda name: (name in BASELINES, -mean[name])):
        cells = ""
        for model in models:
            one = by.get((model, method))
            if one is None:
                cells += " - | - | - |"
                continue
            cells += f" {_percent(one.top3)} | {one.top1.mean:.0%} | {one.mrr.mean:.2f} |"
        lines.append(f"| {f'*{method}*' if method in BASELINES else f'`{method}`'} |{cells}")
    tokens = " and ".join(f"{next(one.tokens for one in figures if one.model == model):,}" for model in models)
    note = (
        f"Target: `{target}`, where a method explains a target. {examples} held-out examples per model (seed {seed}) "
        f"with {tokens} determined tokens; in brackets the 95% interval from resampling examples. *nearest* ranks the "
        "tokens nearest to the step first."
    )
    fewer = [f"`{name}` {option}={value}" for name in LIGHTER for option, value in LIGHTER[name].items()]
    note += f" Options other than the defaults: {', '.join(fewer)}."
    return "\n".join([*lines, "", note])


def _percent(share: Interval) -> str:
    return f"{share.mean:.0%} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", nargs="+", default=list(MODELS), choices=MODELS, help="bundled models (default: all)")
    known = [*scoring_methods(), *BASELINES]
    made.add_argument("--methods", nargs="+", default=known, choices=known, help="default: all, and the baselines")
    made.add_argument("--examples", type=int, default=200, help="examples per model (default: 200)")
    made.add_argument("--target", default="probability", choices=list(whence.STEP_FUNCTIONS), help="what is explained")
    made.add_argument("--seed", type=int, default=0, help="seed of examples and bootstrap (default: 0)")
    made.add_argument("--write", type=Path, metavar="FILE", help="write the table between the marks of this page")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    return made


def main() -> None:
    """Measure, print, and write what was asked for."""
    given = parser().parse_args()
    if given.examples < 1:
        parser().error("--examples must be at least 1")
    figures = []
    for one in run(given.model, given.methods, examples=given.examples, target=given.target, seed=given.seed):
        figures.append(one)
        print(
            f"{one.model:16} {one.method:22} top 3 {_percent(one.top3):14} top 1 {one.top1.mean:4.0%}  "
            f"MRR {one.mrr.mean:.2f}  {one.tokens} tokens  {one.seconds:.0f} s",
            file=sys.stderr,
        )
    block = markdown(figures, examples=given.examples, target=given.target, seed=given.seed)
    print(block)
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n", encoding="utf-8")
    if given.write is not None:
        page = given.write.read_text(encoding="utf-8")
        given.write.write_text(written(page, block, "evidence"), encoding="utf-8")


if __name__ == "__main__":
    main()
