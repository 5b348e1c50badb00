"""The bundled models and the grammars they were trained on."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whence.core.errors import InputError, UnknownNameError
from whence.models import bundled
from whence.models.bundled import Example, Span
from whence.models.bundled.accuracy import load, measure
from whence.models.bundled.italian import article, english_plural

seeds = st.integers(min_value=0, max_value=10**9)
names = pytest.mark.parametrize("name", bundled.NAMES)
KINDS = {
    "stories": {"name", "pronoun", "object", "agreement", "two-hop"},
    "en-it": {
        f"{family}-{part}"
        for family in ("gender", "number", "lexical")
        for part in ("article", "noun", "participle", "adjective", "verb")
    }
    - {"gender-verb"},
}


@cache
def loaded(name: str) -> tuple[Any, Any]:
    """Load a shipped model once for all tests."""
    return load(bundled.path(name))


def one(name: str, seed: int) -> Example:
    """Give the first held-out example of a seed."""
    return next(iter(bundled.examples(name, 1, seed)))


def read(example: Example, span: Span) -> str:
    """Give the characters a span stands for."""
    text = example.prompt if span.side == "source" else example.continuation
    return text[span.start : span.stop]


# Generators ------------------------------------------------------------------------------------------


@names
def test_same_seed_gives_the_same_examples(name: str) -> None:
    """Examples depend on name and seed only, and not on how many are asked for."""
    few, many = list(bundled.examples(name, 5, 3)), list(bundled.examples("whence/" + name, 9, 3))
    assert few == many[:5]
    assert few != list(bundled.examples(name, 5, 4))


@names
def test_parts_do_not_meet(name: str) -> None:
    """No held-out text is in the training stream, even for the same seed."""
    held_out = {e.prompt + e.continuation for e in bundled.examples(name, 300, 1)}
    training = {e.prompt + e.continuation for e in bundled.examples(name, 3000, 1, part="training")}
    assert not held_out & training


@names
def test_all_kinds_appear(name: str) -> None:
    """A few hundred examples show every kind of determined word."""
    assert {w.kind for e in bundled.examples(name, 300, 0) for w in e.determined} == KINDS[name]


@names
@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_determined_words_and_evidence(name: str, seed: int) -> None:
    """Spans hold whole words, evidence comes first, and alternatives differ from the word."""
    example = one(name, seed)
    assert example.determined
    for word in example.determined:
        text = example.continuation[word.start : word.stop]
        assert re.fullmatch(r"[\w']+", text)
        assert word.alternatives
        assert text not in word.alternatives
        assert len(set(word.alternatives)) == len(word.alternatives)
        assert any(span.side == "source" for span in word.evidence)
        for span in word.evidence:
            assert re.fullmatch(r"[\w' ]+", read(example, span))
            assert span.side == "source" or span.stop <= word.start


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_story_evidence_is_what_it_claims(seed: int) -> None:
    """The words of a story's evidence are of the class that can decide the word."""
    example = one("stories", seed)
    for word in example.determined:
        text = example.continuation[word.start : word.stop]
        evidence = [read(example, span) for span in word.evidence]
        if word.kind == "name":
            assert set(evidence) == {text}
        elif word.kind in ("object", "two-hop"):
            assert text in evidence
        elif word.kind == "pronoun":
            other = {"he": "she", "she": "he"}[text]
            assert word.alternatives == (other,)
            assert other not in (w.lower() for w in evidence)
        else:
            (head,) = evidence
            assert (text == "were") == (head.endswith("s") or head in ("geese", "mice", "oxen"))


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_names_are_all_mentioned(seed: int) -> None:
    """Every earlier mention of a repeated name is evidence."""
    example = one("stories", seed)
    for word in example.determined:
        if word.kind == "name":
            text = example.continuation[word.start : word.stop]
            before = example.prompt + example.continuation[: word.start]
            assert len(re.findall(rf"\b{text}\b", before)) == len(word.evidence)


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_gender_is_decided_by_one_english_word(seed: int) -> None:
    """One source word is the evidence of a feature; in a gender item its forms name the gender."""
    example = one("en-it", seed)
    for word in example.determined:
        sources = [read(example, span) for span in word.evidence if span.side == "source"]
        # Which finite verb it is depends on the English verb as well.
        assert len(sources) == (2 if word.kind.endswith("-verb") else 1)
        if word.kind.startswith("gender"):
            assert sources[0] in {"he", "she", "his", "her", "himself", "herself"}
            assert len(word.alternatives) == 1


