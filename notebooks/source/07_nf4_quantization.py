# %% [markdown]
# # NF4 quantization 量化
#
# **How can sixteen values stand for every weight of a model, and what does it cost?**
#
# Quantization 量化 replaces each weight by the nearest of a few values. NF4, four-bit NormalFloat,
# has sixteen of them, chosen for numbers that are normally distributed. This chapter builds it from
# the quantiles 分位数 of the normal distribution up to the bytes that the *bitsandbytes* library
# stores, proves both equal, and then measures what a model loses.

# %% [markdown]
# ## What you will be able to do
#
# - **derive** the sixteen values of NF4, and **pack** two codes into a byte
# - **count** bits per weight, scales included
# - **choose** a block size where there are outliers
# - **measure** what quantization does to a model: weights, logits, text
# - **train** an adapter on a 4-bit base, and **merge** it in the right order

# %% [markdown]
# Time and memory of this chapter, measured when it was last built. It downloads nothing new.

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("07")

# %%
import tempfile
from pathlib import Path

import torch
from matplotlib import pyplot as plt

import chinese_llama_lab as lab
from chinese_llama_lab import plots, results
from chinese_llama_lab.profiles import current_profile
from chinese_llama_lab.quantization.blockwise import dequantize_nf4, quantize_nf4
from chinese_llama_lab.quantization.checks import check_rows
from chinese_llama_lab.quantization.codebooks import code_of, nf4_code
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.layer_errors import outlier_sweep
from chinese_llama_lab.quantization.measures import outlier_share, weight_error
from chinese_llama_lab.sources.models import converted_model, load_base

session = lab.setup(seed=0, chapter="07", torch=True)
profile = current_profile()
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1. Why four bits
#
# A weight is usually kept in 16 bits. How large is LLaMA-7B with fewer? Its linear layers are
# quantized; embedding and head stay as they are. 4.5 and 4.127 bits are what four bits cost
# together with their scales, and section 4 says why.

# %%
layers, width, inner, vocabulary = 32, 4096, 11008, 32_000
linear = layers * (4 * width**2 + 3 * width * inner)
others = 2 * vocabulary * width
for bits in (16, 8, 4.5, 4.127):
    size = (linear * bits + others * 16) / 8 / 1e9
    print(f"{bits:>6} bits a weight: {size:5.2f} GB, {size / 2**30 * 1e9:5.2f} GiB")
print(f"{linear / (linear + others):.0%} of the weights are in linear layers")

# %% [markdown]
# That is the difference between a data-centre GPU and one in a desktop. It is also speed: to write
# one token, every weight is read once, and the fewer bytes there are, the sooner that is done
# (chapter 08).
#
# ## 2. Sixteen values
#
# Four bits name sixteen values, a *code book* 码本. The simplest book is evenly spaced: INT4. But
# weights are mostly small, and a few are large. How often is each value of an even book used, when
# the numbers are normal? Like weights, they are scaled in blocks of 64 so that the largest of a
# block is ±1.

# %%
normal = torch.randn(4096, 64)
scaled = normal / normal.abs().amax(dim=1, keepdim=True)


def usage(code):
    """The share of numbers whose nearest value is each of the code book's, ascending."""
    code = code.sort().values
    nearest = torch.bucketize(scaled, (code[:-1] + code[1:]) / 2)
    return torch.bincount(nearest.flatten(), minlength=len(code)) / scaled.numel()


even = torch.linspace(-1, 1, 16)
shares = usage(even)
print("the share of each value, in %:", [round(100 * share, 1) for share in shares.tolist()])
print(f"the outer eight values are used by {float(shares[:4].sum() + shares[-4:].sum()):.0%} of the numbers")

# %% [markdown]
# Half of the book is seldom used. Values that are all used equally often lie at *quantiles*: points
# that cut the normal distribution into slices of equal probability. Cutting it into sixteen and
# taking the middle of each slice gives:

# %%
middles = (torch.arange(16) + 0.5) / 16
quantiles = torch.special.ndtri(middles.double())  # where the normal distribution has this much below it
print([round(value, 3) for value in (quantiles / quantiles.max()).tolist()])

