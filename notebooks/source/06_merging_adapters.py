# %% [markdown]
# # Merging adapters 权重合并
#
# **How do you put an adapter into the weights, and prove that it is there?**
#
# An adapter is a small file beside a large model. To give the model away, to quantize it or to
# train the next stage on it, its update is added to the weights once and for all. That is one
# line of arithmetic, and a surprising number of ways to get a model that looks merged and is not.

# %% [markdown]
# ## What you will be able to do
#
# - **merge** one layer by hand, then a whole model, and **prove** equality of the logits
# - **see** which updates vanish in 16 bits
# - **explain** why one does not merge into 4-bit weights
# - **chain** adapters in order
# - **notice** a merge that did nothing

# %% [markdown]
# Time and memory of this chapter, measured when it was last built. It downloads nothing new.

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("06")

# %%
import copy
import json
import tempfile
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from matplotlib import pyplot as plt
from peft import PeftModel

import chinese_llama_lab as lab
from chinese_llama_lab import plots, results
from chinese_llama_lab.adapters import merge_adapters
from chinese_llama_lab.errors import LabError
from chinese_llama_lab.profiles import current_profile
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.sources.models import converted_model, load_base
from chinese_llama_lab.training.metrics import bits_per_character
from chinese_llama_lab.training.precision import weights_dtype
from chinese_llama_lab.training.pretrain import pretrain
from chinese_llama_lab.training.recipe import load_recipe

session = lab.setup(seed=0, chapter="06", torch=True)
profile = current_profile()
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# An adapter to merge: a few steps on Chinese news, as in chapter 04, without new tokens.

# %%
news = load_corpus("peoples-daily").chinese_punctuation()
train = news.split("train").take(400).texts()
held_out = [text[:300] for text in news.split("held-out").sample(profile["merge_texts"]).texts()]
recipe = load_recipe("smollm2-zh").replace(
    steps=profile["merge_steps"], replay_share=0.0, evaluate_every=0, log_every=1, embeddings="frozen"
)
base, tokenizer = load_base("smollm2", dtype=weights_dtype(recipe))
first = pretrain(base, tokenizer, train, recipe, folder / "first")
print(first.trained)
print(f"loss {first.losses[0]:.2f} → {first.losses[-1]:.2f} nats per token")

# %% [markdown]
# ## 1. One layer by hand
#
# The adapter's file holds a thin A and B for each matrix, and a small JSON says α and r.

# %%
from safetensors.torch import load_file, save_file

weights = load_file(first.adapter / "adapter_model.safetensors")
config = json.loads((first.adapter / "adapter_config.json").read_text(encoding="utf-8"))
name = "model.layers.0.self_attn.q_proj"
A = weights[f"base_model.model.{name}.lora_A.weight"].float()
B = weights[f"base_model.model.{name}.lora_B.weight"].float()
print(f"A {tuple(A.shape)}, B {tuple(B.shape)}, α {config['lora_alpha']}, r {config['r']}")

# %%
plain, _ = load_base("smollm2")
W = plain.get_submodule(name).weight.detach().clone()
merged_by_hand = W + config["lora_alpha"] / config["r"] * B @ A
adapted = PeftModel.from_pretrained(copy.deepcopy(plain), first.adapter).eval()
x = torch.randn(3, W.shape[1])
with torch.no_grad():
    expected = adapted.get_base_model().get_submodule(name)(x)
assert torch.allclose(x @ merged_by_hand.T, expected, atol=1e-4)
change = (merged_by_hand - W).norm() / W.norm()
print(f"W + α/r · BA gives what the adapted layer gives; the matrix changed by {change:.2%} of its length")

# %% [markdown]
# **Exercise 6.1.** Write `merge(W, A, B, alpha)`. The rank is in the shape of A.

# %%
# NBVAL_CHECK_OUTPUT
merge = ...
lab.check("6.1", merge)


# %% tags=["solution"]
def merge(W, A, B, alpha):
    return W + alpha / A.shape[0] * B @ A


# %% tags=["wrong-solution"]
def merge(W, A, B, alpha):
    return W + alpha * B @ A


# %% tags=["wrong-solution"]
def merge(W, A, B, alpha):
    return W + alpha / A.shape[1] * B @ A


# %% [markdown]
# ## 2. The whole model
#
# `merge_adapters` reads the base a few rows at a time and writes the merged file in order, so a
# 7B model is merged on a laptop. Does the result compute what base and adapter compute?

# %%
smollm2 = converted_model("smollm2")
report = merge_adapters(smollm2, [first.adapter], folder / "merged-fp32", dtype="float32")
merged, _ = load_base(str(folder / "merged-fp32"))
ids = torch.tensor([tokenizer(held_out[0])["input_ids"][:128]])
with torch.no_grad():
    apart = adapted.double()(ids).logits
    del adapted
    together = merged.double()(ids).logits
