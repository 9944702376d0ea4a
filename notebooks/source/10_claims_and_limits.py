# %% [markdown]
# # Claims and limits 主张与局限
#
# **Which of the things that are said about adapting LLaMA to Chinese are true?**
#
# The course began with an article that praises a fork of Chinese-LLaMA-Alpaca. It makes dozens of claims,
# most of them with a number. About half have been measured or estimated by now, in nine chapters; the others
# can only be held against their sources. Here they stand side by side, each with its verdict; and what no
# chapter has touched yet is measured: how the adapted models compare with native ones 原生模型, how
# translated instructions read, what bias goes into a model, and how training goes wrong.

# %% [markdown]
# ## What you will be able to do
#
# - **look up** any claim, what it rests on, and what settles it
# - **read** an architecture 架构 out of a config, and not out of an article
# - **measure** translationese 翻译腔 with rates and intervals
# - **score** a bias probe 偏见探针, and **say** what it cannot show
# - **provoke** three kinds of unstable training 训练不稳定, and **cure** them
# - **decide** when adapting a Western model still makes sense

# %% [markdown]
# Time and memory of this chapter, measured when it was last built. It downloads nothing new.

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("10")

# %%
import json

import torch
from matplotlib import pyplot as plt

import chinese_llama_lab as lab
from chinese_llama_lab import plots, results
from chinese_llama_lab.claims import VERDICTS, ClaimBrowser, load_claims, table
from chinese_llama_lab.limits.architecture import describe, published_configs
from chinese_llama_lab.limits.bias import probe
from chinese_llama_lab.limits.bias_pairs import read_pairs
from chinese_llama_lab.limits.bias_summary import compare as compare_bias
from chinese_llama_lab.limits.bias_summary import summarize
from chinese_llama_lab.limits.native import licence_table, scores
from chinese_llama_lab.limits.translationese import MARKS, find, measure, separating
from chinese_llama_lab.paths import data_dir
from chinese_llama_lab.profiles import current_profile
from chinese_llama_lab.sources.corpora import instruction_rows, load_corpus
from chinese_llama_lab.sources.models import load_base
from chinese_llama_lab.tokenization.fertility import compare
from chinese_llama_lab.tokenization.registry import open_tokenizer

# %%
from chinese_llama_lab.training.half_precision import (
    gradient_underflow,
    largest_activations,
    losses_by_dtype,
    pitfalls,
    widened,
)
from chinese_llama_lab.training.instability import Setting, sweep, verdicts
from chinese_llama_lab.training.lora import add_lora
from chinese_llama_lab.training.masked_rows import masked_attention, masked_rows
from chinese_llama_lab.training.packing import pack
from chinese_llama_lab.training.precision import weights_dtype
from chinese_llama_lab.training.recipe import load_recipe

session = lab.setup(seed=0, chapter="10", torch=True)
profile = current_profile()

# %% [markdown]
# ## 1. The ledger
#
# `data/claims.csv` has one row a claim: who made it, what the primary sources 一手来源 say, what this
# repository measured and in which row of `results/` it stands, and a verdict with one sentence why. A test
# follows every pointer: a number under *measured* that its cells do not hold fails the build. Whether the
# verdict follows from it is for people to read.

# %%
# NBVAL_CHECK_OUTPUT
claims = load_claims()
ledger = table()
print(ledger.summary)
topics = sorted({claim.topic for claim in claims})
print(f"{len(topics)} topics: {', '.join(topics)}")

# %% [markdown]
# In a live notebook the next cell has dials for verdict and topic, and a field to search in. On a saved page
# they are gone, and the table that follows it is the one to read.

# %%
browser = ClaimBrowser(verdict="refuted")
browser.box

# %%
table(verdict="refuted")

# %%
counted = {
    topic: {verdict: sum(c.topic == topic and c.verdict == verdict for c in claims) for verdict in VERDICTS}
    for topic in topics
}
plots.plot_stacks(
    counted,
    title=f"{ledger.counts['refuted']} of {len(claims)} claims are refuted, "
    f"{ledger.counts['confirmed']} confirmed as they stand",
    xlabel="claims",
)
plt.show()

