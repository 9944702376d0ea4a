# %% [markdown]
# # Memory and speed 显存与速度
#
# **What fits on which GPU, and how many characters a second does it write?**
#
# Two questions decide whether a model is of use to somebody: does it fit, and does one wait for it?
# Both can be answered before anything is bought or downloaded, with a config file and some
# arithmetic. Then they are measured, because arithmetic that was never measured is an opinion.

# %% [markdown]
# ## What you will be able to do
#
# - **add up** the bytes of inference 推理, LoRA, QLoRA and full training 全量训练 by hand
# - **tell** GB from GiB, and **say** what fits on a card of 6 to 80 GB
# - **compute** a KV cache 键值缓存, with and without GQA 分组查询注意力
# - **find** the limit of a decoding speed in the memory bandwidth 显存带宽, and what is lost below it
# - **turn** tokens per second into seconds per page of Chinese

# %% [markdown]
# Time and memory of this chapter, measured when it was last built. It downloads nothing new.

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("08")

# %%
import copy
import tempfile
import time
from pathlib import Path

import torch
from matplotlib import pyplot as plt

import chinese_llama_lab as lab
from chinese_llama_lab import plots, results
from chinese_llama_lab.errors import LabError
from chinese_llama_lab.inference.activations import kept_by_layer
from chinese_llama_lab.inference.calculator import Calculator, case_rows, component_rows, grouped
from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.fits import ASKED, fits, knobs, longest_block
from chinese_llama_lab.inference.memory import GB, GIB
from chinese_llama_lab.inference.residuals import residuals
from chinese_llama_lab.inference.settings import settings
from chinese_llama_lab.inference.shapes import shape_of
from chinese_llama_lab.inference.verdicts import vram_verdicts
from chinese_llama_lab.inference.weights import kv_bytes_per_token
from chinese_llama_lab.profiles import current_profile

session = lab.setup(seed=0, chapter="08", torch=True)
profile = current_profile()


# %% [markdown]
# Some figures take longer than a chapter may, or another machine. They come from `benchmarks/`;
# where one is not here, the notebook says how to get it.


# %%
def benchmark(name, command):
    """The rows that a benchmark wrote, or none and how to get them."""
    try:
        return results.load(name)
    except LabError:
        print(f"results/{name}.csv is not here. To measure it: {command}")
        return None


# %% [markdown]
# ## 1. Where the bytes go
#
# Llama-2-7B, from five numbers of its config. Each layer has four matrices of attention and three of
# the MLP; before and after the layers stand the embedding and the head. That is all.

# %%
# NBVAL_CHECK_OUTPUT
width, inner, layers, vocabulary = 4096, 11008, 32, 32000
linear = layers * (4 * width * width + 3 * width * inner)
tables = 2 * vocabulary * width
norms = (2 * layers + 1) * width
parameters = linear + tables + norms
print(f"{parameters:,} parameters, {linear / parameters:.1%} of them in the linear layers")

# %% [markdown]
# In bfloat16 a weight takes two bytes. In NF4 (chapter 07) it takes 4.5 bits: half a byte, and four
# bytes of scale for each block of 64. With double quantization 二次量化 the scales shrink to one byte,
# and a few more. Embedding, head and norms stay in 16 bits.

# %%
# NBVAL_CHECK_OUTPUT
by_hand = {
    "none": 2 * parameters,
    "nf4": linear * (1 / 2 + 4 / 64) + 2 * (tables + norms),
    "nf4-double": linear * (1 / 2 + 1 / 64 + 4 / (64 * 256)) + 2 * (tables + norms),
}
weights = ("linear weights", "quantization constants", "embeddings", "head", "norms and biases")
for kind, size in by_hand.items():
    memory = estimate("llama-2-7b", quantization=kind)
    package = sum(memory.components[part] for part in weights)
    assert abs(package / size - 1) < 1e-6
    print(f"{kind:<11} {size / GB:6.2f} GB  {size / GIB:6.2f} GiB   (the package says the same)")

# %% [markdown]
# Mind the unit. A file manager and a paper count in GB, 10⁹ bytes; a card that is sold with "24 GB"
# has 24 GiB, 2³⁰ bytes each, and tools such as `nvidia-smi` count in those. The package always
# says which.
#
# **Exercise 8.1.** Write `to_gib(gb)`: how many GiB are so many GB?

# %%
# NBVAL_CHECK_OUTPUT
to_gib = ...
lab.check("8.1", to_gib)


# %% tags=["solution"]
def to_gib(gb):
    return gb * 10**9 / 2**30


