# %% [markdown]
# # Scaling up 扩大规模
#
# **What changes when the model is fifty times larger, and the text ten thousand times longer?**
#
# Not the functions. `load_base`, `pretrain`, `finetune`, `merge_adapters`, `load_quantized` and `score` take
# a hub model on a GPU as they took SmolLM2 on two cores. What changes is that a mistake costs money. So this
# chapter is about what can be known before: how much memory, how many hours, at what price, and where text
# of 20 GB, the size that the published recipe read, comes through the tokenizer.

# %% [markdown]
# ## What you will be able to do
#
# - **run** the course's commands on a hub model and one GPU of 24 GB
# - **estimate** memory 显存, hours 时长 and cost 费用 before anything is rented
# - **pack** text that is larger than the memory into shards 分片, stop, and go on
# - **train** on several processes 多进程: copies (DDP), or parts of one model (FSDP)
# - **tick off** a checklist 清单 before renting GPUs

# %% [markdown]
# Time and memory of this chapter, measured when it was last built. It downloads nothing new.

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("11")

# %%
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from matplotlib import pyplot as plt

import chinese_llama_lab as lab
from chinese_llama_lab import plots, results
from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.paths import data_dir
from chinese_llama_lab.profiles import current_profile
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.sources.models import load_base

# %%
from chinese_llama_lab.training.cost import flops_per_token, tokenization_time, training_time
from chinese_llama_lab.training.plan import plan_training
from chinese_llama_lab.training.recipe import load_recipe
from chinese_llama_lab.training.shard_reading import load_shards
from chinese_llama_lab.training.shards import write_shards

session = lab.setup(seed=0, chapter="11", torch=True)
profile = current_profile()
scratch = tempfile.TemporaryDirectory()
here = Path(scratch.name)

# %% [markdown]
# ## 1. The same commands, a larger model
#
# On a machine with a GPU and the model hub (`HF_ENDPOINT` names a mirror where the hub cannot be reached;
# `chinese-llama-lab doctor` says what the machine has). The first line asks whether the published recipe will
# fit, before anything is downloaded: rank 64, with the embedding and the head trained whole.
#
# ```sh
# chinese-llama-lab estimate llama-2-7b --task qlora --rank 64 --embeddings published --vocabulary 55296 \
#     --block 512 --gradient-checkpointing --gpu 24 --knobs
# hf download hfl/chinese-llama-2-7b --local-dir base-7b
# chinese-llama-lab pretrain --recipe chinese-llama-2-7b --model base-7b/ --set quantization='"nf4"' \
#     --set steps=200 --text zh.txt --out runs/zh
# chinese-llama-lab merge-adapters base-7b/ runs/zh --out zh-7b/
# chinese-llama-lab finetune --recipe chinese-alpaca-7b --model zh-7b/ --set vocabulary=55296 \
#     --set template='"v2"' --set quantization='"nf4"' --instructions rows.jsonl --out runs/instruct
# chinese-llama-lab merge-adapters zh-7b/ runs/instruct --out chinese-7b/
# chinese-llama-lab quantize chinese-7b/ --kind nf4 --out chinese-7b-nf4/
# chinese-llama-lab ceval --questions ceval-exam.zip --model chinese-7b/ --kind bf16 \
#     --prompt ceval-official --shots 5 --out runs/ceval
# ```
#
# Each adapter is merged before the next is trained on the result. `merge-adapters` reads weights piece by
# piece and wants a folder, with safetensors in it; the others take the hub's name as well.
#
# In Python these are the functions of chapters 04 to 09, with another name: `load_base("owner/name",
# dtype="bfloat16", device="cuda")`.
#
# What fits into 24 GB? From the shapes alone:

# %%
rows = []
for model in ("tinyllama", "llama-2-7b", "llama-2-13b", "llama-3-8b"):
    for task, options in (
        ("inference", {"block": 2048}),
        ("inference", {"block": 2048, "quantization": "nf4"}),
        ("lora", {"block": 512, "gradient_checkpointing": True}),
        ("qlora", {"block": 512, "gradient_checkpointing": True}),
    ):
        kind = options.get("quantization", "none")
        memory = estimate(model, task, **options)
        name = task if kind == "none" else f"{task}, {kind}"
        rows.append({"model": model, "task": name, "gib": round(memory.gib, 1), "in_24": memory.gib <= 24})