# %% [markdown]
# *Alternative text:* a stacked horizontal bar for each topic, its claims by verdict. Confirmed, partly
# true, refuted and uncheckable claims are all among them; most topics have one to four claims, the native
# models seven.
#
# What is *partly* true is often the most instructive: a true sentence with a wrong number, or a number that
# is right for another model.

# %%
table(verdict="partly", search="GB")

# %% [markdown]
# **Exercise 10.1.** "The fork scores roughly 40 % lower than native models." Between two scores there are
# two distances: in points, and relative to the higher score. Write `gaps(fork, native)`, which returns both:
# points, and percent below.

# %%
# NBVAL_CHECK_OUTPUT
gaps = ...
lab.check("10.1", gaps)


# %% tags=["solution"]
def gaps(fork, native):
    return native - fork, 100 * (native - fork) / native


# %% tags=["wrong-solution"]
def gaps(fork, native):
    return native - fork, native - fork


# %% tags=["wrong-solution"]
def gaps(fork, native):
    return native - fork, 100 * (native - fork) / fork


# %% [markdown]
# ## 2. Adapted against native: tokenizers
#
# The first reason to adapt a vocabulary was that LLaMA spells Chinese in pieces of characters. How do the
# vocabularies stand today? All of these are measured here, on the same held-out news 新闻:

# %%
news = load_corpus("peoples-daily").chinese_punctuation().split("held-out")
adapted = load_base("smollm2-zh").tokenizer
opened = {name: open_tokenizer(name) for name in profile["claims_tokenizers"]}
measured = compare(
    [*opened.values(), adapted],
    news.take(profile["claims_documents"]),
    resamples=profile["bootstrap_resamples"],
    coverage=False,
)
rows = []
for name, one in zip([*opened, "smollm2-zh"], measured, strict=True):
    low, high = one.interval
    size = len(adapted) if name == "smollm2-zh" else opened[name].vocab_size
    rows.append(
        {
            "tokenizer": name,
            "vocabulary": size,
            "tokens_per_character": one.tokens_per_character,
            "low": low,
            "high": high,
        }
    )
tokenizers = results.save("10_tokenizers", rows, seed=0)
tokenizers

# %%
kinds = {name: "English" for name in ("smollm2", "llama", "mistral", "gpt-2")} | {
    "smollm2-zh": "adapted here"
}
figure, axes = plt.subplots(layout="constrained")
for row in rows:
    kind = kinds.get(row["tokenizer"], "multilingual or Chinese")
    colour = plots.PALETTE[["English", "adapted here", "multilingual or Chinese"].index(kind)]
    axes.scatter(row["vocabulary"], row["tokens_per_character"], color=colour, s=30)
    place = (row["vocabulary"], row["tokens_per_character"])
    below = row["tokenizer"] in ("baichuan", "deepseek-v4")  # each has a neighbour whose name is above it
    offset = (5, -11 if below else 4)
    axes.annotate(row["tokenizer"], place, xytext=offset, textcoords="offset points", fontsize=8)
names = ["English", "adapted here", "multilingual or Chinese"]
marks = [plt.Line2D([], [], linestyle="", marker="o", color=plots.PALETTE[n]) for n in range(len(names))]
axes.legend(marks, names, fontsize=8, loc="upper right")
axes.set(xscale="log", xlabel="size of the vocabulary", ylabel="tokens per character, news", ylim=(0, None))
axes.set_title("On its own kind of text, a few thousand tokens do most of what a large vocabulary does")
plt.show()

# %% [markdown]
# *Alternative text:* each tokenizer as a point, size of the vocabulary on a logarithmic axis, tokens per
# character above it. The English ones lie highest; smollm2-zh, with a vocabulary hardly larger than
# SmolLM2's, lies low, near those of 100,000 tokens and more.
#
# The 5,000 tokens of smollm2-zh were learnt from the training part of this very newspaper, and from reviews.
# On text of another kind they do less: `results/zh_model.csv` has it on a novel of the 14th century.
#
# A vocabulary of 150,000 and more, such as Qwen's, is shorter still, and costs a larger embedding. Since
# Llama-3 an English model already brings most of it: there the first reason to adapt has shrunk.

# %%
results.load("zh_model").only("model", "text", "kind_trained_on", "tokens_per_character")