def test_translations_cover_genders_and_numbers() -> None:
    """Both genders and both numbers are common, and one source has one translation."""
    pairs: dict[str, set[str]] = {}
    cues: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for example in bundled.examples("en-it", 600, 0):
        pairs.setdefault(example.prompt, set()).add(example.continuation)
        for word in example.determined:
            cues[read(example, word.evidence[0])] += word.kind == "gender-noun"
            words[example.continuation[word.start : word.stop].lower()] += word.kind.endswith("article")
    assert all(len(translations) == 1 for translations in pairs.values())
    assert min(cues[cue] for cue in ("he", "she", "his", "her", "himself", "herself")) >= 5
    assert min(words[one] for one in ("il", "lo", "la", "l'", "i", "gli", "le")) >= 5


@pytest.mark.parametrize(
    ("noun", "feminine", "plural", "expected"),
    [
        ("medico", False, False, "il"),
        ("scienziato", False, False, "lo"),
        ("psicologo", False, False, "lo"),
        ("sarto", False, False, "il"),
        ("zio", False, False, "lo"),
        ("avvocato", False, False, "l'"),
        ("avvocata", True, False, "l'"),
        ("scienziata", True, False, "la"),
        ("medici", False, True, "i"),
        ("avvocati", False, True, "gli"),
        ("scienziati", False, True, "gli"),
        ("avvocate", True, True, "le"),
    ],
)
def test_italian_article(noun: str, feminine: bool, plural: bool, expected: str) -> None:
    """The article follows the sound of the noun."""
    assert article(noun, feminine=feminine, plural=plural) == expected


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("doctor", "doctors"),
        ("secretary", "secretaries"),
        ("boy", "boys"),
        ("coach", "coaches"),
        ("man", "men"),
    ],
)
def test_english_plural(noun: str, expected: str) -> None:
    """English plurals are spelled right."""
    assert english_plural(noun) == expected


# Tokens ----------------------------------------------------------------------------------------------