# %% [markdown]
# One thing is wrong with this book: it has no **zero**. A weight that is exactly zero (padding, a
# pruned weight, a LoRA's B before its first step) must stay zero. So NF4 takes the two halves
# apart. Sixteen codes are one zero, *eight* positive values and *seven* negative ones: the halves
# are not mirror images.
#
# Where is the outermost value? The middle of the last of 16 slices leaves 1/32 above it, of the
# last of 15 slices 1/30. NF4 takes the mean of both. From there to one half, the positive side goes
# in eight equal steps of probability, and the negative side in seven.

# %%
outermost = 1 - (1 / 32 + 1 / 30) / 2
positive = torch.special.ndtri(torch.linspace(outermost, 0.5, 9)[:-1])
negative = -torch.special.ndtri(torch.linspace(outermost, 0.5, 8)[:-1])
by_hand = torch.cat([negative, torch.zeros(1), positive.flip(0)])
by_hand = by_hand / by_hand.max()
print(len(negative), "negative,", len(positive), "positive, and zero:")
print([round(value, 4) for value in by_hand.tolist()])

# %%
from bitsandbytes.functional import get_4bit_type

theirs = get_4bit_type("nf4", device="cpu")
assert torch.allclose(by_hand, theirs, atol=1e-6)
assert torch.equal(nf4_code(), theirs)
used = {"even": usage(even), "NF4": usage(theirs), "FP4": usage(code_of("fp4").unique())}
for name, shares in used.items():
    shares = shares[shares > 0]
    print(f"{name:<5} {float(-(shares * shares.log2()).sum()):.2f} bits of information in four bits")

# %% [markdown]
# These are the sixteen values of bitsandbytes, down to the last bit. FP4 is the third book: four
# bits read as a tiny floating-point number, one bit of sign, two of exponent, one of mantissa. It
# wastes a code, because zero has two signs.

# %%
books = {"INT4": code_of("int4"), "NF4": theirs, "FP4": code_of("fp4").unique()}
plots.plot_lines(
    {name: (range(len(code)), code.tolist()) for name, code in books.items()},
    title="NF4 has its values where the weights are: close together around zero",
    xlabel="the values in ascending order",
    ylabel="value, as a share of the block's largest magnitude",
)
plt.show()

# %% [markdown]
# *Alternative text:* three rising lines of fifteen or sixteen points from −1 to 1. INT4 is
# straight. NF4 is flat in the middle and steep at both ends; FP4 is flatter in the middle and
# steeper still.
#
# **Exercise 7.1.** Write `nearest(x, code)`: the number (from 0) of the value in `code`, a list in
# ascending order, that is nearest to x.

# %%
# NBVAL_CHECK_OUTPUT
nearest = ...
lab.check("7.1", nearest)


# %% tags=["solution"]
def nearest(x, code):
    return min(range(len(code)), key=lambda number: abs(code[number] - x))


# %% tags=["wrong-solution"]
def nearest(x, code):
    return sum(value <= x for value in code) - 1


# %% tags=["wrong-solution"]
def nearest(x, code):
    return round((x + 1) / 2 * (len(code) - 1))


# %% [markdown]
# ## 3. Blocks, and two codes in a byte
#
# The book goes from −1 to 1; weights do not. A *block* 分块 of 64 weights in a row is divided by its
# largest magnitude, its **absmax** 绝对值最大值, which is stored beside the codes. By hand:

# %%
weights = 0.02 * torch.randn(64)
absmax = weights.abs().max()
codes = (weights / absmax).view(-1, 1).sub(theirs).abs().argmin(dim=1)
restored = theirs[codes] * absmax
for number in range(5):
    print(
        f"{weights[number]:+.5f} / {absmax:.5f} → code {codes[number]:>2} → {restored[number]:+.5f},"
        f" error {restored[number] - weights[number]:+.5f}"
    )
print(f"root mean square error: {(restored - weights).norm() / weights.norm():.1%} of that of the weights")

# %% [markdown]
# No memory has cells of four bits, so two codes share a byte: the first in the upper half, the
# second in the lower one.

# %%
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

packed = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)
their_bytes, state = quantize_4bit(weights, quant_type="nf4", blocksize=64)
assert torch.equal(packed, their_bytes.flatten())
assert torch.equal(state.absmax, absmax.view(1))
assert torch.equal(dequantize_4bit(their_bytes, state).flatten(), restored)
print(f"codes {codes[0]} and {codes[1]} make the byte {packed[0]} = {packed[0]:#010b}")
print(f"{len(packed)} bytes of codes, 4 of the scale: {(len(packed) + 4) * 8 / 64} bits a weight")

