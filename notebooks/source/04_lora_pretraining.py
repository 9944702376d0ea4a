# %% [markdown]
# # Continued pre-training with LoRA 继续预训练
#
# **What does a model learn when only a few of its weights move?**
#
# The new rows of chapter 03 are guesses. Now they are trained, and with them a small part of
# everything else: low-rank adaptation 低秩适配, LoRA, adds a thin product of two matrices to each
# frozen weight. This chapter builds it by hand, counts it, and then trains SmolLM2 on Chinese in
# four ways that cost the same.

# %% [markdown]
# ## What you will be able to do
#
# - **see** with a singular value decomposition 奇异值分解 how much of a real update is low-rank
# - **write** LoRA from scratch and **prove** it equal to the library's
# - **count** what a recipe trains, up to the published 7B runs
# - **choose** between no new tokens, few and many, at the same cost
# - **measure** forgetting 遗忘, and what replaying English does against it

# %% [markdown]
# Time and memory of this chapter, measured when it was last built. It downloads nothing new.

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("04")

# %%
import tempfile
from pathlib import Path

import torch
from matplotlib import pyplot as plt

import chinese_llama_lab as lab
from chinese_llama_lab import plots, results
from chinese_llama_lab.live import LiveCurves
from chinese_llama_lab.profiles import current_profile
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.sources.models import load_base
from chinese_llama_lab.training.generate import answer
from chinese_llama_lab.training.lora import expand
from chinese_llama_lab.training.lora_by_hand import LoraLinear
from chinese_llama_lab.training.metrics import bits_per_character
from chinese_llama_lab.training.packing import pack
from chinese_llama_lab.training.precision import weights_dtype
from chinese_llama_lab.training.pretrain import pretrain
from chinese_llama_lab.training.recipe import load_recipe, recipe_names, recipe_stages
from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

session = lab.setup(seed=0, chapter="04", torch=True)
profile = current_profile()

# %% [markdown]
# The text: the news of chapter 01, one document in twenty held out, this time with its Chinese
# punctuation. Cleaning with NFKC had turned `，` into `,`, and a model learns to write what it
# reads.

# %%
news = load_corpus("peoples-daily").chinese_punctuation()
train = news.split("train").take(profile["training_documents"]).texts()


def some(corpus, characters, cut):
    """Held-out documents, cut short, until there are enough characters."""
    chosen = []
    for document in corpus.split("held-out").sample(200):
        if sum(map(len, chosen)) >= characters:
            break
        chosen.append(document.text[:cut])
    return chosen


held_out = {
    "zh": some(news, profile["scored_characters"], 400),
    "en": some(load_corpus("c4-en"), profile["scored_characters"], 600),
}
print(f"{len(train):,} documents to train on, {sum(map(len, train)):,} characters")
print({language: sum(map(len, texts)) for language, texts in held_out.items()}, "characters held out")

# %% [markdown]
# ## 1. Is a real update low-rank?
#
# LoRA bets that what training does to a weight matrix, its *update* ΔW, can be written with few
# directions. The bet can be checked. We train some matrices of SmolLM2 in full, without any
# adapter, for a few steps on Chinese, and then look at W after − W before.

# %%
from tqdm.auto import tqdm

model, tokenizer = load_base("smollm2")
layers = model.model.layers[-profile["updated_layers"] :]
matrices = [layer.mlp.down_proj.weight for layer in layers]
model.requires_grad_(False)
for matrix in matrices:
    matrix.requires_grad_()
start = [matrix.detach().clone() for matrix in matrices]
blocks = pack(train[:400], tokenizer, 256)
optimizer = torch.optim.AdamW(matrices, lr=3e-4, weight_decay=0.0)
for step in tqdm(range(profile["update_steps"])):
    ids = torch.tensor([blocks.block_ids(2 * step), blocks.block_ids(2 * step + 1)])
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"{len(matrices)} matrices of {tuple(matrices[0].shape)}, loss now {loss.item():.2f} nats per token")

# %% [markdown]
# The singular values of ΔW say how much each direction carries. Beside them stands a matrix of
# random numbers of the same size, which has no structure at all.

# %%
updates = [after.detach() - before for after, before in zip(matrices, start, strict=True)]
decomposed = [torch.linalg.svd(update, full_matrices=False) for update in updates]


def energy(values):
    """Share of the squared length that the first r directions carry, for r = 1, 2, …"""
    return (values**2).cumsum(0) / (values**2).sum()


