# %% [markdown]
# # Start here 从这里开始
#
# **Why is an English model expensive in Chinese, and what will we do about it?**
#
# A large language model 大语言模型 reads *tokens* 词元, not letters. Which tokens exist was decided
# before training, by counting English. This course takes such a model and adapts it to Chinese,
# step by step and for real: every number that you will read was computed by a cell, on a real
# model, real tokenizers and real text, or stands in a table with its source.

# %% [markdown]
# ## What you will be able to do
#
# - **explain** in one picture why Chinese costs an English model more
# - **name** the steps of the recipe that was used in 2023, and what has replaced each
# - **check** that this machine can run the course, and see what was downloaded under which
#   licence
# - **find** your way through the chapters, and **use** the exercise checker

# %% [markdown]
# Time and memory of this chapter, as they were measured when it was last built:

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("00")

# %%
import chinese_llama_lab as lab

session = lab.setup(seed=0, chapter="00")

# %% [markdown]
# ## 1. The puzzle: one sentence, two bills
#
# Here is the sentence that the authors of Chinese-LLaMA used as their example. It says that
# artificial intelligence is an interdisciplinary field that joins computer science, psychology,
# philosophy and others. LLaMA's *tokenizer* 分词器 came out in 2023 and was built mostly from
# English; Qwen's came out half a year later and was built for Chinese and English.

# %%
# NBVAL_CHECK_OUTPUT
from chinese_llama_lab.tokenization.view import view

sentence = "人工智能是计算机科学、心理学、哲学等学科融合的交叉学科。"
print(len(sentence), "characters")
view(sentence, ["llama", "qwen"])

# %% [markdown]
# Every box is one token: one step of the model, one slot of its memory, one unit on an invoice.
# The dashed boxes hold hexadecimal numbers, because they are **not characters at all**. LLaMA's
# *vocabulary* 词表 has no token for 哲, 融 or 叉, so it spells each of them with the bytes of its
# UTF-8 code: three tokens for one character. The same sentence in English:

# %%
# NBVAL_CHECK_OUTPUT
english = (
    "Artificial intelligence is an interdisciplinary field that combines "
    "computer science, psychology, philosophy and other subjects."
)
view(english, ["llama", "qwen"])

# %% [markdown]
# In English the two bills differ by a few tokens. In Chinese one is more than twice the other:
# more time, more memory, a shorter text before the context is full. That is the problem this
# course is about; chapter 01 measures it properly.

# %% [markdown]
# ## 2. What was done in 2023
#
# LLaMA was the first model of its strength that a small research group could get and run, and
# it had seen almost no Chinese. Yiming Cui, Ziqing Yang and Xin Yao published a recipe that
# thousands of people followed, **Chinese-LLaMA-Alpaca**. Its steps, with the figures that its
# authors published:

# %%
# NBVAL_CHECK_OUTPUT
from chinese_llama_lab.paths import data_dir
from chinese_llama_lab.results import read_table

read_table(data_dir() / "recipe_steps.csv")

# %% [markdown]
# ### What has replaced it
#
# Today you would rarely start from an English model. Newer models (Qwen, DeepSeek, Llama from
# its third generation on) are trained with larger vocabularies on many languages, so the first
# two steps are no longer needed for Chinese. The third generation of the very same project
# dropped the vocabulary extension.
#
# So why learn it? Because every step is a question that comes back with **every** language,
# domain and model: *does the tokenizer fit my text? where should a new row start? how much can
# a low-rank update learn, and what is forgotten? what do four bits lose? what does a benchmark
# score mean?* Nowhere else are they met so plainly, in an order that builds, on models small
# enough to run at home. And the old scripts have known faults, which are worth more to a
# learner than clean code: in chapter 02 you will find them yourself.

# %% [markdown]
# ## 3. This machine, and a real model
#
# `chinese-llama-lab doctor` looks at a machine and says what to do about each problem. Part of
# what it looks at:

# %%
from chinese_llama_lab.doctor import CHECKS, examine, report

print(report(examine({name: CHECKS[name] for name in ("processor", "memory", "gpu", "disk", "fonts")})))

# %% [markdown]
# The base model of the course is **SmolLM2-135M**. It is small, English, and built exactly like
# LLaMA, so each function that you meet here takes a larger model by another name. Let us hear
# it speak.

# %%
from chinese_llama_lab.sources.models import load_base

model, tokenizer = load_base("smollm2")
parameters = sum(p.numel() for p in model.parameters())
print(f"{parameters:,} parameters, {parameters * 4 / 1e6:,.0f} MB in float32")
print(f"{model.config.num_hidden_layers} layers, hidden size {model.config.hidden_size}")
print(f"vocabulary of {model.config.vocab_size:,} tokens")


# %%
def continue_text(prompt, tokens=24):
    """Greedy continuation: at each step the most likely token."""
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


for prompt in ["The capital of China is", "Rivers flow into", "中国的首都是", "人工智能是"]:
    print(f"{prompt!r}\n    → {continue_text(prompt)!r}")

