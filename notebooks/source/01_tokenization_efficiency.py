# %% [markdown]
# # Tokenization efficiency 分词效率
#
# **How many tokens does a Chinese character cost, and what does that cost you?**
#
# A model never sees text. It sees the output of a tokenizer 分词器: a list of numbers, one for
# each token 词元. Time, memory and price are counted in tokens, but you read and write
# characters. This chapter measures the rate of exchange.

# %% [markdown]
# ## What you will be able to do
#
# - **compute** by hand how many bytes a character has, and read byte fallback in a tokenized
#   sentence
# - **measure** tokens per character, with an interval, for any tokenizer and any text of yours
# - **compare** vocabularies 词表 across kinds of text, and by the standard characters they know
# - **translate** the figure into context length, cache memory and time
# - **tell** when a low figure misleads

# %% [markdown]
# Time and memory of this chapter, measured when it was last built. It downloads nothing that
# chapter 00 has not listed.

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("01")

# %%
import numpy as np
from IPython.display import display
from matplotlib import pyplot as plt

import chinese_llama_lab as lab
from chinese_llama_lab import plots, results
from chinese_llama_lab.profiles import current_profile
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.tokenization.coverage import standard_characters
from chinese_llama_lab.tokenization.fertility import compare, fertility
from chinese_llama_lab.tokenization.registry import open_tokenizer
from chinese_llama_lab.tokenization.view import view

session = lab.setup(seed=0, chapter="01")
profile = current_profile()

# %% [markdown]
# ## 1. Bytes and characters by hand
#
# Unicode gives every character a number, its *code point* 码位. UTF-8 writes that number in one
# to four bytes 字节, and the larger the number, the more bytes it takes. Latin letters have small
# numbers; Chinese characters do not.

# %%
# NBVAL_CHECK_OUTPUT
for character in "aé中𠮷":
    number = ord(character)
    data = character.encode("utf-8")
    print(f"{character}  U+{number:05X}  {len(data)} bytes  {data.hex(' ').upper():<12}", end="")
    print(" ".join(f"{byte:08b}" for byte in data))

# %% [markdown]
# Read the bits. A first byte begins with as many ones as the character has bytes (or with a
# zero, if it is the only one); every byte after it begins with `10`. So a reader who lands in
# the middle of a character knows it. The other bits, joined, are the code point: let us put one
# together again, and check.


# %%
def code_point(data):
    """Code point of one character from its UTF-8 bytes."""
    if len(data) == 1:
        return data[0]
    number = data[0] & (0b0111_1111 >> len(data))  # the first byte without its ones
    for byte in data[1:]:
        number = number << 6 | byte & 0b0011_1111  # six bits from each byte that follows
    return number


assert all(code_point(c.encode("utf-8")) == ord(c) for c in "aé中𠮷")

# %% [markdown]
# **Exercise 1.1.** Write `utf8_length(character)`: how many bytes UTF-8 needs, from the code
# point alone, without `encode`. The number of *free* bits decides: count them in the rows above
# (7 for one byte; then 11, 16 and 21).

# %%
# NBVAL_CHECK_OUTPUT
utf8_length = ...
lab.check("1.1", utf8_length)


# %% tags=["solution"]
def utf8_length(character):
    number = ord(character)
    return 1 + (number >= 1 << 7) + (number >= 1 << 11) + (number >= 1 << 16)


# %% tags=["wrong-solution"]
def utf8_length(character):
    return 1 if ord(character) < 128 else 3


# %% tags=["wrong-solution"]
def utf8_length(character):
    number = ord(character)
    return 1 + (number > 1 << 7) + (number > 1 << 11) + (number > 1 << 16)


# %% [markdown]
# ## 2. Byte fallback in one sentence
#
# A vocabulary is small, and Unicode is large. What happens to a character that is not in the
# vocabulary? Old tokenizers wrote `[UNK]`, unknown, and the character was lost. LLaMA's writes
# the character's bytes instead: its vocabulary holds one token for each of the 256 bytes.
# Nothing is lost, but a Chinese character costs three tokens. This is *byte fallback* 字节回退.

