# %% [markdown]
# # Vocabulary merging 词表合并
#
# **What breaks when two vocabularies are merged, and how is it done right?**
#
# If LLaMA's vocabulary 词表 is the problem, add Chinese tokens to it. In 2023 this was done with
# a script of a few dozen lines, and thousands of models carry the result. It works, and it has
# faults that nobody sees who only counts tokens. In this chapter you build the merge, find the
# faults like a detective, and repair them. Then you do the same for the other kind of
# tokenizer, which most models have today.

# %% [markdown]
# ## What you will be able to do
#
# - **train** a Chinese SentencePiece vocabulary and merge it into LLaMA's, exactly as it was
#   published
# - **find** every token that a tokenizer can never produce, and say why
# - **repair** the merge, and **prove** that English, code and digits keep their tokens
# - **continue** the training of a byte-level BPE tokenizer from the merges it has
# - **decide** where to stop, from the gain and the price of each thousand tokens

# %% [markdown]
# Time and memory of this chapter, measured when it was last built. It downloads nothing new.

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("02")

# %%
import json
import tempfile
from itertools import pairwise
from pathlib import Path

from matplotlib import pyplot as plt

import chinese_llama_lab as lab
from chinese_llama_lab import plots, results
from chinese_llama_lab.profiles import current_profile
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.tokenization.fast import FastTokenizer
from chinese_llama_lab.tokenization.fertility import compare
from chinese_llama_lab.tokenization.registry import converted_gguf, open_tokenizer
from chinese_llama_lab.tokenization.sentencepiece_model import SentencePieceTokenizer

session = lab.setup(seed=0, chapter="02")
profile = current_profile()

# %% [markdown]
# ## 1. A Chinese vocabulary, trained live
#
# The text is news, reviews and modern prose; what we will measure on is held out 留出.
# SentencePiece's *unigram* model starts from many candidate pieces and removes, round by round,
# those whose loss hurts least. The published project used it with the settings that are our
# defaults.

# %%
from chinese_llama_lab.vocabulary.sp_train import train_sentencepiece

names = ("peoples-daily", "reviews", "modern")
limit = profile["training_documents"]
training = [text for name in names for text in load_corpus(name).split("train").take(limit).texts()]
held_out = load_corpus("peoples-daily").split("held-out").take(profile["documents_per_corpus"]).texts()
chinese = train_sentencepiece(training, vocab_size=profile["sp_vocabulary"])
pieces = [piece.piece for piece in chinese.model.pieces]
print(f"{sum(map(len, training)):,} characters of training text, {len(chinese):,} pieces")
print("frequent:", " ".join(pieces[10:40]))
print("longest: ", " ".join(sorted(pieces, key=len)[-6:]))

# %% [markdown]
# ## 2. The merge, as it was published
#
# Take LLaMA's pieces in order. Append every piece of the Chinese model that LLaMA lacks. Give
# each the score 0. That is the whole method:


# %%
from sentencepiece import sentencepiece_model_pb2 as pb2

from chinese_llama_lab.vocabulary.merge import merge

llama_file = converted_gguf("llama")


def merge_by_hand(base_bytes, extra_bytes):
    """The published method, on serialised models."""
    base, extra = pb2.ModelProto(), pb2.ModelProto()
    base.ParseFromString(base_bytes)
    extra.ParseFromString(extra_bytes)
    have = {piece.piece for piece in base.pieces}
    for piece in extra.pieces:
        if piece.piece not in have:
            base.pieces.add(piece=piece.piece, score=0.0)
    return base.SerializeToString()


llama_bytes, chinese_bytes = llama_file.read_bytes(), chinese.model.SerializeToString()
published = merge(llama_bytes, chinese_bytes, policy="published")
assert merge_by_hand(llama_bytes, chinese_bytes) == published.model.SerializeToString()
print(published.summary())

# %% [markdown]
# The authors' own Chinese model had 20,000 pieces, and with it this method gives the famous
# 49,953: our tests hold their files against this very function, to the last byte. Does it help?

# %%
llama = open_tokenizer("llama")
merged = SentencePieceTokenizer("published merge", published.model.SerializeToString())
for result in compare([llama, merged], held_out, text_name="held-out news", coverage=False):
    print(result)

# %% [markdown]
# It does: Chinese costs less than half of what it cost. This is the figure that was reported,
# and here most stories end.
#
# **Exercise 2.1.** Write `merged_size(base, extra)`: the size of the merged vocabulary, from
# two lists of pieces. (An extra model can hold pieces that the base has. Could it hold one
# twice?)