# %% [markdown]
# **Exercise 7.2.** Write `pack(codes)`: a list of codes, 0 to 15, as a list of bytes. If their
# number is odd, the last byte is filled up with code 0.

# %%
# NBVAL_CHECK_OUTPUT
pack = ...
lab.check("7.2", pack)


# %% tags=["solution"]
def pack(codes):
    filled = codes + [0] * (len(codes) % 2)
    return [16 * first + second for first, second in zip(filled[::2], filled[1::2], strict=True)]


# %% tags=["wrong-solution"]
def pack(codes):
    filled = codes + [0] * (len(codes) % 2)
    return [first + 16 * second for first, second in zip(filled[::2], filled[1::2], strict=True)]


# %% tags=["wrong-solution"]
def pack(codes):
    return [16 * first + second for first, second in zip(codes[::2], codes[1::2], strict=False)]


# %% [markdown]
# **Exercise 7.3.** And back: `unpack(packed, absmax, block, code)` takes bytes, the largest
# magnitude of each block, the number of weights in a block, and the code book; it returns the
# weights.

# %%
# NBVAL_CHECK_OUTPUT
unpack = ...
lab.check("7.3", unpack)


# %% tags=["solution"]
def unpack(packed, absmax, block, code):
    codes = [half for byte in packed for half in divmod(byte, 16)]
    return [code[number] * absmax[place // block] for place, number in enumerate(codes)]


# %% tags=["wrong-solution"]
def unpack(packed, absmax, block, code):
    codes = [half for byte in packed for half in divmod(byte, 16)]
    return [code[number] * absmax[0] for number in codes]


# %% tags=["wrong-solution"]
def unpack(packed, absmax, block, code):
    codes = [half for byte in packed for half in divmod(byte, 16)[::-1]]
    return [code[number] * absmax[place // block] for place, number in enumerate(codes)]


# %% [markdown]
# ## 4. Bits per weight
#
# A scale of 32 bits for 64 weights is half a bit for each. Smaller blocks fit their weights better
# and cost more. **Double quantization** 双重量化 quantizes the scales too: their mean is subtracted,
# and what is left takes 8 bits each, in blocks of 256 with one 32-bit scale of their own.

# %%
rows = []
gauss = torch.randn(1024, 1024)
for block in (32, 64, 128, 256, 1024):
    plain, double = 4 + 32 / block, 4 + 8 / block + 32 / (256 * block)
    for bits, twice in ((plain, False), (double, True)):
        assert abs(quantize_nf4(gauss, block, twice).bits_per_weight - bits) < 1e-3
    errors = [weight_error(gauss, "nf4", block, twice).rms for twice in (False, True)]
    rows.append(
        {
            "block size": block,
            "bits": round(plain, 3),
            "bits, double": round(double, 3),
            "error": f"{errors[0]:.2%}",
            "error, double": f"{errors[1]:.2%}",
        }
    )
results.table("bits", rows)

# %% [markdown]
# Errors here and below are root mean squares, as a share of the root mean square of the weights.
# Read the line of 64, which everyone uses: double quantization saves more than a third of a bit,
# and the error hardly notices.
#
# **Exercise 7.4.** Write `bits_per_weight(block, double)`.

# %%
# NBVAL_CHECK_OUTPUT
bits_per_weight = ...
lab.check("7.4", bits_per_weight)


# %% tags=["solution"]
def bits_per_weight(block, double):
    scales = 8 / block + 32 / (256 * block) if double else 32 / block
    return 4 + scales


# %% tags=["wrong-solution"]
def bits_per_weight(block, double):
    return 4 + (8 / block if double else 32 / block)


# %% tags=["wrong-solution"]
def bits_per_weight(block, double):
    return 4 + (8 / block + 32 / 256 if double else 32 / block)


# %% [markdown]
# ## 5. The same bytes as bitsandbytes
#
# The package has NF4 in pure torch: `quantize_nf4` and `dequantize_nf4`. Is it what the library
# stores for the matrices of a real model, bit for bit, with and without double quantization?

# %%
model, tokenizer = load_base("smollm2")
model.requires_grad_(False)
every = max(1, len(model.model.layers) // profile["nf4_layers"])
numbers = range(0, len(model.model.layers), every)
matrices = {
    f"{number}.{name.split('.')[-2]}": weight
    for number in numbers
    for name, weight in model.model.layers[number].named_parameters()
    if "proj" in name
}
for name, W in list(matrices.items())[:7]:
    for double in (False, True):
        mine = quantize_nf4(W, 64, double)
        packed, state = quantize_4bit(W, quant_type="nf4", blocksize=64, compress_statistics=double)
        scales = mine.absmax.codes if double else mine.absmax
        assert torch.equal(mine.codes, packed.flatten()), name
        assert torch.equal(scales, state.absmax), name
        assert torch.equal(dequantize_nf4(mine), dequantize_4bit(packed, state)), name
print(f"{name}, {tuple(W.shape)}, and all before it: codes, scales and values are equal; {mine}")

# %% [markdown]
# Equal, except where the library departs from its own definition. The rows of this model are 576
# weights long, which is nine blocks of 64, but not a whole number of blocks of 128. Blocks then go
# on from one row to the next. What does this processor make of that?

# %%
W = matrices["0.q_proj"]
packed, state = quantize_4bit(W, quant_type="nf4", blocksize=128)
wrong = dequantize_4bit(packed, state) != dequantize_nf4(quantize_nf4(W, 128))
print(f"blocks of 128: {float(wrong.float().mean()):.0%} of the weights come back wrong on this processor")
try:
    check_rows(W.shape, 128, "q_proj")
except QuantizationError as error:
    print(f"the package refuses such a layer: {error.what}; {error.remedy}")

# %% [markdown]
# Where the share is not zero, the processor has AVX-512: the library's kernel for it counts blocks
# from the start of each row, and takes the scales of other blocks, without a word. A test of
# equality against twenty lines of one's own found it.
#
# ## 6. Are weights normal?
#
# NF4 bets that they are. Here are the weights of SmolLM2, each over the standard deviation of its
# row, beside normal numbers. The fourth power tells how heavy the tails are: its mean, the
# *kurtosis* 峰度, is 3 for normal numbers.


# %%
def standard(weight):
    """Weights over the standard deviation of their row."""
    return (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)


samples = {"normal numbers": torch.randn(200_000)}
for name, parts in {"attention": "qkvo", "MLP": ("gate", "up", "down")}.items():
    chosen = [W for key, W in matrices.items() if key.split(".")[1].startswith(tuple(parts))]
    samples[f"SmolLM2, {name}"] = torch.cat([standard(W).flatten()[::23] for W in chosen])
for name, values in samples.items():
    beyond = float((values.abs() > 4).float().mean())
    print(f"{name:<20} kurtosis {float((values**4).mean()):.1f}, beyond four deviations {beyond:.3%}")
plots.plot_distributions(
    {name: values[values.abs() < 5].tolist() for name, values in samples.items()},
    title="Rows of weights are close to normal, with heavier tails",
    xlabel="weight over the standard deviation of its row",
    reference=0,
)
plt.show()

# %% [markdown]
# *Alternative text:* three bell curves around zero that nearly cover each other.
#
# A word about *these* weights. The model comes out of a package in the format Q4_1: for each group
# of 32 weights a smallest value and a step, and sixteen evenly spaced values from there. It has
# been through four bits already, and has been written out as float32. One can see it:

# %%
groups = matrices["0.q_proj"].view(-1, 32).sort(dim=1).values
distinct = (groups.diff(dim=1) != 0).sum(dim=1) + 1
print(f"among 32 weights of a group there are at most {int(distinct.max())} different values")

# %% [markdown]
# So what is called the unquantized model here is not the model that was trained, and NF4 rounds it
# for the second time, to another grid. Does that spoil the comparison? Two controls stand below the
# layers: normal numbers, and uniformly distributed ones, which no one has rounded before.

# %%
from tqdm.auto import tqdm

matrices["normal numbers"] = torch.randn(1024, 576)
matrices["uniform numbers"] = torch.rand(1024, 576) * 2 - 1
by_kind = {}
for key, W in tqdm(matrices.items()):
    for kind in ("nf4", "int4", "fp4", "int8"):
        by_kind.setdefault(key.split(".")[-1], {}).setdefault(kind, []).append(weight_error(W, kind).rms)
errors = {
    layer: {kind: sum(values) / len(values) for kind, values in kinds.items()}
    for layer, kinds in by_kind.items()
}
rows = [{"layer": layer, **{k: round(v, 5) for k, v in kinds.items()}} for layer, kinds in errors.items()]
results.save("07_weight_errors", rows, seed=0, model="SmolLM2-135M-Instruct", block_size=64)
best = {min(kinds, key=lambda k: kinds[k] if k != "int8" else 1) for kinds in list(errors.values())[:-2]}
plots.plot_bars(
    {layer: {k.upper(): kinds[k] for k in ("nf4", "int4", "fp4")} for layer, kinds in errors.items()},
    title=f"Smallest error of the 4-bit books on every kind of layer: {', '.join(sorted(best)).upper()}",
    xlabel="root mean square error over that of the weights, blocks of 64",
)
plt.show()
print("INT8, for comparison:", {layer: round(kinds["int8"], 4) for layer, kinds in errors.items()})

# %% [markdown]
# *Alternative text:* groups of three bars for seven kinds of layers and two controls. NF4 is
# shortest and FP4 longest everywhere, except for the uniform numbers, where INT4 is shortest.
#
# The layers behave like normal numbers, so the comparison stands. On uniform numbers the even
# book wins: NF4 is not better by itself, it fits the distribution. It is not the best possible book for
# it either: scaling by the largest magnitude makes of a normal distribution another one.
#
# ## 7. Outliers, and how large a block should be
#
# One large weight, an *outlier* 离群值, sets the scale of its whole block, and all the others there
# must do with the few values around zero.

# %%
ordinary = torch.randn(64)
ordinary[0] = 0.0
for size in (0.0, 5.0, 20.0, 80.0):
    block = ordinary.clone()
    block[0] = size
    quantized = quantize_nf4(block)
    error = (dequantize_nf4(quantized) - block)[1:].norm() / ordinary[1:].norm()
    used = len(torch.stack((quantized.codes >> 4, quantized.codes & 15)).unique())
    print(f"one weight of {size:4.0f} deviations: {used:>2} codes in use, error of the others {error:.1%}")

# %% [markdown]
# Small blocks keep the damage small, and cost more scales. A matrix of SmolLM2, as it is and with
# outliers planted at random places:

# %%
swept = outlier_sweep(matrices["0.up_proj"], shares=(0.0, 1e-3, 1e-2), sigmas=20.0)
results.save("07_outliers", swept, seed=0, model="SmolLM2-135M-Instruct, layers.0.mlp.up_proj")
lines = {}
for row in swept:
    label = f"1 in {1 / row['planted']:.0f}" if row["planted"] else "none planted"
    x, y = lines.setdefault(label, ([], []))
    x.append(row["block_size"])
    y.append(row["rms_before"])
plots.plot_lines(
    lines,
    title="The more outliers, the more a large block costs",
    xlabel="weights in a block (doubling from point to point)",
    ylabel="error over the RMS of the weights before planting",
    xscale="log",
)
plt.show()

# %% [markdown]
# *Alternative text:* three rising lines over the block size, on a logarithmic scale. With planted
# outliers they lie higher and rise more steeply.
#
# Which real matrix has the most outliers, and does it follow?

# %%
layers_only = {key: W for key, W in matrices.items() if "proj" in key}
outliers = {key: outlier_share(W) for key, W in layers_only.items()}
for key in (max(outliers, key=outliers.get), min(outliers, key=outliers.get)):
    found = {size: weight_error(layers_only[key], "nf4", size).rms for size in (32, 64, 256, 1024, 4096)}
    print(f"{key}, {outliers[key]:.3%} of the weights beyond four deviations")
    print("   error by block size:", {size: f"{rms:.1%}" for size, rms in found.items()})

# %% [markdown]
# **Exercise 7.5.** A matrix has one outlier in every 4,096 weights, far from each other. At most 2
# % of its weights may share a block with an outlier. What is the largest block size, a power of
# two, that you may use?

# %%
# NBVAL_CHECK_OUTPUT
largest_block = ...
lab.check("7.5", largest_block)

# %% tags=["solution"]
largest_block = max(block for block in (32, 64, 128, 256) if block / 4096 <= 0.02)

# %% tags=["wrong-solution"]
largest_block = 128

# %% tags=["wrong-solution"]
largest_block = 0.02 * 4096

# %% [markdown]
# ## 8. A model in four bits
#
# `load_quantized` loads a model by bitsandbytes: `nf4`, `nf4-double`, `fp4` or `int8`. The layers
# are computed in 16 or 32 bits: weights are restored block by block when they are multiplied. Only
# storage is in four bits.

# %%
from chinese_llama_lab.quantization.described import described
from chinese_llama_lab.quantization.load import load_quantized

four_bit = load_quantized("smollm2", "nf4", fast=False).model
parts = described(four_bit)
print(parts)
before = described(load_quantized("smollm2", "bf16").model)
print(f"\nin bfloat16 {before.bytes / 1e6:.0f} MB, now {parts.bytes / 1e6:.0f} MB:", end=" ")
print(f"{8 * parts.bytes / parts.weights:.1f} bits a weight over the whole model")

# %% [markdown]
# The smaller a model, the more of it is embedding, which stays in 16 or 32 bits, and the farther is
# its average from four bits. Compare with the figures of LLaMA-7B in section 1.
#
# What does loading do? It *rounds*, and nothing else: no data is read, nothing is trained. The
# bytes of each loaded layer are those of section 5.

# %%
from bitsandbytes.nn import Linear4bit

compared = 0
for name, module in four_bit.named_modules():
    if isinstance(module, Linear4bit) and int(name.split(".")[2]) in numbers:
        stored = module.weight
        expected = quantize_nf4(model.get_submodule(name).weight.to(stored.quant_state.dtype))
        assert torch.equal(expected.codes, stored.data.flatten()), name
        compared += 1
print(f"{compared} loaded layers hold the bytes of quantize_nf4")

# %% [markdown]
# An article about this recipe calls that “quantization-aware loading”. It is **post-training
# quantization** 训练后量化. *Quantization-aware training* 量化感知训练 is something else: the weights are
# trained while being rounded in each forward pass. QLoRA, in section 10, stands between: the
# rounded weights are fixed, and an adapter beside them is trained, which sees their errors.
#
# ## 9. What the model loses
#
# An error of weights says little about text. Three measures do: how far the predictions move (the
# Kullback–Leibler divergence 散度 from the unquantized model, in nats per token), what text costs
# (bits per character), and how much of a greedy continuation stays the same. The first one by hand:

# %%
from chinese_llama_lab.sources.corpora import load_corpus

texts = {
    "zh": load_corpus("peoples-daily").chinese_punctuation().split("held-out"),
    "en": load_corpus("c4-en").split("held-out"),
}
cut = {"zh": profile["nf4_characters"], "en": 3 * profile["nf4_characters"]}
texts = {
    language: [text[: cut[language]] for text in corpus.sample(profile["nf4_texts"]).texts()]
    for language, corpus in texts.items()
}
print({language: sum(map(len, chosen)) for language, chosen in texts.items()}, "characters")

# %%
from chinese_llama_lab.quantization.quality import compare_kinds, logit_divergence

reference, _ = load_base("smollm2")
for name, parameter in model.named_parameters():
    if "proj" in name:
        parameter.copy_(dequantize_nf4(quantize_nf4(parameter)))
ids = tokenizer(texts["zh"][0], return_tensors="pt").input_ids[:, :100]
with torch.inference_mode():
    p, q = (m(ids).logits[0].double().log_softmax(-1) for m in (reference, model))
by_hand = (p.exp() * (p - q)).sum(-1).mean()
packaged = logit_divergence(reference, model, ids)
assert abs(by_hand - packaged.mean) < 1e-6
print(f"{by_hand:.3f} nats per token; the same first choice at {packaged.same_first_choice:.0%} of positions")

# %% [markdown]
# `compare_kinds` does that for whole texts, together with bits per character and a greedy
# continuation. “Greedy” is the share of the reference's tokens that the quantized model would have
# chosen too.

# %%
del p, q, reference, model, matrices, layers_only  # several copies of the model, no longer needed
prompts = ["北京市", "The capital of France", "我国经济", "Once upon a time"]
compared = compare_kinds(
    "smollm2",
    ["fp32", "nf4", "fp4"],
    texts["zh"],
    texts["en"],
    prompts[: profile["nf4_texts"]],
    new_tokens=profile["nf4_new_tokens"],
)
shown = ("kind", "bytes", "zh_kl", "en_kl", "zh_bits", "en_bits", "greedy_share", "greedy_equal")
rows = [
    {key: row[key] if key in ("kind", "bytes") else round(row[key], 4) for key in shown} for row in compared
]
results.save("07_quality", rows, seed=0, model="SmolLM2-135M-Instruct")

# %%
by_name = {row["kind"]: row for row in compared}
times = by_name["fp4"]["en_kl"] / by_name["nf4"]["en_kl"]
plots.plot_bars(
    {kind: {"Chinese": by_name[kind]["zh_kl"], "English": by_name[kind]["en_kl"]} for kind in ("nf4", "fp4")},
    title=f"FP4 moves predictions of English {times:.1f} times as far as NF4 does",
    xlabel="divergence from float32 in nats per token",
)
plt.show()
for kind in ("nf4", "fp4"):
    row = by_name[kind]
    cost = [row[f"{k}_bits"] / by_name["fp32"][f"{k}_bits"] - 1 for k in ("zh", "en")]
    print(f"{kind}: Chinese costs {cost[0]:+.1%} bits, English {cost[1]:+.1%};", end=" ")
    print(f"first difference after {row['greedy_equal']:.0f} of {row['greedy_tokens']:.0f} greedy tokens")

# %% [markdown]
# *Alternative text:* two pairs of bars, Chinese and English, for NF4 and for FP4. Those of FP4 are
# longer.
#
# A greedy continuation parts early: one other choice, and everything behind it is another text.
# That is not a loss of quality by itself. Bits per character tell what is lost.
#
# Longer texts, more kinds, and the model before and after it has learnt Chinese were measured for
# this repository by `benchmarks/quality.py`:

# %%
measured = results.load("bench_quality")
measured.only("model", "kind", "bytes", "zh_kl", "en_kl", "zh_bits", "en_bits", "greedy_share")

# %%
panels = {"before": {}, "after": {}}
for row in measured.rows:
    if row["kind"] != "fp32":
        both = {"Chinese": float(row["zh_kl_bits"]), "English": float(row["en_kl_bits"])}
        panels[row["model"]][row["kind"]] = both
nf4 = {stage: values["nf4"] for stage, values in panels.items()}
plots.plot_bar_panels(
    {f"{stage} learning Chinese": values for stage, values in panels.items()},
    title="What quantization adds, from bfloat16 to FP4, in bits per character",
    xlabel="divergence, bits per character",
    references={},
)
plt.show()
for language in ("Chinese", "English"):
    print(f"NF4 on {language}: {nf4['before'][language]:.3f} bits a character before, ", end="")
    print(f"{nf4['after'][language]:.3f} after")

# %% [markdown]
# *Alternative text:* two panels of horizontal bars, before and after learning Chinese, a pair of
# bars for each kind of quantization.
#
# Per character, and not per token, because the model has more tokens after the extension and each
# holds more text.

# %% [markdown]
# And what was published, for Chinese-LLaMA-2-7B, as perplexity per token. Its logarithm is in nats:

# %%
published = {"FP16": (12.9, 9.373), "8-bit": (6.8, 9.476), "4-bit": (3.7, 10.132)}
for name, (size, perplexity) in published.items():
    more = torch.tensor(perplexity / published["FP16"][1]).log()
    print(f"{name:<6} {size:>5} GB, perplexity {perplexity:6.3f}: {more:.3f} nats per token more than FP16")
ours = torch.tensor(by_name["nf4"]["en_perplexity"] / by_name["fp32"]["en_perplexity"]).log()
print(
    f"here, NF4 on English: {ours:.3f} nats per token more than float32, with a model of 135 million weights"
)

# %% [markdown]
# That is no fair comparison: another text, a model far smaller, and one that had been rounded
# before. It says that the price of four bits is to be measured on the model one has.

# %% [markdown]
# ## 10. QLoRA: training beside four bits
#
# The 4-bit weights cannot be trained; but gradients pass through them, to an adapter. That is
# QLoRA. It is the same call as in chapter 04, on another base.

# %%
from chinese_llama_lab.training.pretrain import pretrain
from chinese_llama_lab.training.recipe import load_recipe

train = load_corpus("peoples-daily").chinese_punctuation().split("train").take(400).texts()
recipe = load_recipe("smollm2-zh").replace(
    steps=profile["nf4_steps"],
    quantization="nf4",
    replay_share=0.0,
    evaluate_every=0,
    log_every=1,
    embeddings="frozen",
)
run = pretrain(four_bit, tokenizer, train, recipe, folder / "qlora")
print(run.trained)
print(f"loss {run.losses[0]:.2f} → {run.losses[-1]:.2f} nats per token in {run.seconds:.0f} s")

# %% [markdown]
# Now the adapter is to become part of the weights. Chapter 06 said: not into four bits. Here is
# why. After merging into NF4, the sum lies between the sixteen values, and is rounded again.
# `merging_loss` compares the ways, and says how much of the update is still in the weights.

# %%
from chinese_llama_lab.quantization.merging_loss import BESIDE, MERGE_FIRST, MERGE_INTO, MERGED, merging_loss

merged = merging_loss(converted_model("smollm2"), run.adapter, {"zh": texts["zh"]})
rows = [
    {
        "way": row["way"],
        "update kept": f"{row['update_kept']:.0%}",
        "Chinese, bits per character": round(row["zh_bits"], 4),
    }
    for row in merged
]
results.save("07_merging", rows, seed=0, model="SmolLM2-135M-Instruct", steps=recipe.steps)

# %%
bars = {row["way"]: row["zh_bits"] for row in merged}
bars = {
    "base, unquantized": by_name["fp32"]["zh_bits"],
    "base in NF4": by_name["nf4"]["zh_bits"],
    "NF4, adapter beside it": bars[BESIDE],
    "merged into NF4": bars[MERGE_INTO],
    "merged, then NF4": bars[MERGE_FIRST],
    "merged, unquantized": bars[MERGED],
}
plots.plot_bars(
    {way: {"Chinese": value} for way, value in bars.items()},
    title="One adapter, and what is left of it each way",
    xlabel="bits per character of held-out Chinese (lower is better)",
)
plt.show()

# %% [markdown]
# *Alternative text:* six horizontal bars: base and NF4 base without an adapter on top; below them
# the adapter beside the NF4 base, merged into NF4, merged first and then quantized, and merged
# without any quantization.

# %%
results.load("07_merging")

# %% [markdown]
# The second column tells why. Merging first, the update decides for each weight to which of two
# values it is rounded, and on average it arrives. Merged into weights that lie on the sixteen
# values already, most of it is too small to move them to the next one. After a longer training on
# Chinese, from `benchmarks/quality.py`:

# %%
results.load("bench_quality_merging").only("way", "kind", "update_kept", "zh_kl", "zh_bits", "en_bits")

# %% [markdown]
# ## What we measured

# %%
results.load("07_weight_errors")

# %%
results.load("07_quality")

# %% [markdown]
# ## What can go wrong
#
# - *A block that does not divide the row.* On processors with AVX-512 some layers then come back
#   with the scales of other blocks (section 5). `load_quantized` refuses such a layer and names it.
# - *Evaluating before training.* On processors with AVX512-BF16 bitsandbytes packs a layer for its
#   fast kernel at the first forward in eval mode. From then on gradients are lost, a saved model is
#   damaged, and scales stay rounded. Here layers go back to what they were before they are trained
#   or saved.
# - *Long prompts on a processor.* That kernel is made for one token at a time. With `fast=False`
#   weights are restored once a forward and multiplied: chapter 08 measures both.
# - *Merging into four bits.* Merge into the unquantized base, then quantize.
# - *Saving a 4-bit folder and loading it as something else.* It is refused; what has been rounded
#   does not come back.
# - *NaN or infinity* in one weight spoils its block of 64, and the model looks loaded. It is
#   refused with its position.
# - *Believing the name.* “4-bit” is 4.5 bits with scales, more with the embedding, and more again
#   where a model is small.
# - *Outliers of activations* are another matter: 8-bit kinds that round inputs too keep the large
#   columns in 16 bits for that reason.
#
# ## Where this came from
#
# - NF4, double quantization and QLoRA: [arXiv 2305.14314](https://arxiv.org/abs/2305.14314); why
#   NF4 is not the best possible book: [arXiv 2306.06965](https://arxiv.org/abs/2306.06965)
# - 8-bit quantization and outliers: [arXiv 2208.07339](https://arxiv.org/abs/2208.07339);
#   block-wise scales and the 8-bit map: [arXiv 2110.02861](https://arxiv.org/abs/2110.02861)
# - the library: [bitsandbytes](https://github.com/bitsandbytes-foundation/bitsandbytes); the
#   published perplexities:
#   [Chinese-LLaMA-Alpaca-2](https://github.com/ymcui/Chinese-LLaMA-Alpaca-2)
#
# **Next:** [08 Memory and speed](08_memory_and_speed.ipynb) 显存与速度: what fits where, and how fast it
# writes.