published = {"rank": 64, "embeddings": "published", "vocabulary": 55296, "gradient_checkpointing": True}
for task in ("lora", "qlora"):
    memory = estimate("llama-2-7b", task, block=512, **published)
    name = f"{task}, as published"
    rows.append({"model": "llama-2-7b", "task": name, "gib": round(memory.gib, 1), "in_24": memory.gib <= 24})
memory_rows = results.save("11_memory", rows, seed=0)
memory_rows

# %% [markdown]
# The last two rows are the published recipe: rank 64, and embedding and head of 55,296 rows trained whole,
# with Adam's two numbers for each of their weights. In 16 bits that does not fit, whatever LoRA alone may do.
#
# ## 2. Hours and cost
#
# A run reads so many tokens, a device computes so many a second. The second number is the one to measure,
# for a minute, on the device that will be rented, at the block and batch of the run. Until then it can be
# bounded by arithmetic: training on one token takes some multiple of the number of weights in operations
# 浮点运算.

# %%
# NBVAL_CHECK_OUTPUT
shape = "llama-2-7b"
full = flops_per_token(shape)
lora = flops_per_token(shape, lora=64)
again = flops_per_token(shape, lora=64, checkpointing=True)
for name, value in (("full training", full), ("LoRA", lora), ("LoRA with checkpointing", again)):
    print(f"{name:<24} {value / 1e9:5.1f} billion operations a token")

# %% [markdown]
# A frozen weight needs no gradient of its own: LoRA saves a third of the work, and not nine tenths of it.
# Checkpointing, which computes the layers twice to save memory, spends all of that again.
#
# **Exercise 11.1.** Chinese text in UTF-8 has three bytes a character. Write `tokens_in(gigabytes,
# tokens_per_character)`: how many tokens are in so many GB (10⁹ bytes)?

# %%
# NBVAL_CHECK_OUTPUT
tokens_in = ...
lab.check("11.1", tokens_in)


# %% tags=["solution"]
def tokens_in(gigabytes, tokens_per_character):
    return gigabytes * 10**9 / 3 * tokens_per_character


# %% tags=["wrong-solution"]
def tokens_in(gigabytes, tokens_per_character):
    return gigabytes * 10**9 * tokens_per_character


# %% tags=["wrong-solution"]
def tokens_in(gigabytes, tokens_per_character):
    return gigabytes * 10**9 / 3 / tokens_per_character


# %% [markdown]
# So much for the numerator. The rate below is **an assumption**, and is marked as one: a device that can do
# 10¹⁴ operations a second at most, and reaches 40 % of that. (`benchmarks/gpu.py` measures the rate of the
# GPU that is there; no GPU could be had while this was written, so that there is no measured row.)

# %%
peak, share, price = 1e14, 0.4, 1.0  # assumed; the price is one unit of money an hour
rate = peak * share / again
texts = {(row["tokenizer"], row["text"]): row for row in results.load("01_fertility").rows}
merged = {(row["text"], row["form"]): row for row in results.load("bench_merge").rows}
tokens_per_character = {
    "LLaMA's": float(texts["LLaMA", "peoples-daily"]["tokens_per_character"]),
    "extended": float(merged["peoples-daily", "NFKC"]["published"]),
}
plans = []
for gigabytes in (20, 120):
    for vocabulary, per_character in tokens_per_character.items():
        tokens = gigabytes * 1e9 / 3 * per_character
        hours = training_time(tokens, rate)
        row = {"text_gb": gigabytes, "vocabulary": vocabulary, "tokens": round(tokens)}
        plans.append({**row, "device_hours": round(hours)})
results.save("11_hours", plans, seed=0, assumed=f"{peak:g} operations a second, {share:.0%} of it used")

# %%
recipe = load_recipe("chinese-llama-2-7b").replace(quantization="nf4")
plan = plan_training(
    shape, recipe, tokens=plans[1]["tokens"], tokens_per_second=rate, devices=8, price_per_hour=price
)
plan