# %%
# NBVAL_CHECK_OUTPUT
merged_size = ...
lab.check("2.1", merged_size)


# %% tags=["solution"]
def merged_size(base, extra):
    return len(base) + len(set(extra) - set(base))


# %% tags=["wrong-solution"]
def merged_size(base, extra):
    return len(base) + len(extra)


# %% tags=["wrong-solution"]
def merged_size(base, extra):
    return len(base) + len([piece for piece in extra if piece not in base])


# %% [markdown]
# ## 3. A detective story
#
# **The first clue.** Four pieces of the authors' Chinese model are enough to see it: `eo`,
# `10`, `▁10` and 越来越 ("more and more"). The mark `▁` stands for a space.

# %%
# NBVAL_CHECK_OUTPUT
from chinese_llama_lab.tokenization.view import view

three = pb2.ModelProto()
three.CopyFrom(chinese.model)
del three.pieces[3:]  # keep unknown, beginning and end
for piece in ("eo", "10", "▁10", "越来越"):
    three.pieces.add(piece=piece, score=-10.0)
broken_model = merge(llama_bytes, three.SerializeToString(), policy="published").model
broken = SentencePieceTokenizer("LLaMA + 4", broken_model.SerializeToString())
clue = "people spent 100 days; 越来越多"
view(clue, [llama, broken])

# %% [markdown]
# Three things happened, and none of them was wanted. `people`, one token of LLaMA's, fell
# apart. The number lost LLaMA's rule that each digit is a token. And 越来越, which was added on
# purpose, did not appear. Why?
#
# **The rule.** BPE 字节对编码 begins with single characters. At each step it looks at all neighbours
# that would join to a piece of the vocabulary, and joins the pair whose piece has the **highest
# score**. LLaMA's scores are 0, −1, −2, … in the order in which its merges were learnt. A new
# piece with score 0 beats nearly all of them.

# %%
# NBVAL_CHECK_OUTPUT
from chinese_llama_lab.vocabulary.bpe import merge_steps

scores = {piece.piece: piece.score for piece in broken_model.pieces if piece.type == 1}
for word in ("▁people", "越来越"):
    symbols, steps = merge_steps(list(word), scores)
    for step in steps:
        joined = step.left + step.right
        print(f"{step.left} + {step.right} → {joined}   score {scores[joined]:g}")
    print(word, "becomes", " | ".join(symbols), "\n")

# %% [markdown]
# `eo` is joined first, and from then on no pair leads to `▁people` any more. For 越来越 there is
# no first step at all: BPE joins **two** pieces at a time, and neither 越来 nor 来越 is a piece. In
# a unigram model, where 越来越 came from, a piece needs no steps; in a BPE model it does.
#
# **Exercise 2.2.** Write `bpe(symbols, scores)`: join until nothing joins. `symbols` is a list
# of strings, `scores` a dict. Among equal scores the leftmost pair goes first. Return the list
# of strings.

# %%
# NBVAL_CHECK_OUTPUT
bpe = ...
lab.check("2.2", bpe)


# %% tags=["solution"]


def bpe(symbols, scores):
    symbols = list(symbols)
    while True:
        pairs = [
            (-scores[left + right], place)
            for place, (left, right) in enumerate(pairwise(symbols))
            if left + right in scores
        ]
        if not pairs:
            return symbols
        place = min(pairs)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


# %% tags=["wrong-solution"]
def bpe(symbols, scores):
    symbols = list(symbols)
    place = 0
    while place < len(symbols) - 1:  # joins from left to right, whatever the scores say
        if symbols[place] + symbols[place + 1] in scores:
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        else:
            place += 1
    return symbols


# %% [markdown]
# **The suspects, all of them.** A piece is *reachable* 可达 if some text is encoded with it. For
# BPE there is a short test: encode the piece alone. The package runs it for the whole
# vocabulary and says for each loser what beat it.

# %%
from chinese_llama_lab.vocabulary.reachability import reachability

