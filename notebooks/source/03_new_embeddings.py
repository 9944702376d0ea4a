# %% [markdown]
# # New embeddings 新词向量
#
# **Where should the row of a new token start?**
#
# Chapter 02 gave SmolLM2's tokenizer new tokens. The model knows nothing of them: its embedding
# matrix 词嵌入矩阵 has one row for each old token, and no more. New rows have to be made, and until
# training moves them, whatever stands in them *is* the model's knowledge of Chinese. This
# chapter measures five ways to begin, before any training.

# %% [markdown]
# ## What you will be able to do
#
# - **resize** a model to a longer vocabulary, and **check** that model and tokenizer still
#   belong together
# - **start** new rows in five ways, one of them by hand
# - **measure** in bits per character 每字符比特数, which is comparable across tokenizers
# - **explain** why English can get worse although none of its rows changed
# - **say** what tied embeddings 共享词嵌入 change

# %% [markdown]
# Time and memory of this chapter, measured when it was last built. It downloads nothing new.

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("03")

# %%
import copy

import torch
from matplotlib import pyplot as plt

import chinese_llama_lab as lab
from chinese_llama_lab import plots, results
from chinese_llama_lab.errors import LabError
from chinese_llama_lab.profiles import current_profile
from chinese_llama_lab.sources.corpora import glosses, load_corpus
from chinese_llama_lab.sources.models import load_base
from chinese_llama_lab.training.metrics import bits_per_character
from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
from chinese_llama_lab.vocabulary.byte_level import bytes_of
from chinese_llama_lab.vocabulary.consistency import check_consistency
from chinese_llama_lab.vocabulary.embeddings import STRATEGIES, extend_embeddings, norm_summary, row_norms

session = lab.setup(seed=0, chapter="03", torch=True)
profile = current_profile()

# %% [markdown]
# ## 1. What resizing does, and what it does not

# %%
model, tokenizer = load_base("smollm2")
limit = profile["training_documents"]
news = load_corpus("peoples-daily").split("train").take(limit).texts()
many = continue_bpe(tokenizer, news, profile["many_new_tokens"])
few = many.first(profile["few_new_tokens"])
sentence = "中国的经济发展"
print(len(tokenizer(sentence)["input_ids"]), "tokens before,", end=" ")
print(len(many.tokenizer(sentence)["input_ids"]), f"after {len(many):,} new tokens")
print(f"rows of the embedding: {model.get_input_embeddings().weight.shape[0]:,}")
print(f"largest id now:        {max(many.tokenizer(sentence)['input_ids']):,}")

# %% [markdown]
# The new ids point beyond the matrix. PyTorch would raise an error here, on some devices a
# cryptic one. Worse is the case where it does *not*: a matrix with a row too many or too few
# goes unnoticed. The published models are such a trap: the pre-trained one has 49,953 rows, the
# instruction-tuned one 49,954, because a padding token was added in between, and many people
# loaded the one with the tokenizer of the other. So the package checks, before every later
# step:

# %%
try:
    check_consistency(model, few.tokenizer)
except LabError as error:
    print(error.what)

# %%
rows_before = model.get_input_embeddings().weight.detach().clone()
trial = copy.deepcopy(model)
report = extend_embeddings(trial, tokenizer, few.tokenizer)
print(report)
check_consistency(trial, few.tokenizer)
assert torch.equal(trial.get_input_embeddings().weight[: len(rows_before)], rows_before)
print("old rows are bit-identical; config, head, padding and tokenizer agree")

# %% [markdown]
# ## 2. Five ways to begin
#
# - **random** 随机: a normal distribution with the spread of the old rows
# - **mean** 均值: the mean of all old rows, the same for every new one
# - **subtoken-mean** 子词均值: the mean of the rows of the old tokens that the new token used to be
# - **position-weighted** 位置加权: the same, with more weight on the first of them
# - **gloss** 释义: the mean of the tokens of an English translation, from the dictionary
#   CC-CEDICT, where there is one
#
# The third by hand, for the last of the new tokens. The old tokenizer spells it in pieces:

# %%
token = bytes_of(few.tokens[-1]).decode("utf-8")
old_ids = tokenizer(token, add_special_tokens=False)["input_ids"]
by_hand = rows_before[old_ids].mean(dim=0)
new_id = len(rows_before) + len(few) - 1
row = trial.get_input_embeddings().weight[new_id]
print(f"{token!r} was {len(old_ids)} tokens, {old_ids}, and is now {new_id}")
assert few.tokenizer(token, add_special_tokens=False)["input_ids"] == [new_id]
assert torch.allclose(row, by_hand, atol=1e-6)