# %% [markdown]
# Its English is fluent, which is not the same as true. Its Chinese is not even fluent: it has
# seen too little of it, and it needs more steps to write each character. Remember these
# continuations. You will make the model better at this, and you will measure by how much, and
# at what cost for its English.

# %% [markdown]
# ## 4. What was downloaded, and under which licences
#
# Everything comes as files out of ordinary packages of a Python package index, because many
# readers cannot reach the model hub. The packages are never installed or run: the archive is
# downloaded, its checksum compared, the files copied out.

# %%
from chinese_llama_lab.results import table
from chinese_llama_lab.sources.fetch import status

states = status()
print(f"{sum(s.state == 'here' for s in states)} of {len(states)} sources are here")
table(
    "sources",
    [
        {
            "name": s.source.name,
            "what": s.source.title,
            "MB": f"{s.source.size / 1e6:.1f}",
            "licence": s.source.licence,
        }
        for s in states
    ],
)

# %% [markdown]
# Mind the last column. Some texts may be used for research only, and the instruction rows
# probably for non-commercial purposes: that is why they are fetched to your machine and not
# part of this repository. A model trained on them inherits the question. If you reach the model
# hub 模型中心, the same calls take a hub name instead: `load_base("owner/name")`,
# `open_tokenizer("owner/name")`.

# %% [markdown]
# ## 5. The map

# %%
from chinese_llama_lab.course.map import course_map

course_map()

# %% [markdown]
# The package follows the chapters: whoever knows the notebooks knows the library. A notebook
# first *derives* an idea in a few lines, then *asserts* that the package gives the same answer,
# then uses the package.
#
# **One dial.** `LAB_PROFILE` chooses how much work a notebook does: `smoke` runs every cell in
# seconds (the tests use it), `course` is the default, `gpu` takes larger samples and longer runs
# of the same models (hub models: chapter 11). No notebook contains a switch of its own.

# %%
from chinese_llama_lab.profiles import current_profile

current_profile()

# %% [markdown]
# ## 6. How exercises work
#
# An exercise is a task in words, a stub with `...`, and a checker. Run the cell as it is and
# you get a hint. Put in an answer, and the checker says *right* or *wrong*, and why. Nothing is
# counted; try as often as you like.
#
# **Exercise 0.1.** How many tokens does LLaMA's tokenizer need for the sentence above *per
# character*? The first picture of this notebook holds both numbers.

# %%
# NBVAL_CHECK_OUTPUT
tokens_per_character = ...
lab.check("0.1", tokens_per_character)

# %% tags=["solution"]
tokens_per_character = 35 / 28

# %% tags=["wrong-solution"]
tokens_per_character = 28 / 35

# %% tags=["wrong-solution"]
tokens_per_character = 35

# %% [markdown]
# What a wrong answer looks like:

# %%
# NBVAL_CHECK_OUTPUT
lab.check("0.1", 28 / 35)

# %% [markdown]
# ## What we measured
#
# One sentence in two languages, under both tokenizers:

# %%
# NBVAL_CHECK_OUTPUT
from chinese_llama_lab.tokenization.registry import open_tokenizer

rows = []
for name in ["llama", "qwen"]:
    opened = open_tokenizer(name)
    for language, text in [("Chinese", sentence), ("English", english)]:
        count = len(opened.encode(text))
        rows.append(
            {
                "tokenizer": opened.name,
                "vocabulary": f"{opened.vocab_size:,}",
                "language": language,
                "characters": str(len(text)),
                "tokens": str(count),
                "tokens per character": f"{count / len(text):.2f}",
            }
        )
table("one sentence", rows)

# %% [markdown]
# ## What can go wrong
#
# - *A source is missing and there is no network*: the message names the file, its size and the
#   command to run elsewhere.
# - *Chinese characters show as boxes in plots*: the font is a source like the others;
#   `chinese-llama-lab doctor` checks it.
# - *The kernel dies while the model is loaded*: too little memory; `doctor` says how much there
#   is.
# - *One sentence is not a measurement.* Its two bills differ by chance as well as by
#   vocabulary. That is what chapter 01 is for.
#
# More in [TROUBLESHOOTING.md](../TROUBLESHOOTING.md).
#
# ## Where this came from
#
# - Cui, Yang and Yao, *Efficient and Effective Text Encoding for Chinese LLaMA and Alpaca*,
#   [arXiv 2304.08177](https://arxiv.org/abs/2304.08177): the recipe, and the example sentence
# - Touvron et al., *LLaMA: Open and Efficient Foundation Language Models*, [arXiv
#   2302.13971](https://arxiv.org/abs/2302.13971)
# - Allal et al., *SmolLM2: When Smol Goes Big*, [arXiv
#   2502.02737](https://arxiv.org/abs/2502.02737)
# - Bai et al., *Qwen Technical Report*, [arXiv 2309.16609](https://arxiv.org/abs/2309.16609)
#
# **Next:** [01 Tokenization efficiency](01_tokenization_efficiency.ipynb): how many tokens does
# a Chinese character cost?