judged = reachability(published.model)
lost = [verdict for verdict in judged.unreachable() if verdict.index < published.base_size]
never = [verdict for verdict in judged.unreachable() if verdict.index >= published.base_size]
print(f"{len(judged):,} pieces: {len(lost)} of LLaMA's own are lost, {len(never)} new ones never appear\n")
for verdict in (lost[:: max(1, len(lost) // 5)])[:5] + (never[:: max(1, len(never) // 5)])[:5]:
    print(verdict)

# %% [markdown]
# A lost piece is worse than a useless one. The model has read `▁people` billions of times; its
# new spelling it has hardly ever seen. English gets worse, and no Chinese benchmark shows it.
#
# **The second clue.** The serialised model is not what most people run: they convert it to a
# *fast* tokenizer, whose merges are an ordered list. A list has no ties, and all new scores are
# tied. Do the two agree?

# %%
english = load_corpus("wikipedia-en").texts()
lines = held_out[:1500] + [line for text in english for line in text.split(". ")][:1500]
folder = Path(tempfile.mkdtemp())
print(f"{len(lines):,} lines, from {lines[0][:12]!r} to {lines[-1][:20]!r}")


# %%
from transformers import AutoTokenizer

from chinese_llama_lab.vocabulary.save import save_tokenizer


def disagreements(fast, model):
    """Lines on which a fast tokenizer and SentencePiece give different ids."""
    slow = SentencePieceTokenizer("SentencePiece", model.SerializeToString())
    ids = fast(lines, add_special_tokens=False)["input_ids"]
    return sum(a != b for a, b in zip(ids, slow.encode_batch(lines), strict=True))


def converted_by_transformers(model, name):
    """The conversion that everybody gets who puts the .model file into a folder."""
    (folder / name).mkdir()
    (folder / name / "tokenizer.model").write_bytes(model.SerializeToString())
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True}
    (folder / name / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(folder / name)


published_differences = disagreements(
    converted_by_transformers(published.model, "published"), published.model
)
print(f"{published_differences} of {len(lines):,} lines differ")

# %% [markdown]
# A model trained with one and served with the other reads text that it has never seen spelled
# like this.
#
# ## 4. The repair
#
# The faults name their cures:
#
# 1. *New pieces must not take part before the old ones are done.* Give each a score **below** every old
#    one. Then BPE first runs exactly as LLaMA's would, and goes on from there.
# 2. *Text without Chinese must not change at all.* Add pieces of Chinese characters only.
# 3. *Every new piece needs its steps.* Add what is missing on the way (越来 for 越来越), or leave the
#    word out.
# 4. *No ties.* Distinct scores, in the order in which BPE itself would have learnt them.
# 5. *Reserve the padding token from the start*, so that no second size is ever born.

# %%
repaired = merge(llama_bytes, chinese_bytes)  # policy="repaired" is the default
print(repaired.summary())
print("completed, for example:", " ".join(repaired.completed[:12]))
still_lost = reachability(repaired.model).unreachable()
print(f"unreachable pieces: {len(still_lost)}")
fixed = SentencePieceTokenizer("repaired merge", repaired.model.SerializeToString())

# %% [markdown]
# Now the proof, promise by promise. Old tokens on English, code and digits; the fast tokenizer;
# and what it costs in Chinese:

# %%
import inspect

from chinese_llama_lab.vocabulary import merge as merge_module
from chinese_llama_lab.vocabulary.han import has_han

code = inspect.getsource(merge_module).split("\n")
digits = [str(number) for number in range(0, 100_000, 997)]
for texts in (english, code, digits, load_corpus("c4-en").take(100).texts()):
    old = [line for text in texts for line in text.split("\n") if not has_han(line)]
    assert fixed.encode_batch(old) == llama.encode_batch(old)

save_tokenizer(repaired, folder / "repaired")
repaired_differences = disagreements(AutoTokenizer.from_pretrained(folder / "repaired"), repaired.model)
assert repaired_differences == 0
measured = compare([llama, merged, fixed], held_out, text_name="held-out news", coverage=False)
for result in measured:
    print(result)
ratio = measured[2].tokens / measured[1].tokens
print(f"the repaired merge needs {ratio:.4f} times the tokens of the published one")

# %%
rows = [
    ("pieces", len(published.model.pieces), len(repaired.model.pieces)),
    ("LLaMA's pieces lost", len(lost), sum(v.index < repaired.base_size for v in still_lost)),
    ("new pieces that never appear", len(never), sum(v.index >= repaired.base_size for v in still_lost)),
    ("lines where fast and SentencePiece differ", published_differences, repaired_differences),
    (
        "tokens per character",
        f"{measured[1].tokens_per_character:.4f}",
        f"{measured[2].tokens_per_character:.4f}",
    ),
]
results.save("02_merge", [{"what": a, "published": str(b), "repaired": str(c)} for a, b, c in rows], seed=0)

# %% [markdown]
# **Exercise 2.3.** Write `has_merge_path(word, pieces)`: can `word` be built by joining two
# strings at a time, if every result of a join must be in `pieces`? Single characters are always
# there. (Think of the last join.)

# %%
# NBVAL_CHECK_OUTPUT
has_merge_path = ...
lab.check("2.3", has_merge_path)


# %% tags=["solution"]
def has_merge_path(word, pieces):
    if len(word) == 1:
        return True
    return word in pieces and any(
        has_merge_path(word[:cut], pieces) and has_merge_path(word[cut:], pieces)
        for cut in range(1, len(word))
    )


# %% tags=["wrong-solution"]
def has_merge_path(word, pieces):
    return word in pieces


# %% tags=["wrong-solution"]
def has_merge_path(word, pieces):  # looks one step deep
    halves = [(word[:cut], word[cut:]) for cut in range(1, len(word))]
    known = [all(len(half) == 1 or half in pieces for half in pair) for pair in halves]
    return len(word) == 1 or (word in pieces and any(known))


# %% tags=["wrong-solution"]
def has_merge_path(word, pieces):  # only ever adds one character on the right
    return len(word) == 1 or (word in pieces and has_merge_path(word[:-1], pieces))


# %% [markdown]
# ## 5. The other family: continuing byte-level BPE
#
# SmolLM2, Llama-3 and Qwen have no SentencePiece model to merge. Their tokenizer is a list of
# merges over bytes, and there is a better way than merging: **go on training** from the last
# merge. The rule is BPE's own: the most frequent pair of neighbours becomes the next token. Two
# conditions keep old text as it was: pairs are learnt inside runs of Chinese characters only,
# and a pair of bytes that may also occur in other scripts is never joined.


# %%
from chinese_llama_lab.vocabulary.bpe_continue import admissible, continue_bpe, han_token_runs

smollm2 = open_tokenizer("smollm2").tokenizer


def join(run, left, right, new):
    """A run in which each `left, right` has become `new`, from left to right."""
    out = []
    for token in run:
        out = [*out[:-1], new] if out and (out[-1], token) == (left, right) else [*out, token]
    return tuple(out)


# %%
def continue_by_hand(runs, spelling, wanted):
    """The most frequent admissible pair, again and again; among equals the smaller ids first."""
    merges, runs, next_id = [], dict(runs), max(spelling) + 1
    while len(merges) < wanted:
        counts = {}
        for run, times in runs.items():
            for pair in pairwise(run):
                counts[pair] = counts.get(pair, 0) + times
        allowed = [p for p in counts if admissible(spelling[p[0]], spelling[p[1]])]
        left, right = min(allowed, key=lambda pair: (-counts[pair], pair))
        spelling[next_id] = spelling[left] + spelling[right]
        merges.append((spelling[left], spelling[right]))
        runs = {join(run, left, right, next_id): times for run, times in runs.items()}
        next_id += 1
    return merges


# %%
few = held_out[:50]
spelling = {index: token for token, index in smollm2.get_vocab().items()}
by_hand = continue_by_hand(han_token_runs(smollm2, few), spelling, wanted=30)
assert tuple(by_hand) == continue_bpe(smollm2, few, 30).merges
from chinese_llama_lab.vocabulary.byte_level import bytes_of, text_of


def readable(token):
    """A token's text, or its bytes where it is no whole character."""
    return text_of(token) or f"‹{bytes_of(token).hex(' ').upper()}›"


print(" ".join(readable(left + right) for left, right in by_hand))

# %% [markdown]
# The first merges repair characters that were cut into bytes; whole words come later. The
# package keeps an index of where each pair stands, so that a merge costs only what it changes.
# The whole corpus:

# %%
news = load_corpus("peoples-daily").split("train").take(limit).texts()
continued = continue_bpe(smollm2, news, profile["bpe_new_tokens"])
print(f"{len(continued):,} new tokens {continued.message}")
shown = [readable(token) for token in continued.tokens]
print("first: ", " ".join(shown[:20]))
print("last:  ", " ".join(shown[-12:]))
longer = FastTokenizer("SmolLM2, continued", continued.tokenizer)
old = [line for text in english for line in text.split(". ") if not has_han(line)]
assert longer.encode_batch(old) == open_tokenizer("smollm2").encode_batch(old)
print("English keeps every id")

# %% [markdown]
# ## 6. Where would you stop?
#
# New tokens are learnt in order of use, so a vocabulary of any smaller size is the beginning of
# a larger one. Each thousand buys less than the one before, and each costs the same: a row of
# the embedding matrix 词嵌入 for each token and, unless the two are *tied* 共享, one of the output
# head.

# %%
most = len(continued)
sizes = [0, *sorted({most // 20, most // 10, most // 5, most * 2 // 5, most * 3 // 5, most * 4 // 5, most})]
variants = [FastTokenizer(f"+{size}", continued.first(size).tokenizer) for size in sizes]
curve = [r.tokens_per_character for r in compare(variants, held_out, reference=None, coverage=False)]
widths = {"135M": (576, 1), "7B": (4096, 2), "13B": (5120, 2)}
rows = []
for place, (size, value) in enumerate(zip(sizes, curve, strict=True)):
    step = (size - sizes[place - 1]) / 1000 if place else 0
    row = {"new tokens": size, "tokens per character": round(value, 4)}
    row["gain per thousand"] = round((curve[place - 1] - value) / step, 4) if place else 0.0
    for name, (width, matrices) in widths.items():
        row[f"new parameters, {name}"] = size * width * matrices
    rows.append(row)
results.save("02_where_to_stop", rows, seed=0, model="SmolLM2's tokenizer")

# %%
native = {
    r.tokenizer: r.tokens_per_character
    for r in compare(["llama-3", "qwen", "deepseek-v4"], held_out, reference=None, coverage=False)
}
lines_shown = {"SmolLM2, continued": (sizes, curve)}
lines_shown |= {name: ([0, most], [value, value]) for name, value in native.items()}
half = next(size for size, value in zip(sizes, curve, strict=True) if value <= (curve[0] + curve[-1]) / 2)
plots.plot_lines(
    lines_shown,
    title=f"Half of what {most:,} tokens gain is gained by the first {half:,}",
    xlabel="new tokens",
    ylabel="tokens per character, held-out news",
    ylim=(0, None),
)
plt.show()

# %% [markdown]
# *Alternative text:* line plot of tokens per character against the number of new tokens. The
# curve of the continued SmolLM2 tokenizer falls steeply at first and then ever more slowly;
# three horizontal lines show Llama-3, Qwen and DeepSeek-V4, which were never extended.
#
# **Exercise 2.4.** The published merge added the difference between the two row counts that the
# table of [chapter 00](00_start_here.ipynb) names. How many parameters did that add to
# LLaMA-13B, whose hidden size is 5,120 and whose embedding and head are not tied?

# %%
# NBVAL_CHECK_OUTPUT
new_parameters = ...
lab.check("2.4", new_parameters)

# %% tags=["solution"]
new_parameters = (49_953 - 32_000) * 5120 * 2

# %% tags=["wrong-solution"]
new_parameters = (49_953 - 32_000) * 5120

# %% tags=["wrong-solution"]
new_parameters = 49_953 * 5120 * 2

# %% [markdown]
# ### The case for not extending at all
#
# Look at the horizontal lines. Qwen and DeepSeek-V4 start where extension ends; Llama-3 stands where a few
# thousand new tokens bring SmolLM2. Their rows have been trained on more text than you will ever have. Every
# new row, on the other hand, has to be learnt from your corpus alone. That is why the third generation of the
# very project that this course follows gave extension up. Extend when the base is fixed and its tokenizer is
# bad for your text; measure first; and prefer few tokens to many.
#
# ## What we measured

# %%
results.load("02_merge")

# %%
results.load("02_where_to_stop")

# %% [markdown]
# ## What can go wrong
#
# - *Judging a merge by tokens per character.* The published merge and the repaired one cost the
#   same there.
# - *Counting on the training text.* The curve above is held-out text; on the text that the
#   merges were learnt from it would look better than it is.
# - *Folding or not folding.* A Chinese model that normalises (NFKC) in front of a base that
#   does not learns pieces for text that never arrives.
# - *A padding token added later.* The tokenizer then has one entry more than the model has
#   rows. Chapter 03 shows what happens, and a check that refuses it.
# - *Merging for the wrong family.* A SentencePiece model cannot be merged into a byte-level
#   tokenizer; the package says so.
#
# ## Where this came from
#
# - Cui, Yang and Yao, [arXiv 2304.08177](https://arxiv.org/abs/2304.08177), and the merge
#   script of Chinese-LLaMA-Alpaca
# - Kudo, *Subword Regularization*, [arXiv 1804.10959](https://arxiv.org/abs/1804.10959): the
#   unigram model
# - Sennrich, Haddow and Birch, [arXiv 1508.07909](https://arxiv.org/abs/1508.07909): BPE
# - Zhao et al., *LLaMA Beyond English*, [arXiv 2401.01055](https://arxiv.org/abs/2401.01055):
#   the case against extension
# - continued BPE and pruning: [arXiv 2512.03989](https://arxiv.org/abs/2512.03989)
#
# **Next:** [03 New embeddings](03_new_embeddings.ipynb): the new tokens need rows. Where should
# a new row start?
