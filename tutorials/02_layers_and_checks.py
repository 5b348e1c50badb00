# %% [markdown]
# # Layers, baselines and checks
#
# How do you know that the numbers are right? Every result says how far the identities of its method held. This
# tutorial looks at them, at what a baseline does, and at scores inside the model.

# %%
import numpy as np

import whence

model = whence.load("whence/stories")
prompt = "One day a witch named Sawyer came to the village. Sawyer put the drum in the jar. The goose that"
continuation = " waited by the stone was sleepy."
ask = {"prompt": prompt, "continuation": continuation, "target": "logprob"}

# %% [markdown]
# ## The scores add up
#
# Integrated gradients shares out a difference: what the model says of the text, minus what it says of the baseline.
# The check `completeness` is what is missing. More points on the way make it smaller.

# %%
gaps = {}
for n_steps in (2, 16, 128):
    out = model.attribute(**ask, method="integrated_gradients", n_steps=n_steps)
    gaps[n_steps] = next(check.value for check in out.checks if check.name == "completeness")
assert gaps[128] < gaps[2]
assert gaps[128] < 0.02
gaps

# %% [markdown]
# With too few points the result is marked, and `strict=True` makes it an error.

# %%
rough = model.attribute(**ask, method="integrated_gradients", n_steps=1, rule="left")
assert not rough.verified
try:
    model.attribute(**ask, method="integrated_gradients", n_steps=1, rule="left", strict=True)
except whence.CheckFailed as error:
    print(error)
else:
    raise AssertionError("one point is not enough")

# %% [markdown]
# ## Compared with what?
#
# The baseline is part of the question, and the result says which one it was.

# %%
auto = model.attribute(**ask, method="integrated_gradients", n_steps=16)
mean = model.attribute(**ask, method="integrated_gradients", n_steps=16, baseline="mean")
assert auto.info["baseline"][0]["kind"] != mean.info["baseline"][0]["kind"]
assert not np.allclose(auto.scores.values, mean.scores.values, equal_nan=True)
dict(auto.info["baseline"][0])

# %% [markdown]
# ## Inside the model
#
# `layer="all"` asks the same at the end of every block: how much does the value at this place, at this depth,
# decide the step? The result has an axis more.

# %%
layers = model.attribute(**ask, method="input_x_gradient", layer="all")
assert layers.scores.names == ("step", "token", "layer")
layers.scores.axis("layer").labels

# %% [markdown]
# The verb "was" has to agree with "goose", although "stone" stands nearer. The deeper we look, the more of what
# decides has been moved to the place that is about to write; after the last block, nothing else counts.

# %%
verb = [step.text.strip() for step in layers.steps].index("was")
scores = np.abs(layers.scores.select("step", verb).values)
seen = np.flatnonzero(~np.isnan(scores[:, 0]))
share = scores[seen[-1]] / scores[seen].sum(axis=0)
assert share[-1] > 0.999
assert share[0] < 0.9
dict(zip(layers.scores.axis("layer").labels, share.round(2).tolist(), strict=True))

# %% [markdown]
# ## Two ways to the same derivatives
#
# Reverse mode costs as much as there are steps, forward mode as much as there are features. They agree.

# %%
reverse = model.attribute(**ask, method="input_x_gradient", mode="reverse")
forward = model.attribute(**ask, method="input_x_gradient", mode="forward")
scale = np.nanmax(np.abs(reverse.scores.values))
assert np.nanmax(np.abs(reverse.scores.values - forward.scores.values)) < 1e-4 * scale
reverse.info["engine"]["mode"], forward.info["engine"]["mode"]

# %% [markdown]
# What a call will cost can be asked before it runs.

# %%
print(model.estimate(**ask, method="integrated_gradients", n_steps=32))

# %% [markdown]
# ## Read any internal value
#
# The model is open: inside a trace all its values have names, the same ones on every architecture.

# %%
with model.trace(prompt):
    pattern = model.blocks[0].attn.pattern.save()
assert np.allclose(pattern.detach().sum(-1), 1, atol=1e-4)
[site.name for site in model.sites()][:12]