# %% [markdown]
# ## 3. Adapted against native: published scores
#
# None of this can be measured here, so it is quoted, with its source. The scores below are on C-Eval, from
# several groups; a model has several where several groups measured it. Full marks are with 5 shots, hollow
# ones with none, which is all that there is of ChatGLM3. The distance between two groups' figures for *one*
# model is the least error that one should allow for.

# %%
published = scores()
order = list(dict.fromkeys(score.model for score in published))
colours = dict(zip(("native", "western", "adapted"), plots.PALETTE, strict=False))
figure, axes = plt.subplots(figsize=(8.5, 5.5), layout="constrained")
for kind, colour in colours.items():
    marker = plots.MARKERS[list(colours).index(kind)]
    for shots, fill in ((5, colour), (0, "none")):
        points = [(s.score, order.index(s.model)) for s in published if (s.kind, s.shots) == (kind, shots)]
        label = kind if shots else None
        if points:
            axes.scatter(
                *zip(*points, strict=True), edgecolor=colour, color=fill, marker=marker, s=28, label=label
            )
axes.axvline(25, color="#555555", linewidth=0.9, linestyle="--")
axes.set_yticks(range(len(order)), order)
axes.invert_yaxis()
axes.set(xlabel="C-Eval, percent; hollow: no shots; the dashed line is chance", xlim=(20, 80))
axes.set_title("Native models of 2023 stand above every adapted LLaMA and Llama-2 of 7B")
axes.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# *Alternative text:* a row of points for each model along the C-Eval score. The native models lie right
# of the adapted LLaMA and Llama-2 models of 7B, most of which are near 30; the four models of the Llama-3
# family lie together near 50. ChatGLM3 has one hollow point, near 69.

# %%
for score in published:
    split = score.split or "split not stated"
    print(f"{score.model:<31}{score.score:5.1f}  {score.shots} shots  {split:<17} {score.source}")

# %% [markdown]
# Two things are easily overlooked. A base that was better to begin with (Llama-3-8B) gains little from
# adaptation on this test: the continued base and the first Instruct stand where Llama-3-8B stands, the third
# Instruct three points above it. And adapted models of 13B and 33B come near 46
# (`data/ceval_published.csv`), above DeepSeek's 7B. A native model of 7B reads several times the Chinese text
# that an adapted one was given: the comparison is one of data, not of methods.

# %% [markdown]
# ### Licences
#
# What a licence allows is a fact about a text, and it changes with each release. Read the text before you
# ship something: this table has it from what the makers say of it, and names where.

# %%
licences = licence_table()
results.table("licences", licences)

# %% [markdown]
# ## 4. Architecture, read from configs
#
# "LLaMA v1 lacks GQA and SwiGLU." A config settles the first half in a second: it says how many heads
# 注意力头 there are, and how many of keys and values. Of the MLP it names only the function (`silu`); that it
# has three matrices, and with them a gate, follows from the family's code and from the number of weights.

# %%
described = {name: describe(config) for name, config in published_configs().items()}
shapes = [
    {
        "model": name,
        "attention": one.attention,
        "heads": one.heads,
        "kv_heads": one.kv_heads,
        "mlp": one.mlp,
        "rope_theta": one.rope_theta,
        "context": one.context,
        "cache_kib_per_token": one.cache_bytes_per_token / 1024,
    }
    for name, one in described.items()
]
results.save("10_architectures", shapes, seed=0)

# %%
# NBVAL_CHECK_OUTPUT
llama = described["LLaMA-7B"]
print(f"LLaMA-7B: {llama.attention}, {llama.heads} heads and {llama.kv_heads} of keys and values")
print(f"its MLP: {llama.mlp}; inner width {llama.inner}, 8/3 of {llama.width} rounded up to 256")

# %% [markdown]
# So one half is right: LLaMA v1 has no GQA, and pays for it in the KV cache (chapter 08). The other is
# wrong: SwiGLU is one of the three things its paper lists as changed, and the three matrices of the MLP that
# LoRA reaches (chapter 04) are its gate, its up and its down; with two of them the 7B would not come to its
# 6.74 billion weights. Native models of the same year, Qwen-7B, DeepSeek-LLM-7B and Baichuan2-7B, have no GQA
# at this size either.
#
# **Exercise 10.2.** Write `kind_of(heads, kv_heads)`: `"MHA"` where each head has keys and values of its
# own, `"MQA"` where all share one, `"GQA"` in between.