merged.float()
difference = float((apart - together).abs().max())
same = float((apart.argmax(-1) == together.argmax(-1)).float().mean())
print(f"tensors changed: {report.changed}, rows {report.rows:,}, tied: {report.tied}")
print(f"largest difference of a logit {difference:.1e}; the same first choice at {same:.0%} of positions")
assert difference < 1e-4 and same == 1

# %% [markdown]
# **Exercise 6.2.** Some scripts have α/r built in. An adapter was trained with rsLoRA, that is α/√r,
# with rank 64. What share of its update arrives if the script merges it with α/r?

# %%
# NBVAL_CHECK_OUTPUT
share_merged = ...
lab.check("6.2", share_merged)

# %% tags=["solution"]
share_merged = 64**0.5 / 64

# %% tags=["wrong-solution"]
share_merged = 8

# %% tags=["wrong-solution"]
share_merged = 1 / 64

# %% [markdown]
# ## 3. What sixteen bits keep
#
# bfloat16 has eight significant bits. Near a weight w the next number is about w/128 away, and an
# update smaller than half of that is rounded away. How many of the updates are that small?

# %%
exact, kept, moved = [], 0, 0
old, new = ({k: p.detach() for k, p in model.named_parameters() if "proj" in k} for model in (plain, merged))
updates = {key: new[key] - old[key] for key in old}
for key, update in updates.items():
    touched = update != 0
    exact.append((update.abs() / old[key].abs().clamp(min=1e-8))[touched].flatten()[::997])
    kept += int((new[key].bfloat16() != old[key].bfloat16())[touched].sum())
    moved += int(touched.sum())
relative = torch.cat(exact).clamp(1e-6, 10).log10()
print(f"{moved:,} weights moved; {1 - kept / moved:.0%} of them are the same again in bfloat16")

# %%
plots.plot_distributions(
    {"size of the update": relative.tolist()},
    title=f"In bfloat16, {1 - kept / moved:.0%} of the updated weights do not move",
    xlabel="log₁₀ of |update| / |weight|; the dashed line is 1/256, half the distance to the next number",
    reference=-2.408,
)
plt.show()

# %% [markdown]
# *Alternative text:* a histogram line over the logarithm of relative update size, with one peak;
# a dashed line marks what bfloat16 can still tell apart; part of the peak lies to its left.
#
# Do the lost updates matter? Each is lost or rounded up by chance, and errors of many weights
# cancel. The measure is the text:

# %%
merge_adapters(smollm2, [first.adapter], folder / "merged-bf16", dtype="bfloat16")


def bits(model):
    """Bits per character of held-out Chinese."""
    return bits_per_character(model, tokenizer, held_out, start="\n").bits_per_character


rounded, _ = load_base(str(folder / "merged-bf16"), dtype="float32")
table = {"base": bits(plain), "merged, float32": bits(merged), "merged, bfloat16": bits(rounded)}
del rounded
for key, value in table.items():
    print(f"{key:<18} {value:.3f} bits per character")

# %% [markdown]
# **Exercise 6.3.** A weight is exactly 1.0, and the next bfloat16 number above is 1 + 2⁻⁷. Rounding
# goes to the nearest. How large is the largest update that is lost entirely? (At exactly half the
# way, the even neighbour wins, and that is 1.0.)

# %%
# NBVAL_CHECK_OUTPUT
largest_lost = ...
lab.check("6.3", largest_lost)

# %% tags=["solution"]
largest_lost = 2**-8

# %% tags=["wrong-solution"]
largest_lost = 2**-7

# %% tags=["wrong-solution"]
largest_lost = 2**-9

# %% [markdown]
# ## 4. Why not into four bits
#
# NF4 (chapter 07) knows sixteen values in each block of 64 weights. The steps between them are
# coarse, and nearly every update falls between two. Three ways to a 4-bit Chinese model:


# %%
def through_nf4(weight):
    """What is left of a matrix after four bits."""
    packed, state = quantize_4bit(weight.contiguous(), quant_type="nf4", blocksize=64)
    return dequantize_4bit(packed, state)


def scored(function):
    """Bits per character of the model whose projections are function(name)."""
    trial = copy.deepcopy(plain)
    with torch.no_grad():
        for key, parameter in trial.named_parameters():
            if key in updates:
                parameter.copy_(function(key))
    return bits(trial)


four_bits = {key: through_nf4(weight) for key, weight in old.items()}
ways = {
    "4-bit base alone": lambda key: four_bits[key],
    "merge, then 4 bits": lambda key: through_nf4(new[key]),
    "4-bit base, adapter beside it": lambda key: four_bits[key] + updates[key],
    "merge into 4 bits": lambda key: through_nf4(four_bits[key] + updates[key]),
}
table |= {name: scored(function) for name, function in ways.items()}


# %%
def codes(weight):
    """The four-bit numbers themselves; two share a byte."""
    packed = quantize_4bit(weight.contiguous(), quant_type="nf4", blocksize=64)[0].flatten()
    return torch.stack((packed >> 4, packed & 15), dim=1)


same = []
for key, update in list(updates.items())[::10]:
    same.append(float((codes(four_bits[key] + update) == codes(old[key])).float().mean()))