# %%
# NBVAL_CHECK_OUTPUT
sentence = "哲学家说：“饕餮”二字难写。"
view(sentence, ["llama", "mistral", "smollm2", "llama-3", "qwen", "deepseek-v4", "bert-base-chinese"])

# %% [markdown]
# Dashed boxes are tokens that are no whole characters. Compare the rows:
#
# - LLaMA and Mistral are *SentencePiece* models: a character is one token, or exactly as many
#   tokens as it has bytes.
# - SmolLM2, Llama-3, Qwen and DeepSeek are *byte-level* BPE: they merge bytes, and do not know
#   what a character is. A token may hold two bytes of a character, or the end of one and the
#   beginning of the next.
# - BERT's vocabulary lists characters and has no bytes to fall back to: what is not on the
#   list, here the quotation marks, becomes `[?]` and is gone.
#
# The bytes of one such character, put together by hand:

# %%
# NBVAL_CHECK_OUTPUT
llama = open_tokenizer("llama")
ids = [token_id for token_id in llama.encode("饕") if len(llama.token_bytes(token_id)) == 1]
data = b"".join(llama.token_bytes(token_id) for token_id in ids)[-3:]
print("tokens of the character:", [llama.token_bytes(token_id).hex().upper() for token_id in ids[-3:]])
print("as a code point:", hex(code_point(data)), "→", chr(code_point(data)))
assert chr(code_point(data)) == "饕"

# %% [markdown]
# ## 3. Tokens per character, with an interval
#
# *Fertility* (每字词元数 here; the term itself is usually left in English) was first defined as
# tokens per word. Chinese writes no spaces, so we count characters 字符. One text gives one
# ratio; another text gives another. To know how far to trust a figure, we draw the documents
# again, with replacement, many times, and look at the spread: the *bootstrap* 自助法. The whole
# measurement in a few lines:


# %%
def measure(encode, texts, resamples, seed=0):
    """Tokens per character with a 95 % bootstrap interval over documents."""
    tokens = np.array([len(encode(text)) for text in texts])
    characters = np.array([len(text) for text in texts])
    draws = np.random.default_rng(seed).integers(0, len(texts), (resamples, len(texts)))
    ratios = tokens[draws].sum(axis=1) / characters[draws].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return tokens.sum() / characters.sum(), low, high


# Every twentieth paragraph of the newspaper, as it was printed: the same sample in every profile.
sample = load_corpus("peoples-daily").raw().texts()[::20]
by_hand = measure(llama.encode, sample, resamples=200)
print(f"{len(sample)} paragraphs, {sum(map(len, sample)):,} characters")
print(f"LLaMA: {by_hand[0]:.4f} tokens per character, interval {by_hand[1]:.3f} to {by_hand[2]:.3f}")

# %% [markdown]
# The package does the same in one pass over any stream, without keeping the text in memory, and
# counts more on the way: how many characters were cut, how many fell back to bytes, what was
# lost. Its figure must be ours:

# %%
# NBVAL_CHECK_OUTPUT
measured = fertility("llama", sample, text_name="news sample")
assert measured.tokens_per_character == by_hand[0]
print(f"tokens per character      {measured.tokens_per_character:.4f}")
print(f"characters per token      {measured.characters_per_token:.4f}")
print(f"bytes per token           {measured.bytes_per_token:.4f}")
print(f"characters cut in several {measured.split_share:.2%}")
print(f"characters spelled by byte {measured.byte_share:.2%}")

# %% [markdown]
# More than one token for each character, although most characters have a token of their own:
# the quarter that fall back to bytes, three tokens each, are what costs.
#
# **Exercise 1.2.** How many times as many tokens does SmolLM2 need for `sample` as DeepSeek-V4?
# Use `fertility` or `encode`.

# %%
# NBVAL_CHECK_OUTPUT
times_as_many = ...
lab.check("1.2", times_as_many)

# %% tags=["solution"]
times_as_many = fertility("smollm2", sample).tokens / fertility("deepseek-v4", sample).tokens

# %% tags=["wrong-solution"]
times_as_many = fertility("deepseek-v4", sample).tokens / fertility("smollm2", sample).tokens