# %% [markdown]
# Some new tokens end inside a character: two bytes of three. They are spelled by the merges
# that made them, so they need no exception.
#
# **Exercise 3.1.** Write `position_weights(n)`: the weights of `n` subtokens, proportional to
# n, n − 1, …, 1, and adding up to one.

# %%
# NBVAL_CHECK_OUTPUT
position_weights = ...
lab.check("3.1", position_weights)


# %% tags=["solution"]
def position_weights(n):
    return [2 * (n - place) / (n * (n + 1)) for place in range(n)]


# %% tags=["wrong-solution"]
def position_weights(n):
    return list(range(n, 0, -1))


# %% tags=["wrong-solution"]
def position_weights(n):
    return [2 * (place + 1) / (n * (n + 1)) for place in range(n)]


# %% [markdown]
# ## 3. A fair measure: bits per character
#
# *Perplexity* 困惑度 is a figure per token. After the vocabulary has changed, a token is something
# else, and the two figures cannot be compared. So we add up what the whole text costs the
# model, the sum of −log₂ p over all tokens, and divide by its **characters**, which no
# tokenizer can change:
#
# $$\text{bits per character} = \frac{1}{\text{characters}} \sum_{t} -\log_2 p(t \mid \text{before } t)$$
#
# The first token needs something before it too. For LLaMA that is BOS. The BOS of SmolLM2-Instruct
# opens a turn of a conversation, and a text behind it surprises the model for no fault of its own;
# so here each text stands behind the end of a line.


# %%
def bits_by_hand(model, tokenizer, text, start):
    """Bits per character of one short text behind one token."""
    before, ids = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (start, text))
    assert len(before) == 1
    ids = torch.tensor([before + ids])
    with torch.inference_mode():
        log_p = model(ids).logits[0, :-1].log_softmax(dim=-1)
    nats = -log_p.gather(1, ids[0, 1:, None]).sum()
    return float(nats) / torch.log(torch.tensor(2.0)).item() / len(text)


example = "今天天气很好，我们去公园散步。"
package = bits_per_character(model, tokenizer, [example], start="\n")
assert abs(bits_by_hand(model, tokenizer, example, "\n") - package.bits_per_character) < 1e-3
print(f"{package.bits_per_character:.2f} bits per character, perplexity {package.perplexity:.1f} per token")
print(f"{bits_by_hand(model, tokenizer, example, tokenizer.bos_token):.2f} bits per character behind BOS")

# %% [markdown]
# ## 4. The measurement
#
# Five starts, two vocabulary sizes, held-out Chinese and English, no training at all.

# %%
from tqdm.auto import tqdm


def take_characters(corpus, characters):
    """Whole held-out documents until there are enough characters, each cut to a window."""
    chosen, count = [], 0
    for document in load_corpus(corpus).split("held-out"):
        chosen.append(document.text[:400])
        count += len(chosen[-1])
        if count >= characters:
            break
    return chosen


texts = {
    "Chinese": take_characters("peoples-daily", profile["scored_characters"]),
    "English": take_characters("c4-en", profile["scored_characters"]),
}

# %%
dictionary = {word: entries[0] for word, entries in glosses().items()}
rows, norms = [], {}
for language, sample in texts.items():
    value = bits_per_character(model, tokenizer, sample, start="\n").bits_per_character
    rows.append(
        {
            "new tokens": 0,
            "strategy": "as it came",
            "language": language,
            "bits per character": round(value, 4),
        }
    )

# %%
trials = [(result, strategy) for result in (few, many) for strategy in STRATEGIES]
for result, strategy in tqdm(trials):
    trial = copy.deepcopy(model)
    extend_embeddings(trial, tokenizer, result.tokenizer, strategy, seed=0, glosses=dictionary)
    for language, sample in texts.items():
        scored = bits_per_character(trial, result.tokenizer, sample, start="\n")
        rows.append(
            {
                "new tokens": len(result),
                "strategy": strategy,
                "language": language,
                "bits per character": round(scored.bits_per_character, 4),
            }
        )
    norms[len(result), strategy] = row_norms(trial)[len(rows_before) :]