same_share = sum(same) / len(same)
rows = [{"model": key, "bits per character": round(value, 4)} for key, value in table.items()]
results.save("06_merging", rows, seed=0, model="SmolLM2-135M-Instruct")
plots.plot_bars(
    {key: {"Chinese": value} for key, value in table.items()},
    title="What each way of merging costs, in bits per character of held-out Chinese",
    xlabel="bits per character (lower is better)",
)
plt.show()
print(f"merged into 4 bits, {same_share:.1%} of the four-bit codes are what they were before")

# %% [markdown]
# *Alternative text:* seven horizontal bars. Merging in 32 or 16 bits is lowest; the 4-bit ways lie
# higher.
#
# Merging into 4 bits rounds **twice**: the base first, then the sum, and the second rounding takes
# most of the update away again: compare that bar with the 4-bit base's. Merge in bfloat16, quantize
# the result. That is why `merge_adapters` refuses a quantized base.
#
# ## 5. Chains
#
# Chinese-Alpaca is LLaMA + one adapter + another: 32,000 rows, then 49,953, then 49,954. Each
# adapter was trained on the sum of those before it. A second adapter, on top of the first:

# %%
four_bits = updates = old = new = merged = None  # several copies of the model, no longer needed
again, _ = load_base(str(folder / "merged-fp32"), dtype=weights_dtype(recipe))
reviews = load_corpus("reviews").chinese_punctuation().split("train").take(400).texts()
second = pretrain(again, tokenizer, reviews, recipe.replace(seed=1), folder / "second")
at_once = merge_adapters(smollm2, [first.adapter, second.adapter], folder / "chain", dtype="float32")
in_turn = merge_adapters(folder / "merged-fp32", [second.adapter], folder / "turn", dtype="float32")
one, two = (load_file(folder / name / "model.safetensors") for name in ("chain", "turn"))
print(f"tensors changed by each: {at_once.changed}")
print(f"largest difference: {max(float((one[k] - two[k]).abs().max()) for k in one):.1e}")
assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)

# %% [markdown]
# Plain LoRA is a sum, and sums do not mind their order. But whole matrices (`modules_to_save`) and
# rows of new tokens **replace** what was there, and DoRA rescales it: there the order is part of
# the model. So the chain is merged in the order in which it was trained.
#
# ## 6. A merge that did nothing
#
# An adapter whose B is still zero, one saved under other names, one for another base: the result
# of merging looks like any model. Here are the first two.

# %%
for kind in ("zero", "renamed"):
    broken = folder / kind
    broken.mkdir()
    (broken / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    if kind == "zero":
        changed_weights = {k: v * 0 if "lora_B" in k else v for k, v in weights.items()}
    else:
        changed_weights = {k.replace("layers", "blocks"): v for k, v in weights.items()}
    save_file(changed_weights, broken / "adapter_model.safetensors")
    try:
        outcome = merge_adapters(smollm2, [broken], folder / f"from-{kind}")
        print(f"{kind}: merged, and these adapters changed nothing: {outcome.unchanged}")
    except LabError as error:
        print(f"{kind}: refused: {error.what}")

# %% [markdown]
# peft itself answers the second case with a warning about missing keys, and goes on with an adapter
# that was never loaded. Two habits catch all of it: compare **logits** before and after, and look
# at what the result says it was **made of**.

# %%
made_of = json.loads((folder / "chain" / "made_of.json").read_text(encoding="utf-8"))
print("made of:", {part: len(entries) for part, entries in made_of.items() if part != "dtype"})
first_file = next(iter(made_of["base"].items()))
print(f"for example {first_file[0]}: sha256 {first_file[1][:16]}…")

# %% [markdown]
# ## What we measured

# %%
results.load("06_merging")

# %% [markdown]
# ## What can go wrong
#
# - *α/r built into a script.* rsLoRA and DoRA then arrive wrong, or not at all.
# - *A config left behind.* Rows of the merged embedding and `vocab_size` must agree; here they do.
# - *A tied model whose head was trained apart.* Merged as if it were tied, one of the two is lost.
#   It is refused unless you untie on purpose.
# - *NaN.* An adapter from a run that failed merges into NaN without a word; here it is refused.
# - *Merging into 4 bits.* Merge first, quantize afterwards.
#
# ## Where this came from
#
# - LoRA, [arXiv 2106.09685](https://arxiv.org/abs/2106.09685); rsLoRA, [arXiv
#   2312.03732](https://arxiv.org/abs/2312.03732); DoRA, [arXiv
#   2402.09353](https://arxiv.org/abs/2402.09353); QLoRA and NF4, [arXiv
#   2305.14314](https://arxiv.org/abs/2305.14314)
# - the published chain: [Chinese-LLaMA-Alpaca](https://github.com/ymcui/Chinese-LLaMA-Alpaca)
#
# **Next:** [07 NF4 quantization 量化](07_nf4_quantization.ipynb): where those sixteen values come from.