# %% [markdown]
# The plan counts eight devices as eight times one; some of that is lost in practice, and `efficiency` is
# where to say how much. Tokens per character enter the bill directly: the same text costs less than half as
# much to read after the vocabulary is extended. This is the effect that chapter 01 began with.
#
# Now with a rate that **was measured**. `smollm2-zh` was trained on two CPU cores, in stages with blocks of
# several lengths, on a machine that was not always alone. What would its first minutes have foretold? Its
# log has tokens a second for every few steps; the plan takes the median of the first ten rows, and the log
# says how long it took in the end.

# %%
text = (data_dir() / "adapters" / "smollm2-zh" / "log.jsonl").read_text(encoding="utf-8")
log = [row for row in map(json.loads, text.splitlines()) if "tokens_per_second" in row]
took, read, before = 0.0, 0, (0, 0)
for row in log:
    new = row["tokens"] - (before[1] if row["stage"] == before[0] else 0)
    took, read, before = took + new / row["tokens_per_second"], read + new, (row["stage"], row["tokens"])
early = median(row["tokens_per_second"] for row in log[:10])
own = plan_training("smollm2", load_recipe("smollm2-zh"), tokens=read, tokens_per_second=early)
print(f"foretold by the first minutes: {own.hours:.1f} hours at {early:.0f} tokens a second")
print(f"in the log: {took / 3600:.1f} hours, {read:,} tokens, {read / took:.0f} tokens a second")
print(f"operations a second: {own.flops / took / 1e9:.0f} billion")

# %% [markdown]
# On a rented GPU the same two lines take *its* rate in place of `early`, and `price_per_hour`. The difference
# between the two hours is what a plan from the first minutes is worth where the machine is shared and later
# stages have larger batches and other blocks.

# %% [markdown]
# ## 3. Text larger than the memory
#
# The published recipe read 20 GB of text, its successor 120 GB. `pack` of chapter 04 holds its blocks in
# memory; `write_shards` reads the text as a stream, tokenizes with as many processes as there are cores, and
# writes blocks into shards, files of a fixed size that are memory-mapped 内存映射 when the run reads them.
# Each moves into place when it is whole, so that a killed run goes on behind the last one.

# %%
model, tokenizer = load_base("smollm2-zh")
news = load_corpus("peoples-daily").chinese_punctuation().take(profile["scale_documents"]).texts()
file = here / "news.txt"
file.write_text("\n".join(text.replace("\n", " ") for text in news) + "\n", encoding="utf-8")
index = write_shards(
    file, tokenizer, here / "shards", block=256, shard_tokens=profile["scale_shard_tokens"], progress=False
)
index

# %%
shards = load_shards(here / "shards", tokenizer)
lines = file.read_text(encoding="utf-8").splitlines()
ids = []
for line in lines[:200]:
    ids += [*tokenizer.encode(line, add_special_tokens=False), tokenizer.eos_token_id]
stored = [token for block in range(3) for token in shards.item(block).input_ids]
assert stored == ids[: len(stored)]
print(f"{len(shards.lengths):,} blocks; the first three hold what `encode` gives, to the token")

# %% [markdown]
# A data set of `datasets` goes in as it is, in memory or streamed from the hub (`load_dataset(…,
# streaming=True)`), and gives the same blocks:

# %%
from datasets import Dataset

stream = Dataset.from_dict({"text": lines}).to_iterable_dataset()
write_shards(
    stream, tokenizer, here / "again", block=256, shard_tokens=profile["scale_shard_tokens"], progress=False
)
again = load_shards(here / "again", tokenizer)
for block in range(len(shards.lengths)):
    assert again.item(block).input_ids == shards.item(block).input_ids
print(f"{len(again.lengths):,} blocks, all the same")

# %% [markdown]
# How long for 20 GB, and for 120? `benchmarks/shards.py` measures the throughput 吞吐量 of a core on the
# course's texts, beside the way of the original script (tokenize with `datasets.map`, then chunk):

# %%
throughput = results.load("bench_shards")
throughput

# %% [markdown]
# Two workers are not twice as fast as one: they share a cache and a disk. What each of the two keeps is
# taken for more of them too; beyond two cores this is extrapolated, and not measured.