# %% tags=["wrong-solution"]
times_as_many = fertility("smollm2", sample).tokens_per_character

# %% [markdown]
# ## 4. Twelve tokenizers, five kinds of text
#
# Is the figure a property of the tokenizer, or of the text? Both. Here are five kinds of
# Chinese, from a newspaper of 1998 to a novel of the 14th century, and twelve vocabularies.

# %%
tokenizers = [
    *("llama", "mistral", "smollm2", "gpt-2", "cl100k", "o200k"),
    *("llama-3", "baichuan", "qwen", "qwen3.6", "deepseek-v4", "bert-base-chinese"),
]
kinds = {
    "peoples-daily": "news 新闻",
    "reviews": "reviews 评论",
    "three-kingdoms": "classical novel 古典小说",
    "hsk-zh": "textbook sentences 课本例句",
    "modern": "modern topics 当代话题",
}
everything = []
for name in kinds:
    corpus = load_corpus(name).sample(profile["documents_per_corpus"])
    everything += compare(tokenizers, corpus, resamples=profile["bootstrap_resamples"])
measured_rows = results.save("01_fertility", [r.row() for r in everything], seed=0)
print(f"{sum(r.characters for r in everything[:: len(tokenizers)]):,} characters")

# %%
news = {r.tokenizer: r.tokens_per_character for r in everything if r.text == "peoples-daily"}
dearest, cheapest = max(news, key=news.get), min(news, key=news.get)
plots.plot_fertility(
    everything,
    labels=kinds,
    title=f"News costs {news[dearest] / news[cheapest]:.1f} times as many tokens under {dearest} "
    f"as under {cheapest}",
)
plt.show()

# %% [markdown]
# *Alternative text:* dot plot, one row a tokenizer, one marker a kind of text; the 95 %
# intervals are narrower than most markers. English vocabularies (GPT-2, SmolLM2, LLaMA,
# Mistral, cl100k) lie to the right of the dashed line at one token a character; vocabularies
# made for Chinese (Baichuan, Qwen, DeepSeek) lie to the left of it; Llama-3 and o200k cross it
# for the novel. In nearly every row the classical novel is the dearest.
#
# Three things to read here. **The order of the tokenizers is nearly the same in every kind of
# text**: the vocabulary decides most. **The kinds differ too**, and mostly by more than the
# intervals: the novel's language is far from the web pages that vocabularies were counted on,
# so even a vocabulary made for Chinese pays for it. And **size alone does not decide**: look up
# cl100k and Baichuan in the table, then ask which of the two has more tokens.

# %%
table = {}
for r in everything:
    row = table.setdefault(r.tokenizer, {"tokenizer": r.tokenizer, "vocabulary": ""})
    row[kinds[r.text]] = f"{r.tokens_per_character:.3f}"
for name in tokenizers:
    opened = open_tokenizer(name)
    table[opened.name]["vocabulary"] = f"{opened.vocab_size:,}"
results.table("tokens per character", table.values())

# %% [markdown]
# ## 5. Which characters have a token of their own?
#
# China's table of standard characters, 通用规范汉字表, has three levels: common characters, less
# common ones, and those for names, places and science. How many of each does a vocabulary hold
# as one token?

# %%
for level, characters in standard_characters().items():
    print(f"{level}: {len(characters):,} characters, such as {''.join(characters[:12])}")
coverage = {r.tokenizer: dict(r.coverage) for r in everything if r.text == "peoples-daily"}
coverage = dict(sorted(coverage.items(), key=lambda item: -sum(item[1].values())))
whole = [name for name, levels in coverage.items() if min(levels.values()) == 1.0]
plots.plot_bars(
    {name: {k: 100 * v for k, v in levels.items()} for name, levels in coverage.items()},
    title=f"Every standard character is one token in {len(whole)} of {len(coverage)} vocabularies "
    f"({', '.join(whole)})",
    xlabel="characters with one token, in % of the level",
)
plt.show()