@names
@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_tokens_agree_with_text(name: str, seed: int) -> None:
    """Texts survive the tokenizer, and token positions lead back to the right words."""
    _, tokenizer = loaded(name)
    example = one(name, seed)
    source = tokenizer(example.prompt)["input_ids"]
    target = tokenizer(example.continuation, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in source + target
    assert tokenizer.decode(source, skip_special_tokens=True) == example.prompt
    assert tokenizer.decode(target) == example.continuation
    ids = {"source": source, "prefix": target}
    evidence = {read(example, span) for word in example.determined for span in word.evidence}
    tokens = bundled.determined_tokens(example, tokenizer)
    assert tokens == sorted(tokens, key=lambda token: token.step)
    for token in tokens:
        assert target[token.step] == token.token_id
        assert token.evidence
        assert all(side == "source" or place < token.step for side, place in token.evidence)
        for side, place in token.evidence:
            piece = tokenizer.decode([ids[side][place]]).strip()
            assert any(piece in word for word in evidence)


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_prompt_and_continuation_join(seed: int) -> None:
    """A story's two parts have the same tokens apart and together."""
    _, tokenizer = loaded("stories")
    example = one("stories", seed)
    apart = (
        tokenizer(example.prompt)["input_ids"] + tokenizer(example.continuation, add_special_tokens=False)["input_ids"]
    )
    assert example.continuation.startswith(" ")
    assert apart == tokenizer(example.prompt + example.continuation)["input_ids"]


@names
def test_only_open_pieces_count(name: str) -> None:
    """A piece is listed exactly if some alternative agrees before it and differs at it."""
    _, tokenizer = loaded(name)

    def pieces(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for example in bundled.examples(name, 40, 5):
        expected = []
        for word in example.determined:
            text = example.continuation
            first = len(pieces(text[: word.start].removesuffix(" ")))
            own = pieces(text[: word.stop])
            others = [pieces(text[: word.start] + other) for other in word.alternatives]
            expected += [
                step
                for step in range(first, len(own))
                if any(o[:step] == own[:step] and o[step : step + 1] != [own[step]] for o in others)
            ]
        assert [token.step for token in bundled.determined_tokens(example, tokenizer)] == expected


@names
def test_words_split_into_pieces(name: str) -> None:
    """A good part of the names and nouns has more than one piece."""
    _, tokenizer = loaded(name)
    counts = [
        len(tokenizer(" " + example.continuation[word.start : word.stop], add_special_tokens=False)["input_ids"])
        for example in bundled.examples(name, 100, 2)
        for word in example.determined
        if word.kind.endswith(("name", "noun"))
    ]
    assert sum(count > 1 for count in counts) / len(counts) > 0.4


@names
def test_special_tokens(name: str) -> None:
    """Each special token has its own id, and the right one is added to a text."""
    model, tokenizer = loaded(name)
    ids = tokenizer("The")["input_ids"]
    if name == "stories":
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.eos_token_id not in ids
    else:
        assert ids[-1] == tokenizer.eos_token_id
        assert model.config.decoder_start_token_id == tokenizer.pad_token_id
    specials = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id]
    assert len(set(specials)) == 3
    assert len(tokenizer) == model.config.vocab_size


# Models ----------------------------------------------------------------------------------------------


@names
def test_accuracy(name: str) -> None:
    """The model predicts the determined tokens, about as often as its card says."""
    accuracy = measure(*loaded(name), list(bundled.examples(name, 100, 0)))
    card = (bundled.path(name) / "README.md").read_text(encoding="utf-8")
    figure = re.search(r"argmax: \*\*([\d.]+)%\*\*", card)
    assert figure
    assert accuracy.overall >= 0.98
    assert float(figure[1]) >= 98
    assert abs(accuracy.overall - float(figure[1]) / 100) < 0.01
    assert f"{loaded(name)[0].num_parameters():,} parameters" in card


def test_evaluate_uses_the_shipped_model() -> None:
    """The public function measures the checkpoint inside the package."""
    assert bundled.evaluate("whence/en-it", 20, 7) == measure(*loaded("en-it"), list(bundled.examples("en-it", 20, 7)))


def test_story_from_its_opening() -> None:
    """Greedy generation from the usual opening gives a finished story, the same every time."""
    model, tokenizer = loaded("stories")
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    first, second = (model.generate(**inputs)[0].tolist() for _ in range(2))
    assert first == second
    assert first[-1] == tokenizer.eos_token_id
    story = tokenizer.decode(first, skip_special_tokens=True)
    assert story.count(".") >= 3
    assert story.endswith(".")


@pytest.mark.parametrize(
    ("english", "italian"),
    [
        ("The manager said that she was tired.", "La direttrice ha detto che era stanca."),
        ("The manager said that he was tired.", "Il direttore ha detto che era stanco."),
        ("The doctors arrived.", "I medici sono arrivati."),
        ("The doctor arrived.", "Il medico è arrivato."),
        ("The queen arrived.", "La regina è arrivata."),
    ],
)
def test_translation(english: str, italian: str) -> None:
    """Whole sentences come out right."""
    model, tokenizer = loaded("en-it")
    output = model.generate(**tokenizer(english, return_tensors="pt"))
    assert tokenizer.decode(output[0], skip_special_tokens=True) == italian


@names
def test_loads_without_warnings(name: str) -> None:
    """Plain transformers reads the folder in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, tokenizer = load(bundled.path(name))
    assert not model.training
    assert tokenizer.is_fast
    assert not [value for key, value in model.config.to_dict().items() if "dropout" in key and value]


def test_size() -> None:
    """All checkpoints together stay under 12 MB."""
    files = [file for name in bundled.NAMES for file in bundled.path(name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 12e6
    assert not [file for file in files if file.suffix in (".bin", ".pt")]


# Names and imports -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [bundled.path, bundled.summary, lambda name: bundled.examples(name, 1, 0)])
def test_unknown_name(call: Any) -> None:
    """A wrong name is answered with the nearest right one."""
    with pytest.raises(UnknownNameError, match="whence/stories"):
        call("whence/storeis")


def test_bad_requests() -> None:
    """Impossible counts and parts are refused at once."""
    with pytest.raises(InputError, match="-1"):
        bundled.examples("stories", -1, 0)
    with pytest.raises(InputError, match="'train'"):
        bundled.examples("stories", 1, 0, part="train")  # type: ignore[arg-type]


@names
def test_summary_is_one_line(name: str) -> None:
    """A summary fits a table, and its figures are those of the model."""
    line = bundled.summary(name)
    millions = loaded(name)[0].num_parameters() / 1e6
    assert "\n" not in line
    assert f"{millions:.1f} M" in line


def test_import_is_light() -> None:
    """Generating examples loads no model library."""
    code = (
        "import sys; from whence.models import bundled; list(bundled.examples('stories', 2, 0));"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