# %%
speeds = {
    int(row["workers"]): float(row["megabytes_per_second_per_core"])
    for row in throughput.rows
    if row["way"] == "write_shards"
}
hours = {
    f"{gigabytes} GB, {cores} core{'s' if cores > 1 else ''}": {
        "hours": tokenization_time(gigabytes, speeds[1 if cores == 1 else max(speeds)], cores)
    }
    for gigabytes in (20, 120)
    for cores in (1, 2, 8, 32)
}
plots.plot_bars(hours, title="Tokenizing is a matter of hours, not of weeks", xlabel="hours")
plt.show()

# %% [markdown]
# *Alternative text:* eight horizontal bars of hours. 120 GB on one core is the longest, less than a day; on
# 32 cores both sizes take about an hour or less.
#
# On the command line, and then as the text of a run:
#
# ```sh
# chinese-llama-lab shards --text zh-00.txt --text zh-01.txt --tokenizer smollm2-zh --block 256 \
#     --replay-text en.txt --replay-share 0.1 --workers 8 --out shards/
# chinese-llama-lab shards --text zh-00.txt --text zh-01.txt --tokenizer smollm2-zh --block 256 \
#     --replay-text en.txt --replay-share 0.1 --workers 8 --out shards/ --resume
# chinese-llama-lab pretrain --model smollm2-zh --shards shards/ --set steps=1000 --out runs/more
# ```
#
# Block, BOS and tokenizer of the shards are those of the run; `pretrain` refuses others and says which.

# %% [markdown]
# ## 4. Several processes
#
# Under **DDP** (数据并行) every process holds the whole model and reads other sequences; gradients are
# averaged. Under **FSDP** (分片数据并行) each holds a part of every weight, and fetches the rest when
# it needs it: less memory, more traffic. Both give, up to rounding, the losses of one process that
# reads the same batch. That is not a promise to believe: two CPU processes show it here, on a model
# of two layers.

# %%
from transformers import LlamaConfig, LlamaForCausalLM

small = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
)
small.save_pretrained(here / "small")
tokenizer.save_pretrained(here / "small")
run = ["pretrain", "--model", str(here / "small"), "--shards", str(here / "shards")]
for setting in ("steps=4", "batch=4", "micro_batch=1", "replay_share=0.0", "log_every=1", 'precision="fp32"'):
    run += ["--set", setting]
run += ["--set", "block=256", "--set", 'embeddings="frozen"']


# %%
def losses(name, launcher):
    """Losses of a run in processes of its own."""
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "LAB_RESULTS_DIR": str(here / "results")}
    command = [sys.executable, "-m", *launcher, "chinese_llama_lab", *run, "--out", str(here / name)]
    done = subprocess.run(command, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    log = (here / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, log) if "loss" in row]