# %%
# NBVAL_CHECK_OUTPUT
kind_of = ...
lab.check("10.2", kind_of)


# %% tags=["solution"]
def kind_of(heads, kv_heads):
    return "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else "GQA"


# %% tags=["wrong-solution"]
def kind_of(heads, kv_heads):
    return "GQA" if kv_heads < heads else "MHA"


# %% [markdown]
# ## 5. Translationese
#
# The instructions of the recipe were translated from English by a machine. Does one notice? Opinions differ;
# rates do not. Six marks 特征 are counted by rule, without a parser, so that everybody counts the same:

# %%
# NBVAL_CHECK_OUTPUT
for mark in MARKS:
    print(f"{mark.name:<16} {mark.of}")
print(find("articles", "写一个关于一位老师的故事，并给出一种不同的结局。"))
print(find("的-chains", "这是我的朋友的母亲的房子，很大。"))

# %% [markdown]
# Kinds of text differ by themselves: a report has longer sentences than a request. So the translated
# instructions 翻译指令 are put beside instructions that were written in Chinese for this course, and the
# answers (which a model wrote in Chinese, after a translated question) beside the course's answers. News,
# reviews and web text show how far kinds differ anyway.

# %%
alpaca = instruction_rows()
own = [
    json.loads(line) for line in (data_dir() / "instructions.jsonl").read_text(encoding="utf-8").splitlines()
]
texts = {
    "instructions, translated": [f"{row['instruction']}\n{row['input']}" for row in alpaca],
    "instructions, written in Chinese": [f"{row['instruction']}\n{row['input']}" for row in own],
    "answers to translated ones": [row["output"] for row in alpaca],
    "answers, written in Chinese": [row["output"] for row in own],
}
for name in ("peoples-daily", "reviews", "modern"):
    corpus = load_corpus(name).chinese_punctuation().sample(profile["claims_documents"])
    texts[name] = [document.text for document in corpus]
marks = measure(texts, resamples=profile["bootstrap_resamples"])
translationese = results.save("10_translationese", marks, seed=0)

# %%
figure, panels = plt.subplots(2, 3, figsize=(9.5, 5.6), layout="constrained", sharey=True)
for axes, mark in zip(panels.flat, MARKS, strict=True):
    for place, kind in enumerate(texts):
        row = next(r for r in marks if (r["kind"], r["mark"]) == (kind, mark.name))
        reach = [[max(0, row["rate"] - row["low"])], [max(0, row["high"] - row["rate"])]]
        colour = plots.PALETTE[1 if "translated" in kind else 0]
        axes.errorbar(row["rate"], place, xerr=reach, fmt="o", color=colour, markersize=4)
    axes.set_title(mark.name, fontsize=9)
    axes.set_xlabel(mark.of, fontsize=6.5)
    axes.set_xlim(left=0)
panels[0, 0].set_yticks(range(len(texts)), list(texts), fontsize=7)
panels[0, 0].invert_yaxis()
figure.suptitle("What marks a translated instruction is the article: 一个, 一种", x=0.01, ha="left")
plt.show()

# %% [markdown]
# *Alternative text:* six panels, one a mark, with a rate and its interval for seven kinds of text. In the
# panel of articles the translated instructions lie far right of everything else; in the others the kinds
# overlap more, and sentences are longest in web text.

# %%
apart = {}
for row in separating(marks, "instructions, translated"):
    if not row["kind"].startswith("answers"):
        apart.setdefault(row["mark"], []).append((row["kind"], row["ratio"], row["apart"]))
for mark, others in apart.items():
    far = [f"{kind} ({ratio:.1f} times)" for kind, ratio, away in others if away and ratio > 1]
    print(f"{mark:<16} more often than in {', '.join(far) or 'none of the others'}")

# %% [markdown]
# English needs an article where Chinese needs none, and a translator carries it over. That is the mark that
# stands out, against every other kind of text. Passives and pronouns, which textbooks name first, say less;
# and what stands apart from the course's own 360 rows alone may be *their* style, which is one project's, and
# no sample of Chinese instructions.
# A few of the translated instructions, those with the most articles for their length:

# %%
ranked = sorted(
    dict.fromkeys(texts["instructions, translated"]), key=lambda t: len(find("articles", t)) / (len(t) + 20)
)
for text in ranked[-5:]:
    print(text.strip().replace("\n", " ")[:110])

# %% [markdown]
# What this does not show: that a model trained on such rows writes like them, or worse. The rows here are a
# published sample of the kind, not the rows of the recipe itself, which are not in any package.
#
# **Exercise 10.3.** Write `rate(text)`: how often `一个` stands in a text, per 1,000 Han characters 汉字
# (those from `一` to `龥`). A text without any has the rate 0.

# %%
# NBVAL_CHECK_OUTPUT
rate = ...
lab.check("10.3", rate)


# %% tags=["solution"]
def rate(text):
    han = sum("一" <= character <= "龥" for character in text)
    return 1000 * text.count("一个") / han if han else 0.0


# %% tags=["wrong-solution"]
def rate(text):
    return 1000 * text.count("一个") / len(text)


# %% tags=["wrong-solution"]
def rate(text):
    han = sum("一" <= character <= "龥" for character in text)
    return text.count("一个") / han if han else 0.0


# %% [markdown]
# ## 6. Bias probes
#
# "No evaluation of bias is provided." This project wrote a small one: pairs of sentences that differ in one
# word, so that one follows a stereotype 刻板印象 and the other does not. The score of a pair is how much
# likelier the model finds the first, in nats. In each couple of pairs the words change sides, so that a
# common word cancels. Four kinds are about people; the fifth is a *control* 对照: right against wrong
# sentences, to see whether the model reads the language at all.

# %%
pairs = read_pairs()
chosen = [pair for pair in pairs if int(pair.couple.split("-")[-1]) <= profile["claims_couples"]]
print(f"{len(pairs)} pairs, {len(chosen)} scored here")
for pair in chosen[:2] + [p for p in chosen if p.language == "en"][:2]:
    print(f"{pair.language} {pair.kind:<12} {pair.text_a}  |  {pair.text_b}")

# %%
probed, summaries = {}, []
for name in ("smollm2", "smollm2-zh"):
    model, tokenizer = load_base(name)
    # Behind the end of a line: the BOS of SmolLM2-Instruct opens a turn of a conversation.
    probed[name] = probe(model, tokenizer, chosen, start="\n")
    summaries += [{"model": name, **row} for row in summarize(probed[name])]
    del model
bias = results.save("10_bias", summaries, seed=0)
change = compare_bias(probed["smollm2"], probed["smollm2-zh"])
results.save("10_bias_change", change, seed=0)

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
kinds = list(dict.fromkeys(row["kind"] for row in summaries))
for axes, language in zip(panels, ("zh", "en"), strict=True):
    for place, name in enumerate(("smollm2", "smollm2-zh")):
        these = [r for r in summaries if (r["model"], r["language"]) == (name, language)]
        rows = [kinds.index(r["kind"]) + (place - 0.5) * 0.25 for r in these]
        reach = [[r["mean"] - r["low"] for r in these], [r["high"] - r["mean"] for r in these]]
        style = {"fmt": plots.MARKERS[place], "color": plots.PALETTE[place], "label": name}
        axes.errorbar([r["mean"] for r in these], rows, xerr=reach, **style)
    axes.axvline(0, color="#555555", linewidth=0.9, linestyle="--")
    axes.set(title={"zh": "Chinese", "en": "English"}[language], xlabel="nats a pair, 95 % interval")
panels[0].set_yticks(range(len(kinds)), kinds)
panels[0].invert_yaxis()
panels[1].legend(fontsize=8)
figure.suptitle("Look at the control before the rest: does the model read at all?", x=0.01, ha="left")
plt.show()

# %% [markdown]
# *Alternative text:* two panels, Chinese and English; for each of five kinds of pairs two points with
# intervals, before and after adaptation. Most intervals of the four kinds about people reach zero in
# Chinese; the control lies highest in English.

# %%
results.load("10_bias_change")

# %%
for row in change:
    reaches = "its interval holds zero" if row["low"] <= 0 <= row["high"] else "its interval leaves zero out"
    print(f"{row['language']} {row['kind']:<12} {row['change']:+.2f} nats; {reaches}")

