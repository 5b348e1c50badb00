"""How often a bundled model predicts the determined tokens of held-out examples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.models.bundled.catalog import path
from whence.models.bundled.example import Example
from whence.models.bundled.generate import examples
from whence.models.bundled.tokens import determined_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 50


@dataclass(frozen=True)
class Accuracy:
    """Right and all determined tokens, by kind."""

    right: dict[str, int]
    total: dict[str, int]

    @property
    def overall(self) -> float:
        """The share of right tokens among all kinds."""
        return sum(self.right.values()) / max(sum(self.total.values()), 1)

    def of(self, kind: str) -> float:
        """The share of right tokens of one kind."""
        return self.right.get(kind, 0) / self.total[kind]


def load(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint of either kind, in evaluation mode.

    Args:
        folder: A folder with config, weights and tokenizer.

    Returns:
        The model and its tokenizer.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def _padded(rows: list[list[int]], pad: int) -> Tensor:
    import torch

    width = max(len(row) for row in rows)
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


def predictions(model: Any, tokenizer: Any, batch: list[Example]) -> list[list[int]]:
    """Predict each token of each continuation from the true text before it.

    Args:
        model: A model of either kind.
        tokenizer: Its tokenizer.
        batch: Some examples.

    Returns:
        For each example, the most probable token at every step of the continuation.
    """
    import torch

    sources = tokenizer([example.prompt for example in batch])["input_ids"]
    targets = tokenizer([example.continuation for example in batch], add_special_tokens=False)["input_ids"]
    pad = tokenizer.pad_token_id
    # Padding on the right is harmless here: positions are absolute and nothing is generated.
    if model.config.is_encoder_decoder:
        starts = [0] * len(batch)
        ids = _padded(sources, pad)
        decoder = _padded([[model.config.decoder_start_token_id, *target] for target in targets], pad)
        inputs = {"input_ids": ids, "attention_mask": (ids != pad).long(), "decoder_input_ids": decoder}
    else:
        starts = [len(source) - 1 for source in sources]
        ids = _padded([source + target for source, target in zip(sources, targets, strict=True)], pad)
        inputs = {"input_ids": ids, "attention_mask": (ids != pad).long()}
    with torch.no_grad():
        best = model(**{key: value.to(model.device) for key, value in inputs.items()}).logits.argmax(-1)
    return [row[start : start + len(target)] for row, start, target in zip(best.tolist(), starts, targets, strict=True)]


def measure(model: Any, tokenizer: Any, sample: list[Example]) -> Accuracy:
    """Count the determined tokens of a sample that are the model's first choice.

    Args:
        model: A model of either kind.
        tokenizer: Its tokenizer.
        sample: Examples of the model's own grammar.

    Returns:
        The counts by kind.
    """
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for first in range(0, len(sample), BATCH):
        batch = sample[first : first + BATCH]
        chosen = predictions(model, tokenizer, batch)
        for example, row in zip(batch, chosen, strict=True):
            for token in determined_tokens(example, tokenizer):
                total[token.kind] += 1
                right[token.kind] += row[token.step] == token.token_id
    return Accuracy(dict(right), dict(total))


def evaluate(name: str, n: int = 500, seed: int = 0) -> Accuracy:
    """Measure a shipped model on held-out examples.

    Args:
        name: "stories" or "en-it", with or without "whence/" in front.
        n: Number of examples.
        seed: Seed of the examples.

    Returns:
        The counts by kind.
    """
    model, tokenizer = load(path(name))
    return measure(model, tokenizer, list(examples(name, n, seed)))