# %% [markdown]
# *Alternative text:* grouped horizontal bars, one group a tokenizer, one bar for each level of
# the table of standard characters. Vocabularies made for Chinese hold nearly all of level 1 and
# differ on levels 2 and 3; vocabularies made for English hold a part of level 1 and next to
# nothing of the others.
#
# Coverage and cost are different things. A vocabulary may hold few rare characters and still be
# cheap, because rare characters are rare; and it may hold every character but no word, and then
# it cannot come below one token a character.
#
# **Exercise 1.3.** Which Chinese character is most frequent in `sample` among those that LLaMA
# has **no** single token for? (`collections.Counter` counts characters;
# `llama.find_token(character.encode())` gives an id or None; Chinese characters here are those
# from `"\u4e00"` to `"\u9fff"`.)

# %%
# NBVAL_CHECK_OUTPUT
costliest_character = ...
lab.check("1.3", costliest_character)

# %% tags=["solution"]
from collections import Counter

counts = Counter(character for text in sample for character in text if "\u4e00" <= character <= "\u9fff")
costliest_character = next(
    character for character, _ in counts.most_common() if llama.find_token(character.encode()) is None
)

# %% tags=["wrong-solution"]
costliest_character = "的"

# %% tags=["wrong-solution"]
costliest_character = "饕"

# %% [markdown]
# ## 6. What it costs
#
# ### The same meaning in two languages
#
# A Chinese character says more than a Latin letter, so tokens per character cannot compare
# languages. Sentences that mean the same can. Here are graded sentences with their
# translations: how many tokens does the Chinese side cost for each token of the English side?
# This ratio is called the *premium* 额外成本.

# %%
sides = {  # all of them, in order, so that each sentence meets its translation
    code: compare(tokenizers, load_corpus(code).raw(), coverage=False, resamples=10)
    for code in ("hsk-zh", "hsk-en")
}
premium = {
    zh.tokenizer: zh.tokens / en.tokens for zh, en in zip(sides["hsk-zh"], sides["hsk-en"], strict=True)
}
premium = dict(sorted(premium.items(), key=lambda item: -item[1]))
results.save("01_premium", [{"tokenizer": t, "premium": round(p, 4)} for t, p in premium.items()], seed=0)
cheaper = [name for name, value in premium.items() if value < 1]
plots.plot_bars(
    {name: {"premium": value} for name, value in premium.items()},
    title=f"Chinese is cheaper than English under {len(cheaper)} of {len(premium)} vocabularies",
    xlabel="tokens of the Chinese sentence for each token of its English translation",
    reference=1.0,
)
plt.show()

# %% [markdown]
# *Alternative text:* horizontal bars, one a tokenizer, with a dashed line at one. GPT-2,
# SmolLM2 and LLaMA reach far beyond the line: Chinese costs more than English. The vocabularies
# made for Chinese end short of it.
#
# The premium is no property of the Chinese language. It is a property of the text that the
# vocabulary was counted on.

# %% [markdown]
# ### Context, cache and price
#
# Three bills come in tokens. The *context window* 上下文窗口 holds a fixed number of them. The *KV
# cache* 键值缓存 keeps, for each token and layer, one key and one value. And work grows with the
# number of tokens; its attention 注意力 part grows with the square. For a model of LLaMA-7B's
# shape in 16 bits:

# %%
context_tokens, layers, hidden, bytes_per_number = 2048, 32, 4096, 2
cache_per_token = 2 * layers * hidden * bytes_per_number  # a key and a value
page = 1000  # characters
costs = []
for name, value in sorted(news.items(), key=lambda item: -item[1]):
    costs.append(
        {
            "tokenizer": name,
            "tokens per character": f"{value:.3f}",
            "characters in the context": f"{context_tokens / value:,.0f}",
            f"KV cache for {page:,} characters, MiB": f"{page * value * cache_per_token / 2**20:,.0f}",
            f"attention, × {cheapest}": f"{(value / news[cheapest]) ** 2:.1f}",
            f"price, × {cheapest}": f"{value / news[cheapest]:.2f}",
        }
    )
print(f"{cache_per_token / 1024:.0f} KiB of cache for each token")
results.table("cost of Chinese news text for one and the same 7B shape", costs)

# %% [markdown]
# Mind what is held constant: the same model shape with each vocabulary in turn. Real models
# differ in shape as well, and newer ones share keys and values among heads, which chapter 08
# takes up.
#
# **Exercise 1.4.** How many KiB of KV cache does one *character* of `sample` cost with LLaMA's
# tokenizer, at the shape above?