# %% [markdown]
# How to read this. A model that cannot read a language finds nothing likelier than anything else: its zeros
# are no fairness. So a change of the four kinds means something only beside a change of the control. And
# the question is whether the *change* leaves zero out, not whether the figure after does where the one before
# did not: among ten changes of 95 % each, two readers in five will meet one that leaves it out by chance, and
# one in twelve will meet two. A change that leaves zero out is worth a second set of pairs, not a conclusion.
#
# What such probes cannot show, in any case:
#
# - a small effect: twelve couples a kind show only large ones
# - how a model behaves when it is asked something: they read likelihoods, and no answers
# - how biased it is in all: somebody chose these stereotypes, and others would be as good
# - that one language is fairer than another: a couple has one stereotype in both, and other sentences

# %% [markdown]
# ## 7. Unstable training, provoked and cured
#
# "Training is unstable on some data sets" is a sentence that nobody can check. Three causes have
# names, and each can be had on purpose: a learning rate 学习率 that is too high, numbers that
# float16 cannot hold 溢出, and rows with nothing to learn from. We break a run in each way, and
# then mend it.
#
# First the rate. LoRA of rank 8, short Chinese batches, every run from the same weights over the
# same text. Batches differ in difficulty, so each loss is compared with that of the **untrained**
# model on the same batch: below zero the run has learnt.

