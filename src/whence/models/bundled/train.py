"""Train a bundled model from nothing: `python -m whence.models.bundled.train stories`."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from whence.models.bundled.accuracy import load, measure
from whence.models.bundled.architectures import new_model
from whence.models.bundled.card import Training, model_card
from whence.models.bundled.catalog import NAMES, path
from whence.models.bundled.example import Example
from whence.models.bundled.generate import examples
from whence.models.bundled.lexicon import CONTAINERS, LANDMARKS, THINGS
from whence.models.bundled.stories import drill
from whence.models.bundled.vocabulary import build_tokenizer

IGNORE = -100
HELD_OUT = 500
EVALUATION_SEED = 0


@dataclass(frozen=True)
class Recipe:
    """The settings of one training run."""

    vocabulary: int
    steps: int
    batch: int
    rate: float = 3e-3
    # Weight of the determined tokens in the loss: they are few, and the rest is mostly free choice. Facts
    # that must be looked up by another word are the last to be learnt.
    weight: float = 4.0
    lookup_weight: float = 12.0
    # Half of the texts lose this share of their tokens to <unk>, so that a text with replaced tokens is
    # nothing new to the model.
    unknown: float = 0.05
    # In this share of the translations the decoder reads wrong forms of agreeing words, while the labels
    # stay right: the model then has to look at the source for every agreement.
    misled: float = 0.5
    # Of the batches of stories, one in this many is an exercise in looking things up.
    drills: int = 5


RECIPES = {
    "stories": Recipe(vocabulary=2000, steps=2500, batch=32, rate=4e-3),
    "en-it": Recipe(vocabulary=2000, steps=1200, batch=96),
}


def _weights(example: Example, offsets: list[tuple[int, int]], shift: int, recipe: Recipe) -> list[float]:
    weights = [1.0] * len(offsets)
    for word in example.determined:
        for i, (first, last) in enumerate(offsets):
            if first < word.stop + shift and last > word.start + shift:
                lookup = word.kind in ("object", "two-hop")
                weights[i] = recipe.lookup_weight if lookup else recipe.weight
    return weights


def _pad(rows: list[list[Any]], fill: float) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def _hide(ids: Tensor, lengths: Tensor, share: float, unknown: int, first: int) -> Tensor:
    """Replace some tokens by <unk>: never the first `first`, the last one of a row, or padding."""
    places = torch.arange(ids.shape[1])[None]
    inside = (places >= first) & (places < lengths[:, None])
    chosen = (torch.rand(ids.shape) < share) & (torch.rand(len(ids), 1) < 0.5)
    return ids.masked_fill(chosen & inside, unknown)


def story_batch(batch: list[Example], tokenizer: Any, recipe: Recipe) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Turn stories into model inputs, labels and weights of the labels."""
    texts = tokenizer([e.prompt + e.continuation for e in batch], return_offsets_mapping=True)
    rows = [[*ids, tokenizer.eos_token_id] for ids in texts["input_ids"]]
    weights = [
        [*_weights(example, offsets, len(example.prompt), recipe), 1.0]
        for example, offsets in zip(batch, texts["offset_mapping"], strict=True)
    ]
    labels = _pad(rows, IGNORE)
    ids = labels.masked_fill(labels == IGNORE, tokenizer.pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])
    hidden = _hide(ids, lengths, recipe.unknown, tokenizer.unk_token_id, first=1)
    inputs = {"input_ids": hidden[:, :-1]}
    return inputs, labels[:, 1:], _pad(weights, 0.0)[:, 1:]