# %% tags=["wrong-solution"]
def to_gib(gb):
    return gb * 2**30 / 10**9


# %% tags=["wrong-solution"]
def to_gib(gb):
    return gb * 1000 / 1024


# %% [markdown]
# Weights are not all. To read a prompt and to write, a model also needs the keys and values of the
# tokens so far, the activations 激活值 of one layer, logits, and what CUDA takes for itself; a
# quantized matrix is unpacked in the moment of its product. `estimate` adds all of it up from
# the shape alone:

# %%
memory = estimate("llama-2-7b", quantization="nf4", block=2048)
print(memory)

# %% [markdown]
# ## 2. What training adds
#
# A weight that is *trained* drags more along: its gradient, and the two moments of Adam. LoRA trains
# few weights, in float32. Full training trains all.

# %%
# NBVAL_CHECK_OUTPUT
rank = 8
lora = layers * rank * (4 * (width + width) + 3 * (width + inner))
lora_bytes = lora * (4 + 4 + 4 + 4)  # the weight, its gradient, two moments
full_bytes = parameters * (2 + 2 + 4 + 4)  # weight and gradient in bfloat16, moments in float32
parts = estimate("llama-2-7b", "lora", rank=rank).components
assert lora_bytes == parts["LoRA weights"] + parts["gradients"] + parts["Adam moments"]
parts = estimate("llama-2-7b", "full").components
assert full_bytes == sum(parts[part] for part in (*weights, "gradients", "Adam moments") if part in parts)
print(f"LoRA, rank {rank}: {lora:,} trained weights, {lora_bytes / GIB:.2f} GiB beside the model")
print(f"full: {parameters:,} trained weights, {full_bytes / GIB:.1f} GiB, the model included")

# %% [markdown]
# And the **activations**: what the forward pass has to keep until the backward pass comes. For one
# token and one layer:

# %%
shape = shape_of("llama-2-7b")
run = settings("lora", block=512)
kept = kept_by_layer(shape, run)
for what, size in kept.items():
    print(f"{what:<26} {size / 1024:7.1f} KiB")
one = sum(kept.values())
print(f"{'a token, all layers':<26} {shape.layers * one / 2**20:7.1f} MiB")
print(f"{'with checkpointing':<26} {(shape.layers * 2 * shape.width + one) / 2**20:7.1f} MiB")

# %% [markdown]
# Gradient checkpointing 梯度检查点 keeps the input of each layer alone, and computes the layer again
# when its turn comes: more time, and a fraction of the bytes. Seven ways to use the same model, for a
# sequence of 512 tokens:

# %%
training = {"block": 512, "gradient_checkpointing": True}
cases = {
    "inference, NF4": estimate("llama-2-7b", quantization="nf4"),
    "QLoRA": estimate("llama-2-7b", "qlora", **training),
    "inference, bfloat16": estimate("llama-2-7b"),
    "LoRA": estimate("llama-2-7b", "lora", **training),
    "LoRA, no checkpointing": estimate("llama-2-7b", "lora", block=512),
    "LoRA, embedding and head whole": estimate("llama-2-7b", "lora", embeddings="published", **training),
    "full": estimate("llama-2-7b", "full", **training),
}
stacks = {name: {g: size / GIB for g, size in grouped(m).items()} for name, m in cases.items()}
plots.plot_stacks(
    stacks,
    title=f"Llama-2-7B: from {cases['inference, NF4'].gib:.1f} GiB to {cases['full'].gib:.0f} GiB",
    xlabel="GiB at the moment that needs most; dashed: a GPU's memory",
    references={"24 GiB": 24, "80 GiB": 80},
)
plt.show()

# %% [markdown]
# *Alternative text:* seven stacked horizontal bars. Quantized weights make the first two short; in the
# next ones the weights in 16 bits are most of the bar; full training is several times as long, nearly
# all of it gradients and optimizer, and passes the line of 80 GiB.
#
# The published recipe trains embedding and head whole. That is the step between the fourth bar and
# the sixth: two matrices, their copies in float32, gradients and moments. Training the new rows alone, as
# in chapters 03 and 04, saves most of it.
#
# **Exercise 8.2.** LoRA on Llama-2-7B, rank 8, batch 4, sequences of 2,048 tokens, no checkpointing.
# *One* of these changes makes it fit on a card of 24 GB. Which: `"nf4-double"`, `"checkpointing"` or
# `"rank"` (4 instead of 8)? Guess first.

# %%
# NBVAL_CHECK_OUTPUT
change_that_helps = ...
lab.check("8.2", change_that_helps)