norms[0, "old rows"] = row_norms(model)
lengths = [{"new tokens": n, "rows": s, **norm_summary(values)} for (n, s), values in norms.items()]
results.save("03_row_norms", lengths, seed=0, model="SmolLM2-135M-Instruct")
results.save("03_starting_rows", rows, seed=0, model="SmolLM2-135M-Instruct, float32")


# %%
def bits(size, strategy, language):
    """One figure of the table."""
    wanted = (size, strategy, language)
    return next(
        r["bits per character"] for r in rows if (r["new tokens"], r["strategy"], r["language"]) == wanted
    )


panels = {
    language: {
        strategy: {
            f"+{len(result):,} tokens": bits(len(result), strategy, language) for result in (few, many)
        }
        for strategy in STRATEGIES
    }
    for language in texts
}

# %%
before = {language: bits(0, "as it came", language) for language in texts}
best = min(STRATEGIES, key=lambda strategy: bits(len(many), strategy, "Chinese"))
plots.plot_bar_panels(
    panels,
    title=f"Before any training, {best} is the best start",
    xlabel="bits per character",
    references=before,
)
plt.show()

# %% [markdown]
# *Alternative text:* two panels of horizontal bars, Chinese on the left and English on the
# right, one group for each of the five strategies, one bar for each vocabulary size; a dashed
# line marks the model before extension.

# %%
print(f"before: {before['Chinese']:.2f} bits per character of Chinese")
for strategy in STRATEGIES:
    after = [
        f"{bits(len(result), strategy, 'Chinese'):.2f} (+{len(result):,} tokens)" for result in (few, many)
    ]
    print(f"{strategy:<18} {', '.join(after)}")

# %% [markdown]
# Read three things. **Extension alone makes nothing better.** The model was trained to write a
# character in pieces, and now the pieces are gone: a start can only limit the damage, and
# training has to make it good. **The start matters**, by more than most settings that people
# tune. And **more new tokens need not be worse than few**: text has fewer tokens then, each a
# longer step, and what a model cannot do it has to do less often.
#
# ## 5. Why does English change at all?
#
# Not one English token was touched. But a probability is a share: the *softmax* divides among
# **all** rows of the head, and the new ones take part. Whatever they take, the others lose. How
# much do they take, on English text?


# %%
def look_at_new_rows(trial, tokenizer, text, old_rows):
    """Over the positions of a text: what new tokens take, how often one leads, and the spread."""
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][:200]])
    with torch.inference_mode():
        logits = trial(ids).logits[0]
    share = logits.softmax(dim=-1)[:, old_rows:].sum(dim=-1).mean()
    first = (logits.argmax(dim=-1) >= old_rows).float().mean()
    old, new = logits[:, :old_rows].std(dim=-1).mean(), logits[:, old_rows:].std(dim=-1).mean()
    names = ("probability taken", "a new token is first", "spread of old logits", "spread of new logits")
    return {name: f"{float(value):.4f}" for name, value in zip(names, (share, first, old, new), strict=True)}


# %%
looks = []
english = " ".join(texts["English"])
for strategy in STRATEGIES:
    trial = copy.deepcopy(model)
    extend_embeddings(trial, tokenizer, many.tokenizer, strategy, seed=0, glosses=dictionary)
    look = look_at_new_rows(trial, many.tokenizer, english, len(rows_before))
    norm = norms[len(many), strategy]
    looks.append({"strategy": strategy, **look, "mean norm of a row": f"{float(norm.mean()):.3f}"})
results.save("03_new_rows_on_english", looks, seed=0, model="SmolLM2-135M-Instruct, float32")

# %%
shown = {"old rows": norms[0, "old rows"]} | {s: norms[len(many), s] for s in STRATEGIES if s != "mean"}
plots.plot_distributions(
    {name: values.tolist() for name, values in shown.items()},
    title="An average is shorter than what it averages",
    xlabel="length (Euclidean norm) of a row; the dashed line is the mean of all old rows",
    reference=float(norms[len(many), "mean"].mean()),
)
plt.show()

# %% [markdown]
# *Alternative text:* histogram lines of row lengths. The old rows spread widely; averages of
# subtokens and of glosses are shorter than most of them; random rows lie in one narrow peak; a
# dashed line marks the mean of all rows.
#
# Averages are shorter than what they average, because what does not agree cancels; what all
# rows share stays. A random row is as long as an old one but points anywhere. Its logit is then
# a draw from a bell curve as wide as the hidden state is long (compare the spreads), and among
# thousands of draws some are high by luck, at every position. Averages lie among the old rows,
# where the model has learnt to keep unwanted tokens down. Glosses are averages too, but of
# English words: on English text they are plausible, which is just what they should not be here.
#
# **Exercise 3.2.** New tokens take a share *s* of the probability at every position, and all
# old tokens shrink in proportion. By how many bits **per token** does old text get dearer?
# Write `bits_lost(s)`.