@cache
def _pieces(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _misled(
    example: Example, ids: list[int], places: list[tuple[int, int]], pieces: Callable[[str], list[int]]
) -> list[int]:
    """Put wrong forms into half of the agreeing words of a translation."""
    ids = list(ids)
    for word in example.determined:
        lead = example.continuation[: word.start][-1:].replace("'", "")
        start = word.start - len(lead)
        steps = [i for i, (first, last) in enumerate(places) if first < word.stop and last > start]
        wrong = pieces(lead + random.choice(word.alternatives))
        if len(wrong) == len(steps) and random.random() < 0.5:
            ids[steps[0] : steps[-1] + 1] = wrong
    return ids


def pair_batch(batch: list[Example], tokenizer: Any, recipe: Recipe) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Turn sentence pairs into model inputs, labels and weights of the labels."""
    pad, unknown = tokenizer.pad_token_id, tokenizer.unk_token_id
    sources = tokenizer([e.prompt for e in batch])["input_ids"]
    targets = tokenizer([e.continuation for e in batch], add_special_tokens=False, return_offsets_mapping=True)
    rows, offsets = targets["input_ids"], targets["offset_mapping"]

    def pieces(text: str) -> list[int]:
        return _pieces(tokenizer, text)

    decoder = [
        _misled(example, row, places, pieces) if random.random() < recipe.misled else row
        for example, row, places in zip(batch, rows, offsets, strict=True)
    ]
    weights = [[*_weights(example, places, 0, recipe), 1.0] for example, places in zip(batch, offsets, strict=True)]
    labels = _pad([[*row, tokenizer.eos_token_id] for row in rows], IGNORE)
    starts = _pad([[pad, *row] for row in decoder], pad)
    ends = torch.tensor([len(row) - 1 for row in sources])
    lengths = torch.tensor([len(row) + 1 for row in rows])
    inputs = {
        "input_ids": _hide(_pad(sources, pad), ends, recipe.unknown, unknown, first=0),
        "attention_mask": _pad([[1] * len(row) for row in sources], 0),
        "decoder_input_ids": _hide(starts, lengths, recipe.unknown, unknown, first=1),
    }
    return inputs, labels, _pad(weights, 0.0)


def _batches(name: str, recipe: Recipe, seed: int) -> Iterator[list[Example]]:
    """Batches of texts of about equal length, which saves a third of the padding."""
    rng = random.Random(seed)
    stream = examples(name, recipe.steps * recipe.batch, seed, part="training")
    while pool := list(islice(stream, 16 * recipe.batch)):
        pool.sort(key=lambda example: len(example.prompt) + len(example.continuation))
        batches = [pool[first : first + recipe.batch] for first in range(0, len(pool), recipe.batch)]
        rng.shuffle(batches)
        for number, batch in enumerate(batches):
            lists = name == "stories" and number % recipe.drills == 0
            yield [drill(rng) for _ in batch] if lists else batch


def _optimizers(model: Any, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    matrices, rest = [], []
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        (matrices if weight.ndim == 2 and "embed" not in name else rest).append(weight)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def _rate(progress: float) -> float:
    """Share of the full learning rate: a short warm-up, then a straight line to zero."""
    return min(progress / 0.03, (1 - progress) / 0.5, 1.0)


def fit(model: Any, tokenizer: Any, name: str, recipe: Recipe, seed: int) -> tuple[int, float]:
    """Train in place.

    Returns:
        The number of steps and the minutes they took.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    encode = story_batch if name == "stories" else pair_batch
    optimizers = _optimizers(model, recipe.rate)
    loss_of = nn.CrossEntropyLoss(reduction="none", ignore_index=IGNORE)
    validation = list(examples(name, 60, seed + 1, part="training"))
    began, step = time.perf_counter(), 0
    for step, batch in enumerate(_batches(name, recipe, seed), start=1):
        elapsed = (time.perf_counter() - began) / 60
        # By steps, never by the clock: the same seed gives the same weights on a slower machine.
        progress = step / recipe.steps
        inputs, labels, weights = encode(batch, tokenizer, recipe)
        labels, weights = labels.to(device), weights.to(device)
        logits = model(**{key: ids.to(device) for key, ids in inputs.items()}, use_cache=False).logits
        losses = loss_of(logits.flatten(0, 1), labels.flatten()) * weights.flatten()
        loss = losses.sum() / weights.masked_fill(labels == IGNORE, 0).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * _rate(progress)
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 0:
            line = f"step {step}  {elapsed:.1f} min  loss {loss.item():.3f}"
            if step % 500 == 0:
                model.eval()
                accuracy = measure(model, tokenizer, validation)
                kinds = "  ".join(f"{kind} {accuracy.of(kind):.3f}" for kind in sorted(accuracy.total))
                line += f"  determined {accuracy.overall:.4f}  {kinds}"
                model.train()
            print(line, flush=True)
    return step, (time.perf_counter() - began) / 60


def train(name: str, folder: Path, recipe: Recipe, seed: int) -> None:
    """Train a model, save it, and write its card.

    Args:
        name: "stories" or "en-it".
        folder: Where the checkpoint goes.
        recipe: Settings of the run.
        seed: Seed of the weights and of the training examples.
    """
    set_seed(seed)
    pairs = ((e.prompt, e.continuation) for e in examples(name, 20_000, seed, part="training"))
    texts = [text for pair in pairs for text in pair]
    if name == "stories":
        # Three in four of the words that are looked up become one token each; names stay in pieces.
        words = (*THINGS, *CONTAINERS, *LANDMARKS)
        texts += [" " + word for i, word in enumerate(words) if i % 4] * 1000
    tokenizer = build_tokenizer(texts, size=recipe.vocabulary, bos=name == "stories")
    model = new_model(name, tokenizer)
    print(f"{name}: {model.num_parameters():,} parameters, {len(tokenizer)} vocabulary entries", flush=True)
    steps, minutes = fit(model, tokenizer, name, recipe, seed)
    model.cpu().eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    # Weights come out readable by their owner only, which would break an installed package.
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    loaded, reread = load(folder)
    accuracy = measure(loaded, reread, list(examples(name, HELD_OUT, EVALUATION_SEED)))
    run = Training(
        name=name,
        seed=seed,
        steps=steps,
        batch=recipe.batch,
        minutes=minutes,
        threads=torch.get_num_threads(),
        unknown=recipe.unknown,
        weight=recipe.weight,
        lookup_weight=recipe.lookup_weight,
        misled=recipe.misled,
        drills=recipe.drills,
        examples=HELD_OUT,
        evaluation_seed=EVALUATION_SEED,
    )
    (folder / "README.md").write_text(model_card(run, loaded, len(reread), accuracy), encoding="utf-8")
    print(f"saved in {folder}: {accuracy.overall:.2%} of the held-out determined tokens", flush=True)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, help="folder for the checkpoint (default: inside the package)")
    parser.add_argument("--steps", type=int, help="steps of training (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = RECIPES[options.name]
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps)
    train(options.name, options.out or path(options.name), recipe, options.seed)


if __name__ == "__main__":
    main()