several = ["accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
sharded = ["accelerate.commands.launch", "--num_processes", "2", "--use_fsdp", "--fsdp_version", "2"]
sharded += ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
sharded += ["--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer"]
launchers = {"one process": [], "DDP": [*several, "-m"], "FSDP": [*sharded, "-m"]}
found = {name: losses(name, launchers[name]) for name in profile["scale_launchers"]}
for name, values in found.items():
    print(f"{name:<12} {'  '.join(f'{value:.5f}' for value in values)}")
    assert all(abs(a - b) < 1e-3 for a, b in zip(values, found["one process"], strict=True))

# %% [markdown]
# On GPUs the same commands, with as many processes as there are GPUs:
#
# ```sh
# chinese-llama-lab shards --text zh-00.txt --tokenizer base-7b/ --bos --workers 8 --out shards-7b/
# accelerate launch --multi_gpu --num_processes 8 -m chinese_llama_lab pretrain \
#     --recipe chinese-llama-2-7b --model base-7b/ --shards shards-7b/ --out runs/zh
# accelerate launch --use_fsdp --fsdp_version 2 --num_processes 8 \
#     --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP \
#     --fsdp_transformer_layer_cls_to_wrap LlamaDecoderLayer \
#     -m chinese_llama_lab pretrain --recipe chinese-llama-2-7b --model base-7b/ \
#     --shards shards-7b/ --out runs/zh
# ```
#
# (On a machine without GPUs `--multi_gpu` is accelerate's word for several processes.) The batch of a recipe
# 批大小 is the batch of an optimizer step over *all* processes: the number of processes changes how it is
# shared out, and not what is learnt.
#
# **Exercise 11.2.** A recipe has `batch` sequences an optimizer step; each of `processes` computes `micro` at
# once. Write `accumulation(batch, micro, processes)`: how many times does each process go forward and
# backward before a step? It has to come out even: otherwise return `None`.

# %%
# NBVAL_CHECK_OUTPUT
accumulation = ...
lab.check("11.2", accumulation)


# %% tags=["solution"]
def accumulation(batch, micro, processes):
    return batch // (micro * processes) if batch % (micro * processes) == 0 else None


# %% tags=["wrong-solution"]
def accumulation(batch, micro, processes):
    return batch // (micro * processes)


# %% tags=["wrong-solution"]
def accumulation(batch, micro, processes):
    return batch // micro if batch % micro == 0 else None


# %% [markdown]
# **Exercise 11.3.** Devices get slower together: each of several keeps a share `efficiency` 效率 of its rate.
# Write `cost(tokens, rate, devices, efficiency, price)`, where `rate` is tokens a second of one device alone
# and `price` is of one device and hour. What happens to the cost with twice the devices?

# %%
# NBVAL_CHECK_OUTPUT
cost = ...
lab.check("11.3", cost)


# %% tags=["solution"]
def cost(tokens, rate, devices, efficiency, price):
    hours = tokens / (rate * devices * efficiency) / 3600
    return hours * devices * price


# %% tags=["wrong-solution"]
def cost(tokens, rate, devices, efficiency, price):
    return tokens / (rate * devices * efficiency) / 3600 * price


# %% tags=["wrong-solution"]
def cost(tokens, rate, devices, efficiency, price):
    return tokens / (rate * devices) / 3600 * devices * price


# %% [markdown]
# ## 5. Before you rent
#
# - [ ] The whole chain ran on a small model, from text to score: chapters 04 to 09, a quarter of an hour.
# - [ ] `estimate` says that it fits, with a tenth to spare, at the block and batch of the run.
# - [ ] Text is clean, de-duplicated 去重 and licensed; the evaluation's questions are not in it (chapter 09).
# - [ ] Shards are written and verified *before* the GPUs are rented: tokenizing needs cores, not GPUs.
# - [ ] A minute on one GPU gave the rate; hours and cost follow from it, not from somebody's table.
# - [ ] A run was killed and went on with `--resume`, on that machine, from that disk.
# - [ ] The disk holds the checkpoints: with its optimizer an adapter is a few per cent of the model at rank
#   8, and more than half of it where embedding and head are trained whole.
# - [ ] English is scored beside Chinese, during the run; replay 回放 is in the mix.
# - [ ] Somebody looks at losses in the first ten minutes: a rate that is too high shows there (chapter 10).
# - [ ] What a success is was written down before the run: which score, which interval, against what.

# %% [markdown]
# ## What we measured

# %%
results.load("11_memory")

# %%
results.load("11_hours")

# %%
results.load("bench_shards")

# %% [markdown]
# ## What can go wrong
#
# - *Renting first.* Most hours of a first run are spent on paths, formats and disks.
# - *A batch that grew with the GPUs.* Twice the processes at the same micro-batch are twice the batch, unless
#   accumulation is halved; the learning rate was chosen for one of the two.
# - *Tokenizing again in each process.* Write shards once.
# - *An epoch that each process shuffles for itself.* They would read the same rows; the order here comes from
#   the seed alone.
# - *Checkpoints on a disk that disappears* with the machine.
# - *MFU of a minute taken for MFU of a week.* Evaluation, checkpoints and restarts take their share.
#
# ## Where this came from
#
# - operations a token: [arXiv 2001.08361](https://arxiv.org/abs/2001.08361); utilization: [arXiv
#   2204.02311](https://arxiv.org/abs/2204.02311)
# - sharded data parallelism: [arXiv 2304.11277](https://arxiv.org/abs/2304.11277)
# - sizes of the published runs: [Chinese-LLaMA-Alpaca](https://github.com/ymcui/Chinese-LLaMA-Alpaca), [arXiv
#   2304.08177](https://arxiv.org/abs/2304.08177)
#
# This was the last chapter. [00 Start here](00_start_here.ipynb) has the map; `results/` has the numbers;
# the [ledger](10_claims_and_limits.ipynb) has the claims. Yours can be added to all three.
