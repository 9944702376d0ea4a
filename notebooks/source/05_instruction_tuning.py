# %% [markdown]
# # Instruction tuning 指令微调
#
# **How does a text model become one that answers?**
#
# It is shown questions with answers, and only the answers count. That is all; but each of the
# details, where the question ends, which tokens are learnt, how the answer stops, can go wrong
# without an error message. This chapter takes one row apart, then trains with the right details
# and with wrong ones, and measures the difference.

# %% [markdown]
# ## What you will be able to do
#
# - **follow** one row from text to labels 标签, by hand
# - **tell apart** the templates 提示模板 of the published models, to the byte
# - **find** rows that a careless script ruins in silence
# - **measure** what a wrong template and an unmasked prompt cost, in bits per character of answer
# - **read** instruction data critically

# %% [markdown]
# Time and memory of this chapter, measured when it was last built. It downloads nothing new.

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("05")

# %%
import tempfile
from collections import Counter
from pathlib import Path

from matplotlib import pyplot as plt

import chinese_llama_lab as lab
from chinese_llama_lab import plots, results
from chinese_llama_lab.live import LiveCurves
from chinese_llama_lab.paths import data_dir
from chinese_llama_lab.profiles import current_profile
from chinese_llama_lab.sources.corpora import instruction_rows
from chinese_llama_lab.sources.models import load_base
from chinese_llama_lab.training.finetune import finetune
from chinese_llama_lab.training.generate import answer
from chinese_llama_lab.training.instructions import encode_instructions, instruction_row, read_instructions
from chinese_llama_lab.training.metrics import answer_bits
from chinese_llama_lab.training.precision import weights_dtype
from chinese_llama_lab.training.recipe import load_recipe
from chinese_llama_lab.training.templates import TEMPLATES, render_prompt

session = lab.setup(seed=0, chapter="05", torch=True)
profile = current_profile()
recipe = load_recipe("smollm2-zh-instruct")
model, tokenizer = load_base("smollm2", dtype=weights_dtype(recipe))

# %% [markdown]
# ## 1. One row, from text to labels
#
# A row has an instruction 指令, perhaps further material, and an answer.

# %%
written = read_instructions(data_dir() / "instructions.jsonl")
row = next(r for r in written if r.category == "everyday" and r.input)
print("instruction:", row.instruction)
print("input:      ", row.input)
print("output:     ", row.output)

# %% [markdown]
# The template turns instruction and input into a prompt; the answer follows, and after it the
# end mark EOS. The model reads all of it. But its loss is taken **only where there is a label**:
# on the answer and on EOS. The prompt's labels are −100, which PyTorch's loss leaves out.