# %%
# NBVAL_CHECK_OUTPUT
bits_lost = ...
lab.check("3.2", bits_lost)

# %% tags=["solution"]
from math import log2


def bits_lost(s):
    return -log2(1 - s)


# %% tags=["wrong-solution"]
def bits_lost(s):
    return -log2(s)


# %% tags=["wrong-solution"]
def bits_lost(s):
    return log2(1 - s)


# %% [markdown]
# ## 6. What tied embeddings change
#
# SmolLM2 uses one matrix twice: a token's row is what it means when it is read, and what the
# model must point to in order to write it. LLaMA-7B has two matrices, and each needs new rows.
# Untied, the two can start differently:

# %%
print("one matrix:", model.get_input_embeddings().weight is model.get_output_embeddings().weight)
untied = copy.deepcopy(model)
untied.config.tie_word_embeddings = False
untied.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())

# %%
trials = {}
for name, head in (("both from subtokens", "subtoken-mean"), ("head from the mean", "mean")):
    trial = copy.deepcopy(untied)
    extend_embeddings(trial, tokenizer, few.tokenizer, "subtoken-mean")
    if head == "mean":
        with torch.no_grad():
            trial.lm_head.weight[len(rows_before) :] = rows_before.mean(dim=0)
    trials[name] = {
        language: round(scored.bits_per_character, 3)
        for language, sample in texts.items()
        for scored in [bits_per_character(trial, few.tokenizer, sample, start="\n")]
    }
tied = {
    r["language"]: r["bits per character"]
    for r in rows
    if (r["new tokens"], r["strategy"]) == (len(few), "subtoken-mean")
}
results.save("03_tied", [{"start": n, **t} for n, t in [("tied", tied), *trials.items()]], seed=0)

# %% [markdown]
# With two matrices that begin as copies, starting both from subtokens is the tied model again.
# Starting the head from the mean asks the model to *write* tokens that all look alike.
#
# **Exercise 3.3.** Rows are often padded to a multiple, because graphics processors like round
# numbers. The published merge has 49,953 tokens. How many **spare** rows does padding to a
# multiple of 64 add?

# %%
# NBVAL_CHECK_OUTPUT
spare_rows = ...
lab.check("3.3", spare_rows)

# %% tags=["solution"]
spare_rows = -49_953 % 64

# %% tags=["wrong-solution"]
spare_rows = 49_953 % 64

# %% tags=["wrong-solution"]
spare_rows = 49_984

# %% [markdown]
# ## What we measured

# %%
results.load("03_starting_rows")

# %%
results.load("03_row_norms")

# %%
results.load("03_new_rows_on_english")

# %%
results.load("03_tied")

# %% [markdown]
# ## What can go wrong
#
# - *Comparing perplexity across vocabularies.* It is a figure per token. Use bits per
#   character.
# - *Judging a start by Chinese alone.* A start that throws probability at the new rows hurts
#   English from the first step.
# - *Resizing without the tokenizer.* Run `check_consistency` after every load. It knows about
#   rows that were padded on purpose.
# - *Believing that a good start replaces training.* Look at the dashed lines again. Chapter 04
#   trains.
# - *A small sample.* The order of near neighbours may change with other text; the large gaps do
#   not.
#
# ## Where this came from
#
# - mean of subtokens: [arXiv 2406.11477](https://arxiv.org/abs/2406.11477), [arXiv
#   2406.14670](https://arxiv.org/abs/2406.14670)
# - FOCUS, [arXiv 2305.14481](https://arxiv.org/abs/2305.14481); WECHSEL, [arXiv
#   2112.06598](https://arxiv.org/abs/2112.06598); OFA, [arXiv
#   2311.08849](https://arxiv.org/abs/2311.08849): richer starts from other embeddings
# - convex hulls: [arXiv 2407.05841](https://arxiv.org/abs/2407.05841)
# - CC-CEDICT, a community dictionary, CC-BY-SA-4.0
#
# **Next:** [04 LoRA pre-training](04_lora_pretraining.ipynb) 继续预训练: now the rows, and a few of the
# weights, begin to move.