# %% tags=["solution"]
large = {"block": 2048, "batch": 4}
tries = {
    "nf4-double": estimate("llama-2-7b", "lora", quantization="nf4-double", **large).gib,
    "checkpointing": estimate("llama-2-7b", "lora", gradient_checkpointing=True, **large).gib,
    "rank": estimate("llama-2-7b", "lora", rank=4, **large).gib,
}
change_that_helps = next(name for name, size in tries.items() if size <= 24)

# %% tags=["wrong-solution"]
change_that_helps = "nf4-double"

# %% tags=["wrong-solution"]
change_that_helps = "rank"

# %% [markdown]
# ## 3. A calculator
#
# Turn the dials: model, task, weights, new tokens, batch. The estimate follows. (A saved notebook keeps
# no dials: run the cell to have them. What they would show is in the table below.)

# %%
Calculator(model="llama-7b", task="qlora", new_tokens=17953, embeddings="new-rows").box

# %%
results.table("components of a QLoRA run", component_rows(cases["QLoRA"]))

# %%
chinese = {
    "Chinese-LLaMA-7B, inference, NF4, 2,048 tokens": estimate(
        "chinese-llama-7b", block=2048, quantization="nf4"
    ),
    "Chinese-LLaMA-13B, the same": estimate("chinese-llama-13b", block=2048, quantization="nf4"),
    "7B, QLoRA": estimate("chinese-llama-7b", "qlora", **training),
    "7B, LoRA": estimate("chinese-llama-7b", "lora", **training),
    "7B, LoRA and new rows": estimate(
        "chinese-llama-7b", "lora", embeddings="new-rows", new_tokens=17953, **training
    ),
    "7B, as published": estimate("chinese-llama-7b", "lora", embeddings="published", **training),
    "7B, full": estimate("chinese-llama-7b", "full", **training),
}
results.save("08_memory", case_rows(chinese), seed=0, model="shapes alone")

# %% [markdown]
# ## 4. What fits where
#
# The same for the cards that people have. *Tight* means less than a tenth below the limit: an estimate
# may be wrong by as much, and a desktop takes its share.

# %%
table = fits("chinese-llama-7b")
fitting = [
    {
        "what": what,
        "needs GiB": f"{memory.gib:.1f}",
        **{f"{gpu} GiB": word for gpu, word in zip(table.gpus, words, strict=True)},
    }
    for what, (memory, words) in table.rows.items()
]
results.save("08_fits", fitting, seed=0, model=table.name)

# %% [markdown]
# And if it does not fit? Each knob alone, for three situations, the most helpful first. What helps most
# depends on where the bytes are: with one short sequence in the weights, with a large batch in the
# activations.

# %%
situations = {
    "inference, 2,048 tokens": ("inference", {"block": 2048}),
    "LoRA, 1 × 512": ("lora", {"block": 512}),
    "LoRA, 4 × 2,048": ("lora", {"block": 2048, "batch": 4}),
}
for name, (task, options) in situations.items():
    print(f"{name}: {estimate('llama-2-7b', task, **options).gib:.1f} GiB")
    for knob in knobs("llama-2-7b", task, **options)[:4]:
        print(f"    −{knob.saved / GIB:5.1f} GiB  {knob.change}")

# %% [markdown]
# The other way round: how long may a sequence be?

# %%
lengths = []
for kind in ("none", "int8", "nf4", "nf4-double"):
    found = {f"{gpu} GiB": f"{longest_block('llama-2-7b', gpu, quantization=kind):,}" for gpu in ASKED}
    lengths.append({"weights": kind, **found})
results.table("tokens of prompt and answer that fit, Llama-2-7B", lengths)

# %% [markdown]
# Zero means that not even the weights fit. Beyond its context (4,096 tokens here) the model does not
# write sense, whatever fits.

# %% [markdown]
# ## 5. The KV cache
#
# A model that writes looks back at every token so far. It keeps their keys 键 and values 值, so as not
# to compute them again: one vector of each, for every layer and every head. SmolLM2 has 9 heads of
# 64 numbers, but only 3 of keys and values: three heads of queries share one. That is *grouped-query
# attention*, GQA. A real cache after 100 tokens:

# %%
from chinese_llama_lab.sources.models import converted_model, load_base

plain, tokenizer = load_base("smollm2")
ids = torch.tensor([tokenizer("中国的经济发展，" * 40)["input_ids"][:100]])
with torch.inference_mode():
    cache = plain(ids, use_cache=True).past_key_values
real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
config = plain.config
by_hand = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * ids.shape[1] * 4
print(f"keys of one layer: {tuple(cache.layers[0].keys.shape)}, {plain.dtype}")
print(f"the cache: {real:,} bytes; by hand: {by_hand:,}")
assert real == by_hand == kv_bytes_per_token(shape_of(plain), "float32") * ids.shape[1]