# %%
# NBVAL_CHECK_OUTPUT
cache_per_character = ...
lab.check("1.4", cache_per_character)

# %% tags=["solution"]
cache_per_character = 2 * 32 * 4096 * 2 / 1024 * fertility("llama", sample).tokens_per_character

# %% tags=["wrong-solution"]
cache_per_character = 32 * 4096 * 2 / 1024 * fertility("llama", sample).tokens_per_character

# %% tags=["wrong-solution"]
cache_per_character = 2 * 32 * 4096 * 2 / 1024

# %% tags=["wrong-solution"]
cache_per_character = 2 * 32 * 4096 * 2 / 1024 / fertility("llama", sample).tokens_per_character

# %% [markdown]
# ### Speed
#
# Tokens per second is how speed is quoted; characters per second is what a reader feels. Let us
# measure the first on our base model, here and now, and compute the second.

# %%
import time

import torch

from chinese_llama_lab.sources.models import load_base

model, model_tokenizer = load_base("smollm2")
ids = torch.tensor([model_tokenizer("\n".join(sample[:8]))["input_ids"][:512]])
seconds = []
with torch.inference_mode():
    for _ in range(profile["speed_repeats"] + 1):
        start = time.perf_counter()
        model(ids)
        seconds.append(time.perf_counter() - start)
speed = ids.shape[1] / np.median(seconds[1:])  # the first run warms up
print(f"reading {ids.shape[1]} tokens at {speed:,.0f} tokens per second")

# %%
rates = {name: speed / value for name, value in sorted(news.items(), key=lambda item: item[1])}
results.save(
    "01_speed",
    [{"tokenizer": n, "characters_per_second": round(r, 1)} for n, r in rates.items()],
    model="SmolLM2-135M, float32, 512 tokens",
    seed=0,
)
own = rates[open_tokenizer("smollm2").name]
plots.plot_bars(
    {name: {"characters": value} for name, value in rates.items()},
    title=f"At one and the same {speed:,.0f} tokens per second, SmolLM2 reads {own:,.0f} characters "
    f"per second,\nand with {cheapest}'s vocabulary it would read {rates[cheapest]:,.0f}",
    xlabel="characters of news read per second, at equal tokens per second",
)
plt.show()

# %% [markdown]
# *Alternative text:* horizontal bars, one a tokenizer, of characters per second at the measured
# number of tokens per second. The bars are the reciprocals of the tokens per character: longest
# for the vocabularies made for Chinese, shortest for SmolLM2's own and GPT-2's.
#
# This is the promise of vocabulary extension 词表扩充: the same machine, the same weights for each
# step, and, as the bars say, several times as much Chinese a second. It is also an
# idealisation: a larger vocabulary makes the last layer larger, and the model has to learn the
# new tokens. Chapters 02 to 04 do it, and chapter 08 measures what is left of the promise.

# %% [markdown]
# ## 7. When a low figure misleads
#
# **First: text may be lost.** BERT's Chinese vocabulary comes out near one token a character.
# Look at what it keeps:

# %%
# NBVAL_CHECK_OUTPUT
lossy = "饕餮 ABC 😀 Straße"
for name in ["bert-base-chinese", "llama", "qwen"]:
    opened = open_tokenizer(name)
    print(
        f"{opened.name:<13} {len(opened.encode(lossy)):>3} tokens → {opened.decode(opened.encode(lossy))!r}"
    )

# %% [markdown]
# An unknown token is one token whatever it swallows, so losing text *lowers* the figure. The
# package therefore reports the share of unknown tokens beside it, and every tokenizer says
# whether it is lossless.
#
# **Second: vocabulary is not free.** Each token has a row in the embedding matrix 词向量矩阵 and one
# in the output head. What share of a model would they be?

