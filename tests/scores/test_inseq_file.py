"""Files of Inseq: some that it wrote itself with tiny random models, and some built here from its format."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as unpack
from safetensors.numpy import save as pack
from tokenizers.pre_tokenizers import ByteLevel

from whence.core.errors import FileFormatError
from whence.scores import Attributions, load_attribution
from whence.scores.inseq_file import from_inseq
from whence.scores.inseq_tokens import Piece, tokens_of

FILES = Path(__file__).parent / "inseq_files"
NAN = float("nan")


def array(values: Any, dtype: type = np.float32) -> str:
    return base64.b64encode(pack({"attribution": np.ascontiguousarray(values, dtype=dtype)})).decode()


def wrapped(kind: str, attributes: dict[str, Any]) -> dict[str, Any]:
    return {"__instance_type__": ["inseq.data.attribution", kind], "attributes": attributes}


def tokens(*spellings: str) -> list[dict[str, Any]]:
    return [wrapped("TokenWithId", {"id": k, "token": one}) for k, one in enumerate(spellings)]


def sequence(**changed: Any) -> dict[str, Any]:
    """A decoder-only one: two tokens of prompt, two explained."""
    scores = [[1, 2], [3, 4], [NAN, 5], [NAN, NAN]]
    return {
        "attr_pos_start": 2,
        "attr_pos_end": 4,
        "sequence_scores": {},
        "source": tokens("The", "Ġmanager"),
        "source_attributions": None,
        "step_scores": {"probability": array([0.5, NAN])},
        "target": tokens("The", "Ġmanager", "Ġwent", "Ġhome"),
        "target_attributions": array(scores),
        **changed,
    }


def output(*sequences: dict[str, Any], **info: Any) -> dict[str, Any]:
    record = {"attribution_method": "saliency", "attributed_fn": "probability_fn", "model_name": "gpt2",
              "input_texts": ["The manager"], "generated_texts": ["The manager went home"], **info}  # fmt: skip
    kind = "GranularFeatureAttributionSequenceOutput"
    parts = [wrapped(kind, one) for one in sequences or (sequence(),)]
    return wrapped("FeatureAttributionOutput", {"info": record, "sequence_attributions": parts,
                                                "step_attributions": None})  # fmt: skip


def raw(name: str) -> list[dict[str, np.ndarray]]:
    """The arrays of a file, read without whence."""
    data = (FILES / name).read_bytes()
    found = json.loads(gzip.decompress(data) if name.endswith(".gz") else data)["attributes"]
    keys = ("source_attributions", "target_attributions")
    return [
        {key: unpack(base64.b64decode(one["attributes"][key]))["attribution"] for key in keys if one["attributes"][key]}
        for one in found["sequence_attributions"]
    ]


# Files that Inseq wrote.


def test_raw_scores_of_a_decoder() -> None:
    first, second = Attributions.load(FILES / "decoder_raw.json")
    given = raw("decoder_raw.json")
    assert first.scores.names == ("step", "token", "unit")
    np.testing.assert_array_equal(first.scores.values, np.swapaxes(given[0]["target_attributions"][:-1], 0, 1))
    np.testing.assert_array_equal(second.scores.values, np.swapaxes(given[1]["target_attributions"][:-1], 0, 1))
    assert first.text == "the cat sat on"
    assert first.generated == " a red mat"
    assert [t.text for t in second.tokens] == ["the", " dog", " ran"]
    assert [t.side for t in second.tokens] == ["source", "source", "prefix"]
    assert first.method == "saliency"
    assert first.target == "probability"
    assert set(first.step_scores) == {"probability", "entropy"}
    assert first.info["inseq"]["model_class"] == "GPT2LMHeadModel"
    assert first.info["merges"] == {"probability": "prod", "entropy": "sum"}
    with pytest.raises(FileFormatError, match="holds 2 attributions"):
        load_attribution(FILES / "decoder_raw.json")


def test_aggregated_file_is_the_raw_one_by_its_own_rule() -> None:
    """Inseq takes lengths over units and divides by their sum; so does the pipeline that says the same."""
    aggregated = Attributions.load(FILES / "decoder_aggregated.json.gz")
    for raw_one, one in zip(Attributions.load(FILES / "decoder_raw.json"), aggregated, strict=True):
        assert one.scores.names == ("step", "token")
        assert raw_one.aggregate("unit:l2,normalize").scores.equals(one.scores, atol=1e-6)
        assert one.tokens == raw_one.tokens


def test_attention_of_an_encoder_decoder() -> None:
    item = load_attribution(FILES / "encoder_decoder_attention.json.gz")
    (given,) = raw("encoder_decoder_attention.json.gz")
    assert item.scores.names == ("step", "token", "layer", "head")
    assert [t.text for t in item.tokens] == ["the", " cat", " sat", " on", "</s>", "<s>", "a", " red", " mat"]
    assert [t.special for t in item.tokens] == [False] * 4 + [True, True] + [False] * 3
    assert [t.text for t in item.steps] == ["a", " red", " mat", "</s>"]
    np.testing.assert_array_equal(item.source.values, np.swapaxes(given["source_attributions"], 0, 1))
    np.testing.assert_array_equal(item.prefix.values, np.swapaxes(given["target_attributions"][:-1], 0, 1))
    assert not item.explains
    # What a source token gives to all source tokens is 1; so is what a step gives to each side.
    inside = item.extras["encoder_self"]
    assert inside.names == ("step", "token", "layer", "head")
    np.testing.assert_allclose(inside.values.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(item.source.reduce("token", "sum").values, 1, rtol=1e-5)


def test_imported_results_are_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = load_attribution(FILES / "encoder_decoder_attention.json.gz")
    item.aggregate("layer:mean,head:mean,words,normalize").show(width=100)
    assert "aggregated: layer:mean, head:mean, words, normalize" in capsys.readouterr().out
    item.save(tmp_path / "out.json")
    assert load_attribution(tmp_path / "out.json").equals(item)


# Files built from the format.


def test_a_decoder_file_cell_by_cell(tmp_path: Path) -> None:
    path = tmp_path / "inseq.json"
    path.write_text(json.dumps(output(exec_time=NAN)))
    item = load_attribution(path)
    np.testing.assert_array_equal(item.scores.values, [[1, 3, NAN], [2, 4, 5]])
    assert [(t.text, t.start, t.stop, t.side) for t in item.tokens] == [
        ("The", 0, 3, "source"),
        (" manager", 3, 11, "source"),
        (" went", 0, 5, "prefix"),
    ]
    assert [(t.text, t.start) for t in item.steps] == [(" went", 0), (" home", 5)]
    np.testing.assert_array_equal(item.step_scores["probability"], np.float32([0.5, NAN]))
    assert item.info["inseq"]["exec_time"] == "nan"


def test_primitives_compressed_and_several(tmp_path: Path) -> None:
    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(one) for key, one in value.get("attributes", value).items()}
        return [bare(one) for one in value] if isinstance(value, list) else value

    path = tmp_path / "inseq.json.gz"
    path.write_bytes(gzip.compress(json.dumps(bare(output(sequence(), sequence()))).encode()))
    first, second = Attributions.load(path)
    assert first.scores.equals(second.scores)
    # The record has one text, so the second has what its tokens say by themselves.
    assert [t.text for t in second.tokens] == ["The", " manager", " went"]
    assert [t.start for t in second.tokens] == [None, None, None]


def test_source_alone_and_step_scores_alone() -> None:
    seq = sequence(source=tokens("▁Il", "▁gatto"), source_attributions=array([[1, 2], [3, 4]]),
                   target=tokens("<pad>", "▁The", "▁cat"), target_attributions=None,
                   attr_pos_start=1, attr_pos_end=3)  # fmt: skip
    item = from_inseq(output(seq, input_texts=["Il gatto"], generated_texts=["The cat"]))[0]
    np.testing.assert_array_equal(item.scores.values, [[1, 3], [2, 4]])
    assert item.text == "Il gatto"
    assert item.generated == "The cat"
    nothing = from_inseq(output(sequence(target_attributions=None), attribution_method="dummy"))[0]
    assert np.isnan(nothing.scores.values).all()
    assert nothing.scores.shape == (2, 3)


def test_half_precision_and_float8() -> None:
    item = from_inseq(output(sequence(target_attributions=array([[1, 2], [3, 4], [NAN, 5], [NAN, NAN]], np.float16))))
    np.testing.assert_array_equal(item[0].scores.values, [[1, 3, NAN], [2, 4, 5]])
    import torch
    from safetensors.torch import save

    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    text = base64.b64encode(save({"attribution": every})).decode()
    from whence.scores.inseq_file import _array

    np.testing.assert_array_equal(_array(text, "all"), every.float().numpy())


def test_merged_tokens_have_no_id_of_their_own() -> None:
    merged = tokens("ĠThe", "Ġmanager")
    merged[1]["attributes"]["id"] = -1
    foil = tokens("The", "Ġmanager", "Ġwent", "a → b")
    foil[3]["attributes"]["id"] = "o"
    item = from_inseq(output(sequence(target=foil)))[0]
    assert item.steps[1].id == -1
    assert item.steps[1].text == "a → b"


def change(**fields: Any) -> Callable[[], dict[str, Any]]:
    return lambda: output(sequence(**fields))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (change(target_attributions=array(np.ones((3, 2)))), r"shape \(3, 2\), but there are 4 tokens and 2 steps"),
        (change(target_attributions=array(np.ones((4, 2)))), "no step can see"),
        (change(target_attributions=array(np.full((4, 2, 2, 2), NAN))), "at most 3 are known"),
        (change(target_attributions=array(np.full((4, 2), np.inf))), "no step can see"),
        (change(target_attributions="@@@"), "JSON of an attribution"),
        (change(target_attributions=base64.b64encode(b"short").decode()), "arrays cannot be read"),
        (change(target_attributions=base64.b64encode(pack({"a": np.ones(2)})).decode()), "holds a, not 'attribution'"),
        (change(target_attributions=array(np.ones((4, 2)), np.int32)), "is of type I32"),
        (change(target_attributions=[1, 2]), "target_attributions: Input should be a valid string"),
        (change(step_scores={"probability": array([1.0])}), "there are 2 steps"),
        (change(attr_pos_start=3, attr_pos_end=9), "3 to 9 do not lie within the 4 tokens"),
        (change(source=None), "source"),
        (lambda: wrapped("FeatureAttributionOutput", {"sequence_attributions": []}), "info: Field required"),
        (lambda: {"sequence_attributions": 3, "info": {}}, "sequence_attributions"),
    ],
)
def test_damaged_files_are_refused(made: Callable[[], dict[str, Any]], message: str, tmp_path: Path) -> None:
    path = tmp_path / "inseq.json"
    path.write_text(json.dumps(made()))
    with pytest.raises(FileFormatError, match=message):
        Attributions.load(path)


@given(data=st.data())
def test_files_cut_or_changed_anywhere_are_refused_or_read(data: st.DataObject, tmp_path_factory: Any) -> None:
    text = bytearray(json.dumps(output()).encode())
    if data.draw(st.booleans()):
        text = text[: data.draw(st.integers(0, len(text) - 1))]
    else:
        text[data.draw(st.integers(0, len(text) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(text)
    with suppress(FileFormatError):
        assert len(Attributions.load(path)) == 1


# Spellings of tokens.


@pytest.mark.parametrize(
    ("spellings", "text", "expected"),
    [
        (["Hello", "Ġworld", "Ċ", "!"], None, ["Hello", " world", "\n", "!"]),
        (["Ġcaf", "Ã", "©"], None, [" caf", "", "é"]),
        (["▁Caf", "<0xC3>", "<0xA9>"], None, [" Caf", "", "é"]),
        (["un", "##able", "go"], None, [" un", "able", " go"]),
        (["un", "##able", "go"], "unable go", ["un", "able", " go"]),
        (["the", "cat"], "the  cat", ["the", "  cat"]),
        (["<s>", "▁a", "</s>"], "a", ["<s>", "a", "</s>"]),
        (["[CLS]", "a"], "a", ["[CLS]", "a"]),
        (["the", "CAT"], "the cat", ["the", "CAT"]),
    ],
)
def test_spellings(spellings: list[str], text: str | None, expected: list[str]) -> None:
    found = tokens_of([Piece(0, one) for one in spellings], text, split=len(spellings))
    assert [token.text for token in found] == expected


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20))
def test_bytes_spelled_as_gpt2_does_are_the_text(text: str) -> None:
    (spelled, _), *_ = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    # One token that is sure to be spelled in bytes.
    found = tokens_of([Piece(0, "Ġ"), *(Piece(0, one) for one in spelled)], None, split=0)
    assert "".join(token.text for token in found[1:]) == text