# %% [markdown]
# **Exercise 8.3.** Write `kv_bytes(layers, kv_heads, head_width, tokens, bytes_per_number)` for any
# model and length.

# %%
# NBVAL_CHECK_OUTPUT
kv_bytes = ...
lab.check("8.3", kv_bytes)


# %% tags=["solution"]
def kv_bytes(layers, kv_heads, head_width, tokens, bytes_per_number):
    return 2 * layers * kv_heads * head_width * tokens * bytes_per_number


# %% tags=["wrong-solution"]
def kv_bytes(layers, kv_heads, head_width, tokens, bytes_per_number):
    return layers * kv_heads * head_width * tokens * bytes_per_number


# %% tags=["wrong-solution"]
def kv_bytes(layers, kv_heads, head_width, tokens, bytes_per_number):
    return 2 * layers * kv_heads * head_width * tokens


# %% [markdown]
# LLaMA-7B has as many heads of keys as of queries (multi-head attention 多头注意力, MHA). Llama-3-8B,
# hardly larger, shares each among four. In bfloat16:

# %%
# NBVAL_CHECK_OUTPUT
caches = []
for name in ("llama-7b", "llama-13b", "llama-3-8b", "qwen2.5-7b", "smollm2"):
    shape = shape_of(name)
    token = kv_bytes_per_token(shape)
    caches.append(
        {
            "model": name,
            "heads": f"{shape.heads}, {shape.kv_heads} of keys",
            "KiB a token": f"{token / 1024:g}",
            "as MHA": f"{token / 1024 * shape.heads / shape.kv_heads:g}",
            "GiB at 4,096 tokens": f"{4096 * token / GIB:.2f}",
            "tokens as heavy as the weights": f"{2 * shape.parameters / token:,.0f}",
        }
    )
results.table("KV caches in bfloat16", caches)

# %% [markdown]
# One conversation hardly notices the difference. A server with fifty of them at once does: there the
# cache, not the weights, decides how many people can be served.
#
# ## 6. Is the estimate right?
#
# Others have published what their runs took. `published.py` holds their figures with the settings of
# each run, and one rule for all rows: nothing is tuned row by row.

# %%
compared = residuals()
points = {}
for row in compared.rows:
    unit = GIB if row.figure.unit == "GiB" else GB
    x, y = points.setdefault(row.figure.source.split(",")[0], ([], []))
    x.append(row.figure.value * unit / GIB)
    y.append(row.estimated * unit / GIB)
figure, axes = plots.plot_lines(
    points,
    title=f"Median error {compared.median:.1%}; {len(compared.far)} of {len(compared.rows)} beyond 25 %",
    xlabel="published, GiB",
    ylabel="estimated, GiB",
    xscale="log",
    yscale="log",
)
for line in axes.lines:
    line.set_linestyle("none")
axes.plot([3, 70], [3, 70], color="#555555", linewidth=0.9, linestyle="--")
plt.show()

# %% [markdown]
# *Alternative text:* estimates over published figures of several sources, both logarithmic. Nearly all
# points lie along the dashed diagonal; two lie clearly below it.

# %%
for row in compared.far:
    print(f"{row.figure.what}: {row.figure.value} {row.figure.unit}, estimated {row.estimated:.2f}")
    print(f"    {row.figure.explanation.split('. ')[0]}.")
results.save("08_residuals", [row.row() for row in compared.rows], seed=0)

# %% [markdown]
# An outlier with a reason is worth more than a fudge factor. And on this machine, each case measured in
# a fresh process, beside its estimate:

# %%
memory_here = benchmark("bench_memory", "python benchmarks/memory.py --save")
memory_here

# %% [markdown]
# Now to an article about these models. It gives figures of VRAM 显存 without unit, prompt length or
# loader. Each gets its arithmetic, and a verdict:

# %%
for verdict in vram_verdicts():
    print(f"{verdict.claim}\n    {verdict.verdict}: {verdict.arithmetic}\n")

# %% [markdown]
# ## 7. Two speeds, and one roof
#
# Reading a prompt (*prefill* 预填充) takes all its tokens through the model at once. Writing (*decoding*
# 解码) takes one token at a time, and for each all weights are read again. That is not the same work.
# Per weight there is a multiplication and an addition for each token, and 2 bytes to fetch, whether
# for one token or for a hundred. Operations per byte are the *arithmetic intensity* 计算强度.
#
# A machine has two limits: how fast it reads memory, and how fast it computes. Measured here:

# %%
from chinese_llama_lab.inference.bandwidth import memory_bandwidth, step_bytes
from chinese_llama_lab.inference.speed import measure_speed
from chinese_llama_lab.inference.step_time import step_time

bandwidth = memory_bandwidth(profile["speed_mebibytes"] * 2**20)
print(bandwidth)


def computing(dtype, size=1024):
    """Floating-point operations per second of a product of square matrices."""
    a, b = torch.randn(2, size, size, dtype=dtype)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


peak = {kind: computing(dtype) for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
for kind, rate in peak.items():
    print(f"{kind}: {rate / 1e9:,.0f} billion operations per second")

# %% [markdown]
# The speeds themselves, by hand first: read a prompt, then write token by token, and look at the clock.
# The package does the same with a warm-up, repeats, a median and a spread.

# %%
import statistics


@torch.inference_mode()
def by_the_clock(model, ids, new_tokens):
    """Tokens per second of reading, and of writing."""
    started = time.perf_counter()
    out = model(ids, use_cache=True, logits_to_keep=1)
    read = time.perf_counter()
    for _ in range(new_tokens):
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
    return ids.numel() / (read - started), new_tokens / (time.perf_counter() - read)


prompt = {"prompt_tokens": profile["speed_prompt"], "new_tokens": profile["speed_tokens"]}
limited = {**prompt, "repeats": profile["speed_repeats"], "bandwidth": bandwidth}
first = measure_speed(plain, tokenizer, **limited, name="SmolLM2, fp32").measured[0]
long = torch.tensor([tokenizer("中国的经济发展，" * 200)["input_ids"][: profile["speed_prompt"]]])
tries = [by_the_clock(plain, long, profile["speed_tokens"]) for _ in range(profile["speed_repeats"])]
reading, writing = (statistics.median(values) for values in zip(*tries, strict=True))
print(f"by hand: reads {reading:.0f} tokens per second, writes {writing:.1f}")
print(f"package: reads {first.prefill.rate:.0f} tokens per second, writes {first.decode.rate:.1f}")

# %% [markdown]
# Where does that lie under the roof? Below some intensity memory is the limit (the rising part), above
# it arithmetic (the flat part). The figure shows the model in two dtypes.

# %%
from chinese_llama_lab.quantization.load import load_quantized

models = {"fp32": plain, "bf16": load_quantized("smollm2", "bf16")[0]}
batched = measure_speed(
    models["bf16"], tokenizer, **limited, batches=profile["speed_batches"], name="SmolLM2, bf16"
).measured
speeds = {"fp32": first, "bf16": batched[0]}
sizes = shape_of(plain)  # reading computes the head for the last token alone, writing for each
operations = {"writing": 2 * (sizes.linear + sizes.matrix), "reading": 2 * sizes.linear}
intensities = [2**power for power in range(-2, 12)]
lines = {}
for kind, size in (("fp32", 4), ("bf16", 2)):
    roof = [min(peak[kind], bandwidth.bytes_per_second * i) / 1e9 for i in intensities]
    lines[f"roof, {kind}"] = (intensities, roof)
    row = speeds[kind]
    at = (2 / size, 2 * row.prompt_tokens / size)
    rates = {"writing": row.decode.rate, "reading": row.prefill.rate}
    achieved = [rates[what] * operations[what] / 1e9 for what in rates]
    lines[f"SmolLM2, {kind}: writing, reading"] = (at, achieved)

# %%
figure, axes = plots.plot_lines(
    lines,
    title=f"Writing runs at {speeds['bf16'].share:.0%} (bf16) and {first.share:.0%} (fp32) of memory's limit",
    xlabel="operations per byte of weights",
    ylabel="billion operations per second",
    xscale="log",
    yscale="log",
)
for line in axes.lines[1::2]:
    line.set_linestyle(":")
plt.show()

# %% [markdown]
# *Alternative text:* two roofs over the operations per byte, rising and then flat, and below each of them
# two points: writing on the left, below the rising part; reading on the right, below the flat part.
#
# This gives the most useful formula of the chapter: **tokens per second are at most bandwidth divided by
# the bytes of the weights** (and of the cache). It holds on any machine. Figures published for
# Chinese-LLaMA-2-7B with llama.cpp on an M1 Max, milliseconds per token, turned into bytes per second:

# %%
# NBVAL_CHECK_OUTPUT
seven = shape_of("chinese-llama-2-7b")
read = seven.linear + seven.matrix  # the embedding gives one row a token; the head is read whole
for kind, bits, milliseconds in (("F16", 16, 117), ("Q8_0", 8.5, 65), ("Q4_0", 4.5, 39)):
    size = read * bits / 8
    rate = size / (milliseconds / 1000)
    print(f"{kind:<5} {size / GB:5.2f} GB a token, {milliseconds} ms: {rate / GB:.0f} GB per second")

# %% [markdown]
# Three file sizes, nearly one rate: writing is reading memory. A smaller file is a faster model, until
# unpacking costs as much as fetching.
#
# **Exercise 8.4.** Llama-2-7B in NF4 takes 4.17 GB. An RTX 3090's memory gives 936 GB/s (its data sheet).
# How many tokens per second are the limit, for one sequence and with a cache that is still short?

# %%
# NBVAL_CHECK_OUTPUT
limit_of_decoding = ...
lab.check("8.4", limit_of_decoding)

# %% tags=["solution"]
limit_of_decoding = 936 / 4.17

# %% tags=["wrong-solution"]
limit_of_decoding = 936 / 13.48

# %% tags=["wrong-solution"]
limit_of_decoding = 4.17 / 936

# %% [markdown]
# The article says 45 tokens per second for a 7B in four bits, and 28 for a 13B, on a card that it does not
# name. What they would need at least, and what some cards give (GB/s, from their data sheets):

# %%
# NBVAL_CHECK_OUTPUT
cards = {"RTX 3060": 360, "RTX 3090": 936, "RTX 4090": 1008, "A100 80 GB": 2039, "H100 SXM": 3350}
for name, claimed in (("chinese-llama-7b", 45), ("chinese-llama-13b", 28)):
    parts = estimate(name, quantization="nf4").components
    size = sum(parts.get(part, 0) for part in weights) - parts["embeddings"]
    print(f"{name} at {claimed} tokens per second: {claimed * size / GB:.0f} GB/s")
    for card, rate in cards.items():
        print(
            f"    {card:<11} at most {rate * GB / size:4.0f}; the claim is {claimed * size / GB / rate:.0%}"
        )

# %% [markdown]
# The claim is possible on each of them, and far below the limit of the larger ones. A speed without the
# card's name says little.
#
# ## 8. What is lost below the roof
#
# Why not the whole of the limit? One step again, taken apart: the same step without its matrix products;
# how many small operators are left in it, and what the cheapest of them costs; the rest is Python.

# %%
steps = max(2, profile["speed_tokens"])
apart = {}
for kind, model in models.items():
    for engine in ("forward", "fast"):
        apart[f"{kind}, {engine}"] = step_time(
            model, long, bytes_per_second=bandwidth.bytes_per_second, name=engine, steps=steps
        )
parts = ("memory", "products", "operators", "python")
stacks = {
    name: {part: 1e3 * max(0.0, getattr(taken, part)) for part in parts} for name, taken in apart.items()
}
slow, fast = apart["bf16, forward"], apart["bf16, fast"]
plots.plot_stacks(
    stacks,
    title=f"One step in bf16: {1e3 * slow.total:.1f} ms, and {1e3 * fast.total:.1f} ms with a leaner loop",
    xlabel="milliseconds per token",
)
plt.show()

# %% [markdown]
# *Alternative text:* four stacked bars: float32 and bfloat16, each with the library's loop and with a lean
# one. Memory is the first part of each; matrix products, small operators and Python follow.

# %%
for name, taken in apart.items():
    print(f"{name:<14} {taken}")

# %% [markdown]
# *fast* is the package's own decoding: the same model, keys and values in a buffer that is allocated once,
# and no cache objects or masks for a single token. What it saves is the last two parts, operators and Python.
# Products are the same weights; if they differ between the two loops, the processor has a faster way for one
# row of one dtype than for another, or was busy. It has to write the same:

# %%
from chinese_llama_lab.inference.decode import generate_fast

written = generate_fast(plain, long, profile["speed_tokens"])
with torch.inference_mode():
    expected = plain.generate(
        long,
        attention_mask=torch.ones_like(long),
        max_new_tokens=profile["speed_tokens"],
        min_new_tokens=profile["speed_tokens"],
        do_sample=False,
    )
assert torch.equal(written, expected)
print(f"{profile['speed_tokens']} tokens, the same as transformers'")

# %% [markdown]
# A model of 7B reads many times as many bytes a step, with a similar number of operators: there Python
# hardly counts. It is small models that are slow for their size.

# %%
times = shape_of("llama-7b").parameters / shape_of("smollm2").parameters
print(f"LLaMA-7B: {times:.0f} times the weights, {shape_of('llama-7b').layers} layers instead of", end=" ")
print(shape_of("smollm2").layers)

# %% [markdown]
# What else changes the speed: **more sequences at once**, because the weights are read once for all of
# them; and **four bits**, which need fewer bytes but have to be unpacked.

# %%
four_bits, _ = load_quantized("smollm2", "nf4")
small = measure_speed(four_bits, tokenizer, **limited, name="SmolLM2, nf4").measured
rows = [row.row() for row in (first, *batched, *small)]
columns = (
    "name",
    "batch",
    "prefill",
    "decode",
    "decode_slowest",
    "decode_fastest",
    "limit",
    "share_of_limit",
)
results.save("08_speed", rows, seed=0, model="SmolLM2-135M-Instruct").only(*columns)

# %%
sizes = [row.batch for row in batched]
together = [row.decode.rate for row in batched]
plots.plot_lines(
    {
        "all sequences together": (sizes, together),
        "each of them": (sizes, [rate / size for rate, size in zip(together, sizes, strict=True)]),
    },
    title=f"{sizes[-1]} sequences at once: {together[-1] / together[0]:.1f} times the tokens per second",
    xlabel="sequences at once",
    ylabel="tokens per second, bf16",
    ylim=(0, None),
)
plt.show()

# %% [markdown]
# *Alternative text:* tokens per second over the number of sequences at once: the sum rises, the speed of
# each sequence falls slowly.
#
# NF4 saves memory: sections 1 and 4 count it. (`peak_gib` at the end is of the whole process and keeps what
# the models before it took, so that it grows from row to row.) Whether NF4 also saves time is in the table,
# and depends on the processor: bitsandbytes was written for GPUs; a processor has to unpack the weights
# before it can multiply, which a decoding step that waits for memory can afford and a long prompt less.
#
# ## 9. Characters per second
#
# Now the question that began in chapter 01. A reader does not wait for tokens 词元, a reader waits for a
# page 页. The vocabulary of chapter 02 puts more characters into each token, and the model hardly becomes
# larger. New rows need no training for a measurement of *speed*: what it writes is nonsense, at the same
# pace as sense.

# %%
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

news = load_corpus("peoples-daily").chinese_punctuation()
train = news.split("train").take(profile["speed_documents"]).texts()
extension = continue_bpe(tokenizer, train, profile["many_new_tokens"])
longer = copy.deepcopy(models["bf16"])
extend_embeddings(longer, tokenizer, extension.tokenizer)
pages = {}
for name, model, words in (
    ("as it came", models["bf16"], tokenizer),
    (f"+{len(extension):,} tokens", longer, extension.tokenizer),
):
    pages[name] = measure_speed(model, words, **limited, name=name).measured[0]

# %%
page = 500  # characters, a page of a small book
rows = []
for name, row in pages.items():
    rows.append(
        {
            "vocabulary": name,
            "tokens per character": round(1 / row.characters_per_token, 3),
            "tokens per second": round(row.decode.rate, 1),
            "characters per second": round(row.characters_per_second, 1),
            f"seconds to write {page} characters": round(page / row.characters_per_second, 1),
            f"seconds to read {page}": round(page / row.characters_per_token / row.prefill.rate, 2),
            "a step reads, MB": round(
                step_bytes(models["bf16"] if not rows else longer, context=0).total / 1e6
            ),
            f"cache of {page} characters, MB": round(
                page / row.characters_per_token * kv_bytes_per_token(shape_of("smollm2")) / 1e6, 1
            ),
        }
    )
results.save("08_pages", rows, seed=0, model="SmolLM2-135M-Instruct, bfloat16")

# %%
waiting = f"seconds to write {page} characters"
before, after = rows[0][waiting], rows[1][waiting]
plots.plot_bars(
    {row["vocabulary"]: {"Chinese": row[waiting]} for row in rows},
    title=f"A page of Chinese: {before:.0f} seconds before the extension, {after:.0f} after",
    xlabel=f"seconds to write {page} characters, SmolLM2 in bf16, one sequence",
)
plt.show()

# %% [markdown]
# *Alternative text:* two horizontal bars; the extended vocabulary's is much shorter.

# %%
slower = 1 - rows[1]["tokens per second"] / rows[0]["tokens per second"]
print(f"tokens per second: {-slower:+.1%}; a page: {before / after:.2f} times as fast")

# %% [markdown]
# Tokens per second should hardly tell the two models apart: the longer one reads two percent more a step. If
# they differ by more than that here, in either direction, the machine did something else meanwhile; the page
# then differs by that factor too, and what the vocabulary gives is the quotient of the tokens per character.
# The prompt gains as much, and so does the cache: the same window holds more text. That is the solid half of
# the case for a larger vocabulary; the other half, quality, took longer training (chapter 04).
#
# **Exercise 8.5.** Write `seconds_per_page(characters, tokens_per_character, tokens_per_second)`.

# %%
# NBVAL_CHECK_OUTPUT
seconds_per_page = ...
lab.check("8.5", seconds_per_page)


# %% tags=["solution"]
def seconds_per_page(characters, tokens_per_character, tokens_per_second):
    return characters * tokens_per_character / tokens_per_second


# %% tags=["wrong-solution"]
def seconds_per_page(characters, tokens_per_character, tokens_per_second):
    return characters / tokens_per_character / tokens_per_second


# %% tags=["wrong-solution"]
def seconds_per_page(characters, tokens_per_character, tokens_per_second):
    return characters / tokens_per_second


# %% [markdown]
# All of that with every dtype and engine, on an idle machine, and with more repeats, is measured by
# `benchmarks/speed.py`:

# %%
speed_here = benchmark("bench_speed", "python benchmarks/speed.py --save")
speed_here

# %% [markdown]
# `torch.compile` joins the small operations of a step into few kernels, after compiling once for each shape.
# It was measured on another, busier machine, beside the other ways of the same run: compare within a model
# and a kind, and only where the ranges from slowest to fastest do not overlap.

# %%
compiled_here = benchmark("bench_speed_compile", "python benchmarks/speed.py --compile --save")
compiled_here

# %% [markdown]
# ## 10. Elsewhere: llama.cpp and a GPU
#
# llama.cpp has no Python in its loop, and kernels made for processors. It reads GGUF files; one line
# makes them:

# %%
from chinese_llama_lab.inference.gguf import export_gguf

folder = Path(tempfile.mkdtemp())
for kind in profile["speed_gguf"]:
    report = export_gguf(converted_model("smollm2"), folder / f"smollm2-{kind}.gguf", kind=kind)
    bits = 8 * report.bytes / shape_of("smollm2").parameters
    print(f"{report.out.name}: {report.bytes / 1e6:.0f} MB, {bits:.2f} bits a parameter, {report.tokenizer}")

# %%
gguf_here = benchmark("bench_gguf", "python benchmarks/gguf_speed.py --save")
gguf_here

# %% [markdown]
# Random weights at true shapes take as much memory and time as real ones, and need no download. So
# `benchmarks/gpu.py` can measure LLaMA-7B and 13B on any GPU: prefill, decoding, peak memory, a LoRA and a
# QLoRA step. If the row is missing below, no GPU was at hand when this was built.

# %%
gpu_here = benchmark("bench_gpu", "python benchmarks/gpu.py --save, on a machine with a GPU")
gpu_here

# %% [markdown]
# ## What we measured

# %%
results.load("08_memory")

# %%
results.load("08_fits")

# %%
results.load("08_speed").only(*columns, "peak_gib")

# %%
results.load("08_pages")

# %% [markdown]
# ## What can go wrong
#
# - *GB read as GiB.* A small difference, and large enough to turn "it fits" into an error.
# - *Forgetting what is not weights.* Cache, activations, logits and the context of CUDA come on top; the
#   last token of a long answer needs most.
# - *Turning the wrong knob.* A smaller rank saves next to nothing; look at where the bytes are.
# - *Comparing tokens per second across vocabularies.* Compare characters.
# - *Timing the first call.* It allocates, compiles and reads the disk. Warm up, repeat, take the median.
# - *Timing a GPU without waiting for it.* Calls return before the work is done: synchronise first.
# - *Believing that four bits are faster.* They are smaller. Faster they are where reading is the limit and
#   unpacking is cheap.
# - *Measuring on a machine that does something else.* Look at the spread, not only at the median.
#
# ## Where this came from
#
# - the roofline: Williams, Waterman and Patterson, [doi
#   10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785); for language models: [arXiv
#   2402.16363](https://arxiv.org/abs/2402.16363)
# - GQA, [arXiv 2305.13245](https://arxiv.org/abs/2305.13245); QLoRA and NF4, [arXiv
#   2305.14314](https://arxiv.org/abs/2305.14314); gradient checkpointing, [arXiv
#   1604.06174](https://arxiv.org/abs/1604.06174)
# - published figures of memory: their sources stand in `results/08_residuals.csv`
# - milliseconds per token: [Chinese-LLaMA-Alpaca-2](https://github.com/ymcui/Chinese-LLaMA-Alpaca-2)
#
# **Next:** [09 C-Eval](09_ceval.ipynb) 中文评测: what a model knows, and how much of a score is chance.
