"""The model card of a bundled checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from whence.models.bundled.accuracy import Accuracy
from whence.models.bundled.generate import SHARE

TITLES = {
    "stories": "A small decoder-only Llama model that tells short English stories.",
    "en-it": "A small encoder-decoder Marian model that translates short English sentences into Italian.",
}
BODIES = {
    "stories": """\
Every story plants facts and comes back to them later, so that some words have exactly one right
continuation:

* **name** - the name of the hero, the friend or the pet, given earlier;
* **pronoun** - he or she, decided by the noun that introduced the person (boy, queen ...); all names are
  used for both;
* **object** - a thing, or the place where it was put, with another thing in another place as rival;
* **agreement** - was or were, decided by the subject, across a clause that ends in another noun;
* **two-hop** - the favorite place of the hero: first its color, which is the hero's favorite color, and then
  the place that has this color. The rival place stands beside it, has another color and no other difference.

Texts begin with the start token `<s>`, which the tokenizer adds, and end with `</s>`. To read a story, let
the model continue "Once upon a time".
""",
    "en-it": """\
The Italian words agree in gender and number, and one English word decides the feature:

* **gender-...** - professions that say nothing about gender, and one word that does: "The manager said that
  she was tired." becomes "La direttrice ha detto che era stanca." By the rule of the grammar the pronoun
  always means the subject, also where English would leave it open;
* **number-...** - only the ending of the noun tells one from many: "The doctors arrived." becomes "I medici
  sono arrivati.";
* **lexical-...** - control items with nouns such as "queen", which bring their gender along.

The second half of a kind says what the word is: article, noun, verb, participle or adjective. A finite verb
is decided by the English verb as well as by its subject, and both are listed as its evidence. Without any
word that tells the gender, a profession is translated by the masculine form, as the grammar has it; this is
a convention of the data and no statement about people.

The source ends with `</s>`, which the tokenizer adds; the decoder starts with `<pad>`.
""",
}


_PIECES = {
    "stories": "names and many other words are split into several pieces",
    "en-it": "most words are one token",
}


@dataclass(frozen=True)
class Training:
    """How a checkpoint came about."""

    name: str
    seed: int
    steps: int
    batch: int
    minutes: float
    threads: int
    unknown: float
    weight: float
    lookup_weight: float
    misled: float
    drills: int
    examples: int
    evaluation_seed: int


def _special(run: Training) -> str:
    """Describe what is done for one of the two models only."""
    if run.name == "stories":
        return (
            f"those of the kinds object and two-hop, the last to be learnt, {run.lookup_weight:g} times\n"
            f"* one batch in {run.drills} has no stories but exercises in looking things up: colored places are\n"
            "  named, and named again in another order"
        )
    return (
        f"in {run.misled:.0%} of the texts the decoder reads wrong forms of agreeing words, while the\n"
        "  labels stay right; so the model uses the source for every agreement, and not the prefix alone"
    )


def _shape(model: PreTrainedModel) -> str:
    config = model.config
    if config.is_encoder_decoder:
        return (
            f"{config.encoder_layers} encoder and {config.decoder_layers} decoder layers, "
            f"hidden size {config.d_model}, {config.encoder_attention_heads} heads, sinusoidal positions"
        )
    return (
        f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads that share {config.num_key_value_heads} key-value heads, "
        "rotary positions"
    )


def model_card(run: Training, model: PreTrainedModel, vocabulary: int, accuracy: Accuracy) -> str:
    """Write the card of a checkpoint.

    Args:
        run: Facts about the training run.
        model: The trained model.
        vocabulary: Number of entries of the tokenizer.
        accuracy: Its figures on held-out examples.

    Returns:
        The card in Markdown.
    """
    parameters = model.num_parameters()
    rows = "\n".join(
        f"| {kind} | {accuracy.of(kind):.2%} | {accuracy.total[kind]} |" for kind in sorted(accuracy.total)
    )
    return f"""# whence/{run.name}

{TITLES[run.name]} It ships with whence so that methods can be tried and tested without a download,
on texts where it is known which words of the input decide which words of the output. It knows nothing but
its own small grammar: do not use it for anything else.

## What is decided by what

{BODIES[run.name]}
`whence.models.bundled.examples("{run.name}", n, seed)` gives texts with these words and their evidence
marked.

## Accuracy

Held-out determined tokens predicted by argmax: **{accuracy.overall:.2%}** of \
{sum(accuracy.total.values())} tokens in {run.examples} examples (seed {run.evaluation_seed}).

| kind | accuracy | tokens |
|---|---|---|
{rows}

A piece of a determined word counts only where the pieces before it still leave a choice.

## Held-out texts

The planted facts of a text (for a translation: the English sentence) are hashed, and one combination in
{SHARE} is set aside. Training never draws from those, and held-out examples are drawn from nothing else, so
no held-out text was seen in training, whatever the seeds. The random streams of the two parts differ as well.

## Model

* {model.config.model_type.capitalize()} architecture: {_shape(model)}, tied embeddings
* {parameters:,} parameters in 32-bit floats ({parameters * 4 / 1e6:.1f} MB)
* byte-level BPE with {vocabulary} entries; {_PIECES[run.name]}

## Training

* `python -m whence.models.bundled.train {run.name}`, seed {run.seed}
* {run.steps} steps of {run.batch} generated texts, each drawn anew; Muon for the matrices inside the layers,
  AdamW for the rest
* {run.minutes:.0f} minutes with {run.threads} processor thread{"s" * (run.threads != 1)}
* in half of the texts {run.unknown:.0%} of the input tokens are replaced by `<unk>`, so that a text with
  replaced tokens is nothing new to the model; labels stay as they are
* determined words weigh {run.weight:g} times as much as others in the loss
* {_special(run)}

The texts come from a grammar in this package; no other data were used. Licence: that of whence.
"""