random_values = torch.linalg.svdvals(torch.randn(updates[0].shape))
shares = {
    "the update": torch.stack([energy(s) for _, s, _ in decomposed]).mean(0),
    "random numbers": energy(random_values),
}
half = {name: int((values < 0.5).sum()) + 1 for name, values in shares.items()}
plots.plot_lines(
    {name: (range(1, len(v) + 1, 8), v[::8].tolist()) for name, v in shares.items()},
    title=f"Half of the update lies in {half['the update']} directions of {len(random_values)}",
    xlabel="rank (directions kept)",
    ylabel="share of the squared length",
)
plt.show()

# %% [markdown]
# *Alternative text:* two rising curves over the rank. The update's curve rises steeply at first
# and stays above that of random numbers, but it is far from reaching one at a small rank.
#
# So the update is *not* of low rank, only lower than chance. But what counts is not the length
# of ΔW; it is what it does. We keep the first r directions, throw the others away, and score
# held-out Chinese:

# %%
ranks = sorted({1, 4, 16, 64, len(random_values)})
kept = {}
with torch.no_grad():
    for rank in [0, *ranks]:
        for matrix, before, (u, s, v) in zip(matrices, start, decomposed, strict=True):
            matrix.copy_(before + u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank])
        scored = bits_per_character(model, tokenizer, held_out["zh"], start="\n")
        kept[rank] = scored.bits_per_character
full = kept[0] - kept[ranks[-1]]
rows = [
    {
        "rank": rank,
        "bits per character": round(value, 3),
        "share of the gain": round((kept[0] - value) / full, 3),
        "share of the squared length": round(float(shares["the update"][rank - 1]), 3) if rank else 0.0,
    }
    for rank, value in kept.items()
]
results.save("04_rank_of_an_update", rows, seed=0, model="SmolLM2-135M-Instruct, float32")
for row in rows:
    print(row)

# %% [markdown]
# That is the case for LoRA: a few directions do most of the work, even where they are a small
# part of the update's length. What is thrown away is largely noise of the optimizer, which moves
# every weight by about the same amount, whether it matters or not.
#
# **Exercise 4.1.** A matrix of shape *m × n* holds *m · n* numbers; the product *BA* of rank *r*
# holds fewer. Write `lora_parameters(m, n, r)`, and find the rank from which on BA has **no fewer**
# parameters than the matrix: for the `down_proj` above (576 × 1,536), as a whole number.

# %%
# NBVAL_CHECK_OUTPUT
lora_parameters = ...
break_even_rank = ...
lab.check("4.1", (lora_parameters, break_even_rank))

# %% tags=["solution"]
import math


def lora_parameters(m, n, r):
    return r * (m + n)


break_even_rank = math.ceil(576 * 1536 / (576 + 1536))


# %% tags=["wrong-solution"]
def lora_parameters(m, n, r):
    return r * m * n


break_even_rank = 576


# %% tags=["wrong-solution"]
def lora_parameters(m, n, r):
    return r * (m + n)


break_even_rank = 418

# %% [markdown]
# ## 2. LoRA from scratch
#
# The frozen W gains a product of two thin matrices 低秩分解:
#
# $$y = Wx + \frac{\alpha}{r}\, B(Ax), \qquad A: r \times n, \quad B: m \times r$$
#
# B starts at zero, so that the model is unchanged before the first step; A starts at random, so
# that B has something to learn from.


