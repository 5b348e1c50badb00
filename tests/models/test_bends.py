"""Where models are not linear: the table names every norm and every nonlinearity outside of mixtures of experts."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from tiny_models import FAMILIES, VARIANTS, tiny_model
from whence.core.errors import ModelError
from whence.models.components import architecture, restricted

ALL = (*FAMILIES, *VARIANTS)
ACTIVATIONS = ("transformers.activations", "torch.nn.modules.activation")


def is_norm(module):
    """Every norm of transformers says so in its class name."""
    return "norm" in type(module).__name__.lower() and not list(module.children())


def is_activation(module):
    return type(module).__module__ in ACTIVATIONS or "gelu" in type(module).__name__.lower()


def bends_of(found, rule):
    return [bend for bend in found.bends if bend["rule"] == rule]


@pytest.mark.parametrize("family", ALL)
def test_every_norm_and_nonlinearity_is_named_once(family):
    model = tiny_model(family)
    found = architecture(model)
    named = {name: module for name, module in model.named_modules() if "expert" not in name}
    for rule, fits in (("norm", is_norm), ("elementwise", is_activation)):
        paths = [bend["path"] for bend in bends_of(found, rule)]
        assert len(paths) == len(set(paths))
        assert set(paths) == {name for name, module in named.items() if fits(module)}


@pytest.mark.parametrize("family", ALL)
def test_every_attention_and_gate_has_its_products(family):
    model = tiny_model(family)
    found = architecture(model)
    attentions = [name.removesuffix(".z") for name in found.sites if name.endswith(".z")]
    for rule in ("pattern", "mix"):
        assert [bend["key"] for bend in bends_of(found, rule)] == attentions
    gated = [name for name, _ in model.named_modules() if name.endswith(("up_proj", "wi_1")) and "expert" not in name]
    gates = 2 if family == "phi3" else 0 if family == "mpt" else len(gated)
    assert len(bends_of(found, "gate")) == gates


@pytest.mark.parametrize("family", ALL)
def test_bends_are_plain_data_in_the_order_of_execution(family):
    found = architecture(tiny_model(family))
    assert json.loads(json.dumps(found.bends)) == list(found.bends)
    orders = [bend["order"] for bend in found.bends]
    assert all(a <= b for a, b in pairwise(orders))
    # Between sites, so that what a site holds is what its operation's rule has made.
    assert not set(orders) & {site.order for site in found.sites.values()}
    assert all(bend["eps"] > 0 for bend in bends_of(found, "norm"))


def test_names_that_a_row_gives_are_looked_for():
    for changes, lacking in (({"mlp_act": "mlp.bend"}, "mlp_act"), ({"q_norm": "norm_of_q"}, "q_norm")):
        with pytest.raises(ModelError, match=f"decoder.{lacking}"):
            architecture(tiny_model("llama"), family={"like": "llama", "decoder": changes})
    with pytest.raises(ModelError, match="embed_norm"):
        architecture(tiny_model("gpt2"), family={"like": "gpt2", "decoder": {"embed_norm": "transformer.ln"}})


def test_the_soft_cap_of_the_logits():
    found = architecture(tiny_model("gemma2"))
    (bend,) = bends_of(found, "cap")
    assert bend["cap"] == 3.0
    assert found.site("unembed").order < bend["order"] < found.site("logits").order
    assert not bends_of(architecture(tiny_model("llama")), "cap")


def test_a_place_that_gives_no_internals_gives_no_rules():
    found = architecture(tiny_model("llama"))
    assert restricted(found, lambda site: site.layer is None, "far away").bends == ()
