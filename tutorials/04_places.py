# %% [markdown]
# # The same call wherever the weights are
#
# A model can be here, in full precision or quantised; on a server that speaks NDIF's protocol; or spread over a
# Petals swarm. After `whence.load` nobody asks where it runs: this page attributes one sentence in every place and
# compares the numbers.

# %%
import os
import re
import subprocess
import sys

import numpy as np

import whence
from whence.models import bundled

stories = str(bundled.path("whence/stories"))  # a folder, as every place knows it
prompt = "Once upon a time"
ask = {"method": "integrated_gradients", "n_steps": 20, "target": "logprob", "generate": {"max_new_tokens": 8}}

here = whence.load(stories, device="cpu")
expected = here.attribute(prompt, **ask)
expected.show()
found = {}

# %% [markdown]
# ## Here, with weights of 4 or 8 bits
#
# `dtype="nf4"` (or `"fp4"`, `"int8"`) loads through bitsandbytes. These are other weights, so the scores are those of
# another model: close to the original's for a model as small as this only in the large. What whence promises is that
# they are exactly the quantised model's.

# %%
for dtype in ("nf4", "int8"):
    model = whence.load(stories, dtype=dtype, device="cpu")
    out = model.attribute(prompt, [token.id for token in expected.steps], **{**ask, "generate": None})
    alike = np.corrcoef(np.nan_to_num(out.scores.values).ravel(), np.nan_to_num(expected.scores.values).ravel())[0, 1]
    print(f"{dtype}: correlation with full precision {alike:.3f}")
    assert alike > 0.5

# %% [markdown]
# ## On a server
#
# `whence serve-model` gives one model to other processes; NDIF gives very large ones to everybody. The client loads
# no weights. The first line that the server prints says that it runs the code that clients send: it listens on this
# machine alone unless it is told otherwise and given keys.

# %%
command = [sys.executable, "-m", "whence", "serve-model", stories, "--port", "0"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
try:
    address = None
    while address is None:
        line = server.stdout.readline()
        assert line, "the server did not start"
        print(line.rstrip())
        address = re.search(r"http://\S+", line)
    remote = whence.load(stories, remote=address[0])
    found["a server here"] = remote.attribute(prompt, **ask)
    print(remote.remote.transport.traffic)
finally:
    server.terminate()
    server.wait()
    server.stdout.close()

# %% [markdown]
# Four requests did it all: the text, the baseline's embedding, the clean run, and the derivatives of every step at
# every point of the path. What was sent is a few programs, some kilobytes of their source.
#
# With NDIF it is `remote="ndif"` and a key. Where a key gives no gradients, whence says so before anything runs, and
# `derivative="finite"` gives integrated gradients and input x gradient from forward passes alone:

# %%
finite = here.attribute(prompt, **ask, derivative="finite")
print(finite.checks)
largest = np.nanmax(np.abs(expected.scores.values))
assert np.nanmax(np.abs(finite.scores.values - expected.scores.values)) < 0.05 * largest

# %%
if host := os.environ.get("WHENCE_NDIF_HOST"):  # set by scripts/ndif_stack.sh
    found["NDIF"] = whence.load(stories, remote=host).attribute(prompt, **ask)

# %% [markdown]
# ## In a swarm
#
# `remote="petals"` loads the embeddings and the head here and asks servers of a Petals swarm for the blocks. The
# swarm gives the residual stream at the boundaries of blocks, with gradients; nothing inside of blocks.
#
# ```python
# model = whence.load("meta-llama/Llama-2-70b-hf", remote="petals", peers=["/ip4/.../tcp/31337/p2p/Qm..."])
# ```

# %%
if peers := os.environ.get("WHENCE_PETALS_PEERS"):  # set by scripts/petals_swarm.sh
    swarm = {"peers": peers.split(), "dht_prefix": os.environ["WHENCE_PETALS_PREFIX"]}
    served = os.environ["WHENCE_PETALS_MODEL"]
    # Servers of Petals have no fused attention kernels, whose rounding is another.
    alone = whence.load(served, device="cpu", attn_implementation="eager").attribute(prompt, **ask)
    together = whence.load(served, remote="petals", **swarm).attribute(prompt, **ask)
    print("swarm:", np.nanmax(np.abs(together.scores.values - alone.scores.values)))
    assert np.nanmax(np.abs(together.scores.values - alone.scores.values)) < 1e-5

# %% [markdown]
# ## Is it the same?

# %%
for place, out in found.items():
    difference = np.nanmax(np.abs(out.scores.values - expected.scores.values))
    print(f"{place}: {difference:.1e}")
    assert out.generated == expected.generated
    assert difference < 1e-5