# %%
prompt = render_prompt("chat", row.instruction, row.input, tokenizer=tokenizer)
prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
whole = tokenizer(prompt + row.output, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
labels = [-100] * len(prompt_ids) + whole[len(prompt_ids) :]
for index in range(len(prompt_ids) - 4, len(prompt_ids) + 5):
    print(f"{index:>4} {tokenizer.decode([whole[index]])!r:<14} label {labels[index]}")
encoded = encode_instructions([row], "chat", tokenizer)
assert encoded.examples[0].input_ids == whole
assert encoded.examples[0].labels == labels
print(f"{len(whole)} tokens, {len(whole) - len(prompt_ids)} of them with a label")

# %% [markdown]
# (A `�` is part of a character: this tokenizer spells most Chinese characters in pieces.)
#
# Prompt and answer are tokenised **as one text**. A tokenizer may join the last characters of one
# with the first of the other; tokenised apart, the model would be trained on a token that it
# never meets when it answers.
#
# **Exercise 5.1.** Write `make_labels(ids, prompt_length)`: a list as long as `ids`, with −100 for
# the prompt.

# %%
# NBVAL_CHECK_OUTPUT
make_labels = ...
lab.check("5.1", make_labels)


# %% tags=["solution"]
def make_labels(ids, prompt_length):
    return [-100] * prompt_length + list(ids[prompt_length:])


# %% tags=["wrong-solution"]
def make_labels(ids, prompt_length):
    return list(ids[prompt_length:])


# %% tags=["wrong-solution"]
def make_labels(ids, prompt_length):
    return [0] * prompt_length + list(ids[prompt_length:])


# %% [markdown]
# ## 2. Four templates
#
# The same row as each family of models expects it. Spaces and line breaks count: v1 ends in a
# space, Stanford's in a line break.

# %%
for template in TEMPLATES:
    print(f"--- {template}")
    print(repr(render_prompt(template, "把下面的词按音序排列。", "苹果、香蕉", tokenizer=tokenizer)))

# %% [markdown]
# **v1** is Chinese-Alpaca's, **v2** Chinese-Alpaca-2's (it is Llama-2's form), **alpaca** that of
# Stanford Alpaca and alpaca-lora, and **chat** is what SmolLM2's own tokenizer carries. A template is
# part of the model: it must be the same in training and in use.
#
# **Exercise 5.2.** A model was tuned with `v1`. Someone strips the prompt's trailing space before
# asking it. What happens?
#
# - `"nothing"`: white space does not matter
# - `"error"`: the model refuses
# - `"worse"`: it answers all the same, from a prompt it was never trained on

# %%
# NBVAL_CHECK_OUTPUT
stripped_prompt = ...
lab.check("5.2", stripped_prompt)

# %% tags=["solution"]
stripped_prompt = "worse"

# %% tags=["wrong-solution"]
stripped_prompt = "nothing"

# %% tags=["wrong-solution"]
stripped_prompt = "error"

# %% [markdown]
# ## 3. How a careless script ruins rows
#
# The published script masks the prompt and **then** cuts everything at a maximal length. What is
# cut is the end: the answer's end and EOS. Let us do the same to real rows and count.

# %%
rows = [instruction_row(r) for r in instruction_rows()]
alpaca = [r for r in rows if r.output.strip()]
limit = 256


def cut_like_the_script(prompt_length, ids):
    """(labels left, whether EOS is left) after masking and cutting."""
    kept = ids[:limit]
    return max(0, len(kept) - prompt_length), len(ids) <= limit


outcomes = Counter()
for example in encode_instructions(alpaca, "v1", tokenizer, max_length=8192).examples:
    prompt_length = sum(label == -100 for label in example.labels)
    left, has_end = cut_like_the_script(prompt_length, example.input_ids)
    outcomes["whole" if has_end else "no label at all" if left == 0 else "no EOS"] += 1
careful = encode_instructions(alpaca, "v1", tokenizer, max_length=limit)
table = [
    {"way": "mask, then cut", **{key: outcomes[key] for key in ("whole", "no EOS", "no label at all")}},
    {"way": "this package", "whole": len(careful.examples), "no EOS": 0, "no label at all": 0},
]
table[1]["refused"], table[1]["prompt shortened"] = len(careful.refused), len(careful.cut)
table[0]["refused"], table[0]["prompt shortened"] = 0, 0
results.save("05_cut_rows", table, seed=0, model="SmolLM2's tokenizer, at most 256 tokens")
results.load("05_cut_rows")

# %% [markdown]
# A row without EOS teaches the model to go on for ever. A row without any label adds nothing, and
# a batch of such rows has a loss of 0/0: NaN. Here, a row that is too long loses text of its
# *prompt*; one whose answer alone does not fit is refused and counted.

# %%
print(careful)

# %% [markdown]
# Half of the rows do not fit 256 tokens, because this tokenizer spends almost two tokens a
# character. That too is a price of chapter 01.
#
# **Exercise 5.3.** A row's prompt has 300 tokens, its answer with EOS 40; the limit is 256. How many
# tokens with a label are left if the script masks first and then cuts?

# %%
# NBVAL_CHECK_OUTPUT
labels_left = ...
lab.check("5.3", labels_left)

# %% tags=["solution"]
labels_left = max(0, 256 - 300)

# %% tags=["wrong-solution"]
labels_left = 40

# %% tags=["wrong-solution"]
labels_left = -44

# %% [markdown]
# ## 4. The data
#
# Two sources. The rows of this project were written for it in Chinese, in the ten categories of
# the original project's examples and one of everyday tasks. The fetched rows are the Chinese
# version of the Alpaca data, translated and then answered anew by a large model.

# %%
names = {
    "qa": "知识问答",
    "open_qa": "开放式问答",
    "reasoning": "数值计算与推理",
    "literature": "诗词文学哲学",
    "entertainment": "音乐体育娱乐",
    "writing": "写信写文章",
    "translation": "文本翻译",
    "dialogue": "多轮交互",
    "code": "代码编程",
    "ethics": "伦理与拒答",
    "everyday": "日常任务",
}
by_category = Counter(r.category for r in written)
plots.plot_bars(
    {f"{names[key]} {key}": {"rows": float(by_category[key])} for key in names},
    title=f"{len(written)} rows written for this course, in {len(by_category)} categories",
    xlabel="rows",
)
plt.show()

# %% [markdown]
# *Alternative text:* horizontal bars, one for each category, of about the same length; everyday
# tasks are the longest.


# %%
def lengths(rows):
    """Median characters of instruction with input, and of the answer."""
    asked = sorted(len(r.instruction + r.input) for r in rows)
    said = sorted(len(r.output) for r in rows)
    return {"rows": len(rows), "question": asked[len(asked) // 2], "answer": said[len(said) // 2]}


sources = [{"source": "this course", **lengths(written)}, {"source": "fetched", **lengths(alpaca)}]
results.save("05_sources", sources, seed=0)
results.load("05_sources")

# %% [markdown]
# Read before you train, and check what can be checked. This is one of the fetched rows; count the
# words yourself:

# %%
suspect = next(r for r in alpaca if "I want to go for a walk" in r.instruction)
print(suspect.instruction)
print(suspect.output)
print("counted:", len(["I", "want", "to", "go", "for", "a", "walk"]))

# %% [markdown]
# Chapter 10 measures what translation does to such rows. Here they are material for a model
# that is still learning to form sentences.
#
# ## 5. Three ways to train
#
# The recipe tunes the model that has read Chinese, not the one as it came: here `smollm2-zh`, which is
# chapter 04 done for hours instead of minutes, and comes with the course. Same rows, same steps, same rate:
# **right** (chat template, prompt masked), **unmasked** (the prompt is learnt too), and **v1** (another
# template, masked). Some rows are held out. SmolLM2 came as a chat model of English, so its chat template is
# not new to it.

# %%
fits = [row for row in alpaca if len(row.output) <= profile["answer_characters"]]
held_out = fits[:: max(1, len(fits) // profile["held_out_rows"])][: profile["held_out_rows"]]
train = [r for r in fits if r not in held_out] + written
steps = profile["instruction_steps"]
recipe = recipe.replace(steps=steps, log_every=max(1, steps // 12), evaluate_every=0)
print(f"{len(train)} rows to train on, {len(held_out)} held out, {steps} steps")
folder = Path(tempfile.mkdtemp())
START = "smollm2-zh"
start, words = load_base(START, dtype=weights_dtype(recipe))


# %%
def tune(name, **changes):
    """One variant, from the model that has read Chinese."""
    base, _ = load_base(START, dtype=weights_dtype(recipe))
    changed = recipe.replace(**changes)
    return finetune(base, words, train, changed, folder / name, watch=LiveCurves(name))


reports = {
    "chat, masked": tune("chat"),
    "chat, prompt unmasked": tune("unmasked", mask_prompt=False),
    "v1, masked": tune("v1", template="v1"),
}
models = {START: start, **{name: report.model for name, report in reports.items()}}

# %% [markdown]
# Each model is asked in each template. The measure is what the held-out **answers** cost, in
# bits per character, given the prompt.

# %%
asked = {}
for name, tuned in models.items():
    for template in TEMPLATES:
        asked[name, template] = answer_bits(tuned, words, held_out, template).bits_per_character
rows = [
    {"model": name, **{template: round(asked[name, template], 3) for template in TEMPLATES}}
    for name in models
]
results.save("05_templates", rows, seed=0, model=f"{START}, {weights_dtype(recipe)}")
results.load("05_templates")

# %%
wrong = asked["chat, masked", "v1"] - asked["chat, masked", "chat"]
plots.plot_bars(
    {name: {template: asked[name, template] for template in TEMPLATES} for name in models},
    title=f"Asked in v1, the chat-tuned model pays {wrong:+.2f} bits per character",
    xlabel="bits per character of held-out answers (lower is better)",
)
plt.show()

# %% [markdown]
# *Alternative text:* groups of four bars, one group for each model, one bar for each template it
# was asked in. In the chat template the model tuned with it and a masked prompt is cheapest; in v1 and in
# Stanford's, which is v1 but for the last character, the one tuned with v1 is.
#
# **Masking.** Compare the two chat models in their own template. The unmasked one spends a share of
# its learning on questions; here are both, and the loss that each reports. The losses cannot be
# compared, because they are means over different tokens.

# %%
for name in ("chat, masked", "chat, prompt unmasked"):
    print(f"{name:<24} last loss {reports[name].losses[-1]:.2f}, answers {asked[name, 'chat']:.3f} bits")

# %% [markdown]
# ## 6. Answers, before and after
#
# SmolLM2 as it came, after it read Chinese, and after it was tuned.

# %%
questions = ["中国的首都是哪座城市？", "请写一句祝朋友生日快乐的话。", "请把“我喜欢读书”翻译成英文。"]
length = profile["generated_tokens"]
stages = {
    "smollm2": (model, tokenizer),
    START: (start, words),
    "chat, masked": (models["chat, masked"], words),
}
answers = []
for question in questions:
    for name, (one, its) in stages.items():
        said = answer(one, its, question, template="chat", max_new_tokens=length)
        answers.append({"question": question, "model": name, "answer": said, "characters": len(said)})
for said in answers:
    print(f"{said['question']}  [{said['model']}, {said['characters']} characters]\n    {said['answer']}")

# %% [markdown]
# A minute of tuning changes the *form* at once: that there is an answer, its language, tone and length. Form
# is cheap; knowledge is not, and instruction tuning does not add any. How long the answers are:

# %%
typical = sum(len(r.output) for r in held_out) / len(held_out)
for name in stages:
    said = [a["characters"] for a in answers if a["model"] == name]
    print(f"{name:<14} {sum(said) / len(said):.0f} characters an answer (held-out rows: {typical:.0f})")

# %% [markdown]
# ## What we measured

# %%
results.load("05_templates")

# %%
results.load("05_cut_rows")

# %% [markdown]
# ## What can go wrong
#
# - *Another template in use than in training.* No error, worse answers.
# - *EOS that is masked, cut off or equal to the padding token and masked with it.* The model never
#   stops.
# - *Prompt and answer tokenised apart.* The first token of the answer is not what it will be in use.
# - *Comparing the losses of runs that mask differently.* Compare bits per character of answers.
# - *Training on rows that nobody read.* Wrong answers are learnt as eagerly as right ones.
#
# ## Where this came from
#
# - Stanford Alpaca, [its repository](https://github.com/tatsu-lab/stanford_alpaca); alpaca-lora,
#   [its repository](https://github.com/tloen/alpaca-lora)
# - Chinese-Alpaca, [arXiv 2304.08177](https://arxiv.org/abs/2304.08177)
# - the fetched rows and their licence: `chinese-llama-lab sources`
#
# **Next:** [06 Merging adapters](06_merging_adapters.ipynb) 权重合并: the adapter becomes part of the
# weights.
