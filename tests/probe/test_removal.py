"""Features deleted, and replaced at deeper sites, against the untraced model: ids left out, and hooks on its blocks."""

from __future__ import annotations

import pytest
import torch

import whence
from removal_rows import TEXTS, Rows, asked, compare, respond, whole
from slow_reference import embedding_modules, outputs_replaced
from tiny_models import BOS, FAMILIES, VARIANTS, tiny_model

ALL = (*FAMILIES, *VARIANTS)


@pytest.fixture(params=ALL)
def hf(request):
    return tiny_model(request.param, dtype=torch.float64)


def left(ids, gone):
    return [token for token, out in zip(ids, gone, strict=True) if not out]


def test_deleting_is_leaving_ids_out(hf):
    both = hf.config.is_encoder_decoder

    def expected(prompt, continuation, mask, of):
        # The id that a decoder starts with stays; nothing at all is the beginning of a text.
        source, rest = left(prompt, mask[: len(prompt)]) or [BOS], mask[len(prompt) + both :]
        logits = []
        for step in range(len(continuation)):
            prefix = left(continuation[:step], rest[:step])
            given = {"input_ids": torch.tensor([source if both else [*source, *prefix]])}
            if both:
                given["decoder_input_ids"] = torch.tensor([[hf.config.decoder_start_token_id, *prefix]])
            logits.append(hf(**given, use_cache=False).logits[0, -1])
        return torch.stack(logits)

    compare(hf, expected, method=Rows("delete"))


def test_replacing_at_a_block_puts_there_what_it_is_in_the_reference_run(hf):
    model = whence.load(hf)
    vectors = [rows["mean"].double() for rows in model.embedding_rows([]).values()]
    stacks = ["encoder.", "decoder."] if model.encoder_decoder else [""]
    sites = [model.architecture.site(f"{stack}blocks.0.resid_post") for stack in stacks]
    blocks = [hf.get_submodule(site.spec["path"]) for site in sites]

    def expected(prompt, continuation, mask, of):
        inputs, first = whole(hf, prompt, continuation)
        parts = mask.split([len(prompt), len(continuation)]) if model.encoder_decoder else [mask]
        seen = {}

        def keep(number):
            return lambda value: seen.setdefault(number, value.clone())

        def put(number):
            return lambda value: torch.where(parts[number][:, None].expand(value.shape[-2], -1), seen[number], value)

        low = [
            (module, lambda value, vector=vector: vector.expand_as(value))
            for module, vector in zip(embedding_modules(hf), vectors, strict=True)
        ]
        with outputs_replaced([*low, *((block, keep(k)) for k, block in enumerate(blocks))]):
            hf(**inputs, use_cache=False)
        with outputs_replaced([(block, put(k)) for k, block in enumerate(blocks)]):
            return hf(**inputs, use_cache=False).logits[0, first:]

    compare(hf, expected, method=Rows(), layer=0, baseline="mean")


def test_several_layers_are_answered_one_after_another():
    model = whence.load(tiny_model("llama"))
    masks = [torch.eye(7, dtype=torch.bool)]
    apart = [respond(model, TEXTS[:1], masks, Rows(), layer=k) for k in (0, 1)]
    together = respond(model, TEXTS[:1], masks, Rows(), layer="all")
    torch.testing.assert_close(together, torch.stack(apart, dim=-1))
    assert asked["probe"].layer_labels == ("0", "1")


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_deleting_does_not_depend_on_how_rows_are_chunked(family, rows):
    model = whence.load(tiny_model(family))
    masks = [torch.rand(6, 8 - k, generator=torch.Generator().manual_seed(k)) < 0.5 for k in range(2)]
    whole = respond(model, TEXTS, masks, Rows("delete", rows=64))
    torch.testing.assert_close(respond(model, TEXTS, masks, Rows("delete", rows=rows)), whole, rtol=1e-5, atol=1e-5)


def test_what_is_left_of_the_prompt_does_not_depend_on_the_steps_asked_for():
    model = whence.load(tiny_model("gpt2"))
    masks = [torch.tensor([[True] * 5 + [False] * 2])]
    every = respond(model, TEXTS[:1], masks, Rows("delete"))
    for step in range(3):
        one = respond(model, TEXTS[:1], masks, Rows("delete"), steps=[step])
        torch.testing.assert_close(one[..., 0], every[..., step])


def test_fixed_tokens_stay_whatever_a_mask_says():
    model = whence.load(tiny_model("gpt2"))
    masks = [torch.ones(1, 7, dtype=torch.bool)]
    for removal in ("replace", "delete", "knockout"):
        found = respond(model, TEXTS[:1], masks, Rows(removal), keep=list(range(7)))
        torch.testing.assert_close(found[0, 0], asked["probe"].here[0], rtol=1e-5, atol=1e-5)
        assert not asked["probe"].free.any()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (Rows("erase"), {}, "unknown way of removing a feature 'erase'"),
        (
            Rows("delete"),
            {"layer": 0},
            "'delete' takes tokens out of the input, and layer= asks about a deeper",
        ),
        (Rows("replace", heads=[0]), {}, "layers and heads say where attention is knocked out"),
        (Rows("delete", layers=[0]), {}, "layers and heads say where attention is knocked out"),
        (Rows("delete"), {"baseline": "mean"}, "rows replaces nothing with these options, so baseline='mean' would be"),
    ],
)
def test_what_cannot_be_removed_is_refused(method, options, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.WhenceError, match=message):
        respond(model, TEXTS[:1], [torch.ones(1, 7, dtype=torch.bool)], method, **options)