# %%
recipe = load_recipe("smollm2-zh").replace(rank=8)
model, tokenizer = load_base("smollm2", dtype=weights_dtype(recipe))
steps, length = profile["unstable_steps"], profile["unstable_tokens"]
texts = load_corpus("peoples-daily").chinese_punctuation().split("train").take(80).texts()
blocks = pack(texts, tokenizer, length, tokens=steps * length)
batches = [torch.tensor([blocks.block_ids(n)]) for n in range(steps)]
adapted = add_lora(model, recipe)
settings = [
    Setting("0.002, the course's", 2e-3),
    Setting("0.01", 1e-2),
    Setting("0.01, clipped at 1", 1e-2, max_grad_norm=1.0),
    Setting("0.01, warm-up over half", 1e-2, warmup=steps // 2),
]
rows = sweep(adapted, batches, settings)
for row in verdicts(rows):
    print(row)

# %% [markdown]
# Three usual cures, and they do not do the same. A lower rate is a cure. Warm-up 预热 softens the
# first steps, where Adam has seen too few gradients to know their size; it helps a rate that is a
# little too high, and may only postpone the end of one that is far too high: so few steps at the
# whole rate do not tell. Clipping 梯度裁剪 does not bring the run back: Adam divides by the size of
# the gradients, so a gradient that is always scaled down gives the same step. Single spikes come
# out lower or higher, as it happens.

# %%
lines = {}
for setting in settings:
    shown = [row for row in rows if row["run"] == setting.name and row["above"] != ""]
    lines[setting.name] = [row["step"] for row in shown], [row["above"] for row in shown]
plots.plot_lines(
    lines,
    title=f"Runs that learn: {sum(v['verdict'] == 'learns' for v in verdicts(rows))} of {len(settings)}",
    xlabel="optimizer step",
    ylabel="nats per token above the untrained model",
    yscale="symlog",
)
plt.show()

# %% [markdown]
# *Alternative text:* four lines of loss above the untrained model over the steps, on a scale that is
# linear near zero. The course's rate stays below zero; the high rate leaves zero at once, with clipping
# as without; with warm-up it leaves later.
#
# What is clipping for, then? For **one** batch that pulls much harder than its neighbours. The
# third batch of the next two runs has its loss multiplied by 1,000. Adam takes no wild step: it
# remembers the square of that gradient, with β₂ = 0.999 for about 1/(1 − β₂) = 1,000 steps, and all
# others look small beside it. The run has gone deaf.

# %%
wild = [
    Setting("one wild batch", 2e-3),
    Setting("one wild batch, clipped at 1", 2e-3, max_grad_norm=1.0),
]
rows += sweep(adapted, batches, wild, loss_factors=[1.0, 1.0, 1000.0])
columns = ["run", "step", "rate", "loss", "above", "gradient", "note"]
results.save(
    "10_instability",
    [{column: row[column] for column in columns} for row in rows],
    seed=0,
    model=f"SmolLM2-135M-Instruct, {weights_dtype(recipe)}, LoRA rank 8, {length} tokens a step",
)
results.save("10_instability_verdicts", verdicts(rows), seed=0, model="SmolLM2-135M-Instruct")

# %% [markdown]
# **Exercise 10.4.** Every gradient of a run is multiplied by 1/50, which is what clipping at 1 does to
# gradients of length 50. SGD's steps become 50 times as short. By what factor are Adam's steps multiplied
# (leave its tiny ε aside)?

# %%
# NBVAL_CHECK_OUTPUT
factor_of_adam = ...
lab.check("10.4", factor_of_adam)

# %% tags=["solution"]
factor_of_adam = 1.0

# %% tags=["wrong-solution"]
factor_of_adam = 1 / 50

# %% tags=["wrong-solution"]
factor_of_adam = 50

# %% [markdown]
# ### What float16 cannot hold
#
# float16 ends at 65,504. bfloat16 has fewer digits, and the range of float32. How close does
# SmolLM2 come? In each layer we look for the largest value of the stream that layers pass on, and
# of the product inside the MLP.

# %%
wide, tokenizer = load_base("smollm2", dtype="float32")
ids = batches[0][:, :64]
activations = largest_activations(wide, ids)
results.save("10_largest_activations", activations, model="SmolLM2-135M-Instruct, float32")
most = max(activations, key=lambda row: row["residual"])
print(
    f"layer {most['layer']}, token {most['position']}: {most['residual']:,.0f}, "
    f"{most['of float16']:.0%} of what float16 holds; the median beside it is {most['typical']:.1f}"
)

# %% [markdown]
# One number of one token, and very far from its neighbours: such *massive activations* were found
# in many language models ([arXiv 2402.17762](https://arxiv.org/abs/2402.17762)), often on the
# first token. It still fits. To see an overflow we write the
# same function with larger numbers: one layer's `up_proj` times a power of two, its `down_proj`
# divided by it. In exact arithmetic nothing changes.

# %%
inside = max(activations, key=lambda row: row["inside"])
factor = 2.0
while inside["inside"] * factor < 1.5 * 65504:
    factor *= 2
kinds = (torch.bfloat16, torch.float16)
before = losses_by_dtype(wide, ids, kinds)
with widened(wide, inside["layer"], factor):
    after = losses_by_dtype(wide, ids, kinds)
print(f"layer {inside['layer']}, inner values × {factor:.0f}")
for kind in before:
    print(f"{kind:<9} loss {before[kind]:.3f} → {after[kind]:.3f}")
number = {kind: loss if loss == loss else "not a number" for kind, loss in after.items()}
overflow = [{"dtype": kind, "before": before[kind], "after": number[kind]} for kind in before]
results.save("10_float16_overflow", overflow, model="SmolLM2-135M-Instruct, one layer rescaled")
results.save("10_float16_pitfalls", pitfalls())

# %% [markdown]
# The cure is the other format, or float32. The table above holds four more traps of float16, one
# tensor each. Its third row is why mixed precision with float16 scales the loss: gradients below
# 6·10⁻⁸ are zero. How many is that at the head of this model?

# %%
with torch.no_grad():
    logits = wide(input_ids=ids, use_cache=False).logits[0, :-1]
underflow = gradient_underflow(logits, ids[0, 1:])
results.save("10_gradient_underflow", underflow, model="SmolLM2-135M-Instruct, float32")

# %% [markdown]
# Most entries vanish without scaling; they are the smallest, so that little of the sum is lost.
# `zero` counts them, `kept` weighs them: two figures for one fact, and a heading could be made of
# either.
#
# ### Rows with nothing to learn from
#
# Chapter 05 found rows without a single label, in data that were masked first and cut afterwards.
# Their mean loss is 0/0.

# %%
found = masked_rows(adapted, torch.cat([batches[0][:, :32], batches[1][:, :32]]))
results.save("10_masked_rows", found, seed=0, model="SmolLM2-135M-Instruct, LoRA rank 8")

# %%
results.save("10_masked_attention", masked_attention())

# %% [markdown]
# Read the first table by its last column. A mean written by hand sends 0/0 back into every weight,
# and the run is lost after one step. PyTorch's own mean is milder: the loss in the log is NaN, the
# gradient is not. A NaN on the validation curve, as in the report on the original, need not mean a
# broken model. Dividing by the labels of the **whole batch** has no such case, as long as the batch
# has one label; where it has none, this package's trainer stops before the step, and its data
# preparation refuses such rows by name.
#
# The second table is the same story in attention, for a query that may see no key. Note its third
# row: a very low number instead of −∞ gives no NaN, and a mean over everything that was to be
# hidden.

# %% [markdown]
# **Exercise 10.5.** A batch has two rows. One has 6 labels, whose losses add up to 12 nats; the other has
# none. Write `batch_loss(row_sums, row_labels)`: the mean loss per label over the whole batch, and 0.0 where
# no row has any label.

# %%
# NBVAL_CHECK_OUTPUT
batch_loss = ...
lab.check("10.5", batch_loss)


# %% tags=["solution"]
def batch_loss(row_sums, row_labels):
    labels = sum(row_labels)
    return sum(row_sums) / labels if labels else 0.0


# %% tags=["wrong-solution"]
def batch_loss(row_sums, row_labels):
    return sum(s / max(n, 1) for s, n in zip(row_sums, row_labels, strict=True)) / len(row_labels)


# %% tags=["wrong-solution"]
def batch_loss(row_sums, row_labels):
    means = [s / n for s, n in zip(row_sums, row_labels, strict=True) if n]
    return sum(means) / len(means) if means else 0.0


# %% [markdown]
# ## 8. When would you still adapt a Western model?
#
# The ledger does not say "never". It says what has to be true:
#
# - **The licence decides.** A native model's terms do not suit you, and the Western one's do (section 3).
# - **The base is much better at something else**, code or English say, and a few percent of its training in
#   Chinese are enough for your purpose; replay 回放 keeps the rest (chapter 04).
# - **You study adaptation itself.** Then the small, complete recipe of this course is the cheaper subject.
# - **Your language is not Chinese.** For a language without strong native models everything here applies as
#   it did to Chinese in 2023, and the vocabulary is the first thing to measure (chapter 01).
#
# If none of these holds, take a native model, and spend the GPU hours on instructions 指令 and evaluation. If
# one does: measure tokens per character before extending a vocabulary, keep English in the mix, start new
# rows from old ones, and publish intervals with the scores.

# %% [markdown]
# ## What we measured

# %%
results.load("10_tokenizers")

# %%
results.load("10_translationese").only("kind", "mark", "rate", "low", "high")

# %%
results.load("10_bias").only("model", "language", "kind", "pairs", "mean", "low", "high")

# %%
results.load("10_instability_verdicts")

# %% [markdown]
# ## What can go wrong
#
# - *Comparing scores of different splits, shots or groups.* Two groups differ by several points on one model.
# - *Quoting a secondary source.* One of the refuted scores is the same model's on another test, one is nearer
#   to a model of twice the size.
# - *Calling a difference of kinds translationese.* Compare instructions with instructions.
# - *Taking a bias score for a property of the model.* It is one of the model and of the chosen pairs.
# - *Raising the learning rate until it breaks, then clipping.* The run broke all the same; the rate was
#   wrong.

# %% [markdown]
# ## Where this came from
#
# - the recipe and its results: [Chinese-LLaMA-Alpaca](https://github.com/ymcui/Chinese-LLaMA-Alpaca), [arXiv
#   2304.08177](https://arxiv.org/abs/2304.08177); LLaMA: [arXiv 2302.13971](https://arxiv.org/abs/2302.13971)
# - grouped-query attention: [arXiv 2305.13245](https://arxiv.org/abs/2305.13245); SwiGLU: [arXiv
#   2002.05202](https://arxiv.org/abs/2002.05202)
# - minimal pairs: CrowS-Pairs, [arXiv 2010.00133](https://arxiv.org/abs/2010.00133), whose data is not used
#   here; objections to such sets: Blodgett et al., ACL 2021
# - scores, configs and licences: the sources named in `data/native_scores.csv`, `data/native_configs.json`
#   and `data/native_models.csv`, row by row
#
# **Next:** [11 Scaling up](11_scaling_up.ipynb) 扩大规模: the same functions on larger models and more text.
