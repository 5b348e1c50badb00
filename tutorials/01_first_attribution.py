# %% [markdown]
# # A first attribution
#
# A language model writes a text token by token. For every token that it wrote we ask: **which parts of the text
# before it made it write this one?**
#
# The model is `whence/stories`. It ships with whence and knows one thing: short stories in which later words are
# decided by earlier ones. So we can see whether an answer is right.

# %%
import whence

model = whence.load("whence/stories")
model

# %% [markdown]
# ## The model writes, and we look
#
# Rows are the tokens of the text, columns the tokens that the model wrote. A number says how much the row raised
# the probability of the column, to a first approximation; a dot stands where the column cannot look.

# %%
out = model.attribute("Once upon a time", generate={"max_new_tokens": 10})
out.show()

# %% [markdown]
# The scores are an array with named axes. What a step cannot see is NaN: the first step sees only the prompt, the
# last one everything but itself.

# %%
import numpy as np

assert out.scores.names == ("step", "token")
assert len(out.steps) <= 10
seen = out.scores.defined.sum(axis=1)
assert (np.diff(seen) == 1).all()
seen

# %% [markdown]
# ## A text of ours
#
# We give the beginning *and* the continuation, and ask about one word of it. The story says where the shovel was
# put, so only one word can come last. This is a job for a method that compares: how does the probability of the
# word fall, token by token, when all of the text before it is replaced by unknown words?

# %%
prompt = (
    "One day a nun named Rowan came to the village. An old rope was in the barn. Rowan put the shovel in the closet."
)
continuation = " Later Rowan wanted the shovel again, so she looked in the closet."
answer = model.attribute(
    prompt, continuation, method="integrated_gradients", target="logprob", segments="word", step_scores=["probability"]
)
steps = [step.text for step in answer.steps]
last = max(k for k, text in enumerate(steps) if text.strip() and "closet".startswith(text.strip()))
assert answer.step_scores["probability"][last] > 0.5
answer.step_scores["probability"][last]

# %% [markdown]
# The words with the highest scores for that step:

# %%
best = [(token.text.strip(), round(score, 2)) for token, score in answer.top(5)[last]]
assert "closet" in [word for word, _ in best]
best

# %% [markdown]
# ## Keep it
#
# A result is one file, with every option, seed and version in it.

# %%
answer.save("closet.json")
again = whence.load_attribution("closet.json")
assert again.equals(answer)
assert again.info["method_options"]["n_steps"] == 50
again.info["versions"]