# %%
shapes = {"SmolLM2-135M": (576, 106_203_456, 1), "LLaMA-7B": (4096, 6_476_271_616, 2)}
rows = []
for name in ["llama", "smollm2", "llama-3", "qwen", "qwen3.6"]:
    opened = open_tokenizer(name)
    row = {"vocabulary of": opened.name, "tokens": f"{opened.vocab_size:,}"}
    for label, (width, body, matrices) in shapes.items():
        embedding = opened.vocab_size * width * matrices
        row[f"in a model of {label}'s width"] = f"{embedding / (embedding + body):.1%} of the parameters"
    rows.append(row)
body = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)
assert body == shapes["SmolLM2-135M"][1]
results.table("what a vocabulary costs", rows)

# %% [markdown]
# The larger the model, the smaller the share that the same vocabulary takes of it. This is why
# the best vocabulary for a model of SmolLM2's size is not the best one for a model of LLaMA's,
# and chapter 02 asks where to stop.
#
# **Third: fewer tokens are not better answers.** A token that the model has hardly seen is
# cheap to count and useless to read. The figure says what text costs, not what the model makes
# of it.
#
# **Fourth: your text is not this text.** Measure yours: `chinese-llama-lab fertility my.txt
# --tokenizer llama qwen`.
#
# **Exercise 1.5.** Four vocabularies and their tokens per character on the same text: A 0.62
# with no unknown tokens, B 0.97 with no unknown tokens, C 0.95 with 2 % unknown tokens, D 1.55
# with no unknown tokens. Which one must not be compared by this figure at all? Answer `"A"`,
# `"B"`, `"C"` or `"D"`.

# %%
# NBVAL_CHECK_OUTPUT
not_comparable = ...
lab.check("1.5", not_comparable)

# %% tags=["solution"]
not_comparable = "C"

# %% tags=["wrong-solution"]
not_comparable = "D"

# %% [markdown]
# ## What we measured

# %%
results.load("01_fertility").only(
    "tokenizer",
    "tokens_per_character",
    "low",
    "high",
    "bytes_per_token",
    "split_share",
    "unknown_share",
    "relative_length",
    text="peoples-daily",
)

# %%
display(results.load("01_premium"))
{key: results.load("01_fertility").provenance[key] for key in ("profile", "seed", "date")}

# %% [markdown]
# `split_share` is the share of characters that were cut into several tokens, `relative_length`
# the length with LLaMA's tokenizer as one.
#
# ## What can go wrong
#
# - *Counting the special tokens.* A tokenizer of a chat model may add a beginning-of-text token
#   to each text. Ours never do.
# - *Measuring one long string instead of documents.* SentencePiece puts a space before each
#   text it is given; cutting a text into lines adds one token a line. And a single document has
#   no interval: its two ends coincide.
# - *Comparing figures with another denominator.* Tokens per word, per byte and per character
#   are three different things, and some tables leave out spaces or punctuation. A figure
#   without its text and its denominator says nothing.
# - *Normalisation* 规范化. Full-width digits and punctuation are characters of their own. We fold
#   them (NFKC) in the cleaned corpora, and not in `sample`; the figures differ in the second
#   decimal.
# - *Reading the interval as more than it is.* It says how much the figure moves when other
#   documents of the same kind are drawn. It says nothing about other kinds of text.
#
# ## Where this came from
#
# - Rust et al., *How Good is Your Tokenizer?*, [arXiv
#   2012.15613](https://arxiv.org/abs/2012.15613): fertility as a measure
# - Petrov et al., *Language Model Tokenizers Introduce Unfairness Between Languages*, [arXiv
#   2305.15425](https://arxiv.org/abs/2305.15425): the premium
# - Kudo and Richardson, *SentencePiece*, [arXiv 1808.06226](https://arxiv.org/abs/1808.06226);
#   Sennrich, Haddow and Birch, *Neural Machine Translation of Rare Words with Subword Units*,
#   [arXiv 1508.07909](https://arxiv.org/abs/1508.07909): BPE
# - Cui, Yang and Yao, [arXiv 2304.08177](https://arxiv.org/abs/2304.08177): the comparison that
#   this chapter extends
# - 通用规范汉字表, State Council of China, 2013
#
# **Next:** [02 Vocabulary merging](02_vocabulary_merging.ipynb) 词表合并: if LLaMA's vocabulary is
# the problem, why not add Chinese tokens to it?