# %%
class Lora(torch.nn.Module):
    """A frozen linear layer and its update."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = torch.nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.B = torch.nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.A.T @ self.B.T)

    def merged(self):
        return self.base.weight + self.scale * self.B @ self.A


# %% [markdown]
# Twenty lines. Are they what the package and *peft*, the library that everyone uses, compute?
# The same A and B, the same input, forward and backward:

# %%
from peft import LoraConfig, inject_adapter_in_model

torch.manual_seed(0)
base = torch.nn.Linear(576, 1536, bias=False)
mine, packaged = Lora(base, 8, 32), LoraLinear(base, 8, 32)
box = torch.nn.ModuleDict({"layer": torch.nn.Linear(576, 1536, bias=False)})
box["layer"].weight.data.copy_(base.weight)
inject_adapter_in_model(LoraConfig(r=8, lora_alpha=32, target_modules=["layer"]), box)
theirs = box["layer"]
a, b = torch.randn(8, 576), torch.randn(1536, 8)
pairs = [(mine.A, mine.B), (packaged.A, packaged.B)]
pairs.append((theirs.lora_A["default"].weight, theirs.lora_B["default"].weight))
for one, two in pairs:
    one.data.copy_(a)
    two.data.copy_(b)
x = torch.randn(5, 576)
outputs = [layer(x) for layer in (mine, packaged, theirs)]
for output in outputs:
    output.square().sum().backward()
for (one, two), output in zip(pairs[1:], outputs[1:], strict=True):
    assert torch.allclose(output, outputs[0], atol=1e-4)
    assert torch.allclose(one.grad, mine.A.grad, rtol=1e-3)
    assert torch.allclose(two.grad, mine.B.grad, rtol=1e-3)
assert torch.allclose(x @ mine.merged().T, outputs[0], atol=1e-3)
print("forward, gradients and merge agree: by hand, in the package, in peft")

# %% [markdown]
# **Exercise 4.2.** α/r keeps the update's size in proportion to 1/r; with a large rank it becomes
# small. *rsLoRA* divides by √r instead. For α = 32, how many times larger is rsLoRA's factor than
# LoRA's at rank 64?

# %%
# NBVAL_CHECK_OUTPUT
times_larger = ...
lab.check("4.2", times_larger)

# %% tags=["solution"]
times_larger = (32 / 64**0.5) / (32 / 64)

# %% tags=["wrong-solution"]
times_larger = 32 / 64**0.5

# %% tags=["wrong-solution"]
times_larger = 1 / 8

# %% [markdown]
# ## 3. What a recipe trains
#
# A recipe 配方 is a small file: ranks, rates, block sizes, with the field's own names. The published
# ones are here beside the course's. Their models are built at full size without any weights,
# and what they would train is counted.

# %%
counted = []
for name in recipe_names():
    for stage in recipe_stages(name) or [""]:
        recipe = load_recipe(f"{name}:{stage}" if stage else name)
        trained = expand(recipe)
        counted.append(
            {
                "recipe": recipe.name + (f", {stage}" if stage else ""),
                "rank": recipe.rank,
                "learning rate": recipe.learning_rate,
                "trained": f"{trained.trainable:,}",
                "of": f"{trained.parameters:,}",
                "share": f"{trained.share:.2%}",
            }
        )
results.save("04_recipes", counted, seed=0)

# %%
results.load("04_recipes")

# %% [markdown]
# The shares that were published for the 7B run, 2.97, 6.06 and 6.22 %, come out of this count.
# Look at what they consist of. Most of it is not LoRA: it is two whole matrices, embedding and
# head, which the published recipe trains entirely, old rows included. Training the rows of the
# **new** tokens alone is the course's way; the old ones stay bit for bit what they were.
#
# **Exercise 4.3.** LLaMA-7B has 32 layers; each has four 4,096 × 4,096 matrices of attention, two
# of 11,008 × 4,096 and one of 4,096 × 11,008. How many parameters does LoRA of rank 8 on all seven
# have, over all layers?

# %%
# NBVAL_CHECK_OUTPUT
lora_7b = ...
lab.check("4.3", lora_7b)

# %% tags=["solution"]
lora_7b = 32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))

# %% tags=["wrong-solution"]
lora_7b = 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))

# %% tags=["wrong-solution"]
lora_7b = 32 * 8 * 4 * (4096 + 4096)

# %% [markdown]
# ## 4. Text into blocks
#
# Training reads blocks of equal length. Documents are laid end to end, each with an end mark
# (EOS), and cut into blocks; nothing is thrown away but a tail shorter than one block. Positions
# start again at each document, and attention does not look back into the one before.

# %%
small = pack(["春天来了。", "花开了，草绿了。", "我们去公园。"], tokenizer, 16, seed=1)
print(small)
for n in range(len(small)):
    print(small.block_positions(n), "documents", small.block_documents(n))

# %% [markdown]
# Positions that fall back to 0 mark the beginning of a document. The published script joins texts
# without an end mark: the model then learns that a news item may turn into another in
# mid-sentence.
#
# ## 5. Four runs at the same cost
#
# Now the question of chapter 03: are new tokens worth it? Each run below trains on **the same
# number of tokens**, so that each costs about the same seconds. With new tokens a token covers
# more text, so the run reads more characters; but the new rows have to be learnt first. English
# is replayed 回放 in all runs but one.

# %%
plain_model, plain_tokenizer = load_base("smollm2")
many = continue_bpe(plain_tokenizer, train, profile["many_new_tokens"])
few = many.first(profile["few_new_tokens"])
english = load_corpus("c4-en").split("train").take(200).texts()
reading, runs_folder = train[:2000], Path(tempfile.mkdtemp())
recipe = load_recipe("smollm2-zh")
steps = max(2, profile["training_tokens"] // (recipe.batch * recipe.block))
recipe = recipe.replace(steps=steps, evaluate_every=max(1, steps // 2), log_every=max(1, steps // 15))
print(f"{recipe.steps} steps of {recipe.batch} × {recipe.block} tokens, rank {recipe.rank}")


# %%
def run(name, extension=None, **changes):
    """Train one variant; returns the report and the tokenizer."""
    model, tokenizer = load_base("smollm2", dtype=weights_dtype(recipe))
    if extension is not None:
        extend_embeddings(model, tokenizer, extension.tokenizer)
        tokenizer = extension.tokenizer
    report = pretrain(
        model,
        tokenizer,
        reading,
        recipe.replace(**changes),
        runs_folder / name,
        replay=english,
        held_out=held_out,
        watch=LiveCurves(name),
    )
    return report, tokenizer


# %%
variants = {
    "no new tokens": run("no new tokens"),
    f"+{len(few):,} tokens": run("few new tokens", few),
    f"+{len(many):,} tokens": run("many new tokens", many),
    f"+{len(many):,}, no replay": run("no replay", many, replay_share=0.0),
}

# %%
rows = []
for name, (report, _) in variants.items():
    zh, en = report.evaluations("zh_bits"), report.evaluations("en_bits")
    rows.append(
        {
            "run": name,
            "seconds": round(report.seconds, 1),
            "characters read": report.characters,
            "tokens per second": round(report.tokens / report.seconds),
            "Chinese before": round(zh[0][1], 3),
            "Chinese after": round(zh[-1][1], 3),
            "English before": round(en[0][1], 3),
            "English after": round(en[-1][1], 3),
            "trained": report.trained.trainable,
        }
    )
results.save("04_four_runs", rows, seed=0, model=f"SmolLM2-135M-Instruct, {weights_dtype(recipe)}")
curves = [{"run": name, **row} for name, (report, _) in variants.items() for row in report.table()]
results.save("04_four_runs_log", curves, seed=0, model=f"SmolLM2-135M-Instruct, {weights_dtype(recipe)}")
results.load("04_four_runs")

# %%
before = rows[0]["Chinese before"]
best = min(rows[:3], key=lambda row: row["Chinese after"])["run"]
plots.plot_lines(
    {name: tuple(zip(*report.evaluations("zh_bits"), strict=True)) for name, (report, _) in variants.items()},
    title=f"After {steps} steps on held-out Chinese, the best of three is: {best}",
    xlabel="optimizer steps (the same tokens each)",
    ylabel="bits per character",
)
plt.show()

# %% [markdown]
# *Alternative text:* four falling lines of bits per character over training steps. The runs with
# new tokens start higher than the run without, and fall more steeply.
#
# Two things pull against each other. New tokens begin with a handicap, because their rows are
# guesses; but every step then reads more Chinese. The shorter the run, the more the handicap
# counts. When does it pay? Longer runs, at a constant rate, were made for this repository by
# `benchmarks/new_tokens.py`. Their text is another and stands behind BOS, which neither model had
# read before text: compare their figures with each other, not with those above.

# %%
long_runs = results.load("bench_new_tokens").rows
lines = {}
for row in long_runs:
    x, y = lines.setdefault(f"+{int(row['new_tokens']):,} tokens", ([], []))
    x.append(int(row["tokens"]) / 1000)
    y.append(float(row["zh_bits"]))
last = {name: y[-1] for name, (_, y) in lines.items()}
plots.plot_lines(
    lines,
    title=f"At the end of the longer runs, {min(last, key=last.get)} has the fewest bits per character",
    xlabel="thousand tokens trained on (the same cost for all)",
    ylabel="bits per character, held-out Chinese",
)
plt.show()

# %% [markdown]
# *Alternative text:* lines of bits per character over tokens, one for each number of new tokens,
# from runs many times as long as those above. The line with new tokens starts higher, falls more
# steeply, and meets the other near the end.

# %%
for name, (x, y) in lines.items():
    halves = y[len(y) // 2] - y[-1]
    print(
        f"{name:<14} {y[0]:.2f} → {y[-1]:.2f} after {x[-1]:.0f} thousand tokens; second half: −{halves:.2f}"
    )

# %% [markdown]
# Read the second half of each line. A model without new tokens learns fast and then slowly; with
# new tokens it is still falling steeply where the run ends. Whoever has a minute should leave the
# vocabulary alone; where the lines meet, the extension begins to pay, and the published runs were
# longer by orders of magnitude. And bits per character are half of it: with new tokens each
# character also costs fewer steps to *write*, which chapter 08 measures in seconds.
#
# ## 6. Forgetting
#
# A model that learns Chinese pays with English, unless it keeps reading some. Compare the two runs
# that differ in replay alone:

# %%
panels = {
    language: {
        row["run"]: {"before": row[f"{language} before"], "after": row[f"{language} after"]} for row in rows
    }
    for language in ("Chinese", "English")
}
plots.plot_bar_panels(
    panels,
    title="What the four runs gain in Chinese, and what they lose in English",
    xlabel="bits per character",
    references={"Chinese": before, "English": rows[0]["English before"]},
)
plt.show()

# %% [markdown]
# *Alternative text:* two panels of horizontal bars, Chinese and English, before and after each of
# the four runs; dashed lines mark the model as it came.

# %%
with_replay, without = rows[2], rows[3]
for name, row in (("with replay", with_replay), ("without", without)):
    gain = row["Chinese before"] - row["Chinese after"]
    loss = row["English after"] - row["English before"]
    print(f"{name:<12} Chinese −{gain:.2f} bits per character, English {loss:+.3f}")

# %% [markdown]
# Replay 回放 takes its share of every step, so Chinese moves a little less far. Whether that is a
# good bargain depends on what the model is for. A course that never measured English could not
# even ask.
#
# ## 7. What it writes now
#
# Bits per character are an average. Here is a text: the same beginning, before and after.

# %%
report, tokenizer_after = variants[f"+{len(many):,} tokens"]
length = profile["generated_tokens"]
for prompt in ("北京市", "我国经济"):
    for when, writer, words in (
        ("before", plain_model, plain_tokenizer),
        ("after", report.model, tokenizer_after),
    ):
        text = answer(writer, words, prompt, template=None, max_new_tokens=length)
        print(f"{when:<7} {prompt}{text}")
    print()

# %% [markdown]
# A minute of training does not make a writer. It makes the words; what they say comes much later,
# if at all at this size.
#
# ## What we measured

# %%
results.load("04_rank_of_an_update")

# %%
results.load("04_four_runs")

# %% [markdown]
# How fast and how small the package's training is beside the published configuration is measured
# by `benchmarks/training.py`:

# %%
results.load("bench_training")

# %% [markdown]
# ## What can go wrong
#
# - *Comparing losses across vocabularies.* The loss in the left picture is per token. Only the
#   right one, per character, can be compared between runs.
# - *A rate that fits another rank.* α/r changes the size of every step. Change rank and α
#   together, or use rsLoRA.
# - *New rows that never move.* `modules_to_save` trains whole matrices, old rows included;
#   `trainable_token_indices` trains the new rows alone. With neither, new tokens stay guesses.
# - *A run that is stopped.* Checkpoints are whole or absent; the same call with `resume=True` goes
#   on, bit for bit on a CPU.
# - *A loss that is no number.* The run stops, with the step and the documents of the batch, and
#   the last good checkpoint stays.
# - *Believing one seed.* The order of neighbours in a short run may change with the seed; the large
#   gaps do not.
#
# ## Where this came from
#
# - LoRA, [arXiv 2106.09685](https://arxiv.org/abs/2106.09685); rsLoRA, [arXiv
#   2312.03732](https://arxiv.org/abs/2312.03732); LoRA+, [arXiv
#   2402.12354](https://arxiv.org/abs/2402.12354); DoRA, [arXiv
#   2402.09353](https://arxiv.org/abs/2402.09353)
# - its limits in continued pre-training: [arXiv 2405.09673](https://arxiv.org/abs/2405.09673)
# - the published recipe: [arXiv 2304.08177](https://arxiv.org/abs/2304.08177)
# - no new tokens as the baseline: [arXiv 2401.01055](https://arxiv.org/abs/2401.01055)
# - replay: [arXiv 2403.08763](https://arxiv.org/abs/2403.08763); packing: [arXiv
#   2407.09105](https://arxiv.org/abs/2407.09105)
#
# **Next:** [05 Instruction tuning](05_instruction_tuning.ipynb) 指令微调: the model writes text; now
# it is to answer.
