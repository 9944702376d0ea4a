# %% [markdown]
# # C-Eval 中文评测
#
# **What does a benchmark score mean, and how much of it is noise?**
#
# "38.1 on C-Eval" looks like a property of a model. It is a property of a model, a prompt, a number of
# shots, a choice of tokens, an average, and a draw of questions. This chapter takes one such number apart.

# %% [markdown]
# ## What you will be able to do
#
# - **follow** one question 题目 from its text to four logits and a letter
# - **explain** what demonstrations 示例 (shots) give to a model, and what they do not
# - **read** a shared prefix 前缀 once instead of once a question
# - **put** an interval 置信区间 and a chance line 随机水平 beside a score
# - **say** how many questions a difference of two points needs, before believing one

# %% [markdown]
# Time and memory of this chapter, measured when it was last built. It downloads nothing new. The
# questions are the course's own, in C-Eval's format: C-Eval itself may not be copied. A score on them
# is no C-Eval score, and the two must never stand in one table.

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card

chapter_card("09")

# %%
import math
import time
from statistics import NormalDist

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

import chinese_llama_lab as lab
from chinese_llama_lab import plots, results
from chinese_llama_lab.ceval.compare import compare_runs
from chinese_llama_lab.ceval.intervals import average_by_question, paired_difference, sign_test
from chinese_llama_lab.ceval.letters import letter_ids
from chinese_llama_lab.ceval.prefix import common_start
from chinese_llama_lab.ceval.prompts import build_prompt, choose_shots
from chinese_llama_lab.ceval.questions import LETTERS
from chinese_llama_lab.ceval.readers import read_questions
from chinese_llama_lab.ceval.reference import score_letters
from chinese_llama_lab.ceval.report import CHANCE, make_report
from chinese_llama_lab.ceval.score import score
from chinese_llama_lab.ceval.subjects import load_subjects
from chinese_llama_lab.paths import data_dir
from chinese_llama_lab.profiles import current_profile
from chinese_llama_lab.sources.models import load_base

# %%
session = lab.setup(seed=0, chapter="09", torch=True)
profile = current_profile()

# %% [markdown]
# ## 1. One question by hand
#
# C-Eval has 52 subjects; each has five *dev* questions with explanations, and others in *val* and *test*.
# The answers of *test* are kept by its authors. The course's set has the same form, and fewer subjects:

# %%
# NBVAL_CHECK_OUTPUT
questions = read_questions(data_dir() / "ceval_lab")
dev, val = questions.select(split="dev"), questions.select(split="val")
print(f"{len(questions.subjects)} subjects, {len(dev)} dev and {len(val)} val questions\n")
question = next(q for q in val if q.subject == "middle_school_geography" and q.id == "6")
print(question.text)
for letter, option in question.option.items():
    print(f"{letter}. {option}")
print(f"right: {question.answer} ({question.about().chinese}, {question.about().category})")

# %% [markdown]
# ("The longest inland river of our country is …"; a river that never reaches a sea.) A language model
# does not choose, it continues a text. So the question becomes a text that a letter must follow:

# %%
# NBVAL_CHECK_OUTPUT
text = "以下是中国关于初中地理考试的单项选择题，请选出其中的正确答案。\n\n" + question.text
for letter, option in question.option.items():
    text += f"\n{letter}. {option}"
text += "\n答案："
print(text)
prompt = build_prompt("ceval-official", question)
assert prompt.text == text

# %% [markdown]
# Text to ids, ids to logits. Which id stands for the letter `A`? That is not a matter of looking it up in
# the vocabulary: what counts is the token that follows *this* text. So each letter is encoded together
# with the text, and what comes behind the text is its token.

# %%
BEFORE = "smollm2"
model, tokenizer = load_base(BEFORE)
ids = tokenizer(text)["input_ids"]
behind = [tokenizer(text + letter)["input_ids"][len(ids) :] for letter in LETTERS]
with torch.inference_mode():
    logits = model(torch.tensor([ids])).logits[0, -1]
four = [logits[token].item() for (token,) in behind]
whole = logits.softmax(-1)
for letter, (token,), value in zip(LETTERS, behind, four, strict=True):
    print(f"{letter}: token {token}, logit {value:.3f}, probability {whole[token]:.4f}")
chosen = LETTERS[four.index(max(four))]
print(f"{len(ids)} tokens were read; the answer is {chosen}, right is {question.answer}")
print(f"on the four letters together: {sum(whole[token].item() for (token,) in behind):.1%}")

# %%
scored = score_letters(model, tokenizer, question, prompt, "bare")
assert scored.letter == chosen and np.allclose(scored.logits, four, atol=1e-4)

# %% [markdown]
# The package does the same; and where a tokenizer would join the letter to the colon before it, or needs two
# tokens for a letter, it takes that into account, or says that it cannot.
#
# **Exercise 9.1.** The score looks at the four logits alone. Write `among_four(logits)`: four logits to
# four shares 份额 that add up to one.

# %%
# NBVAL_CHECK_OUTPUT
among_four = ...
lab.check("9.1", among_four)


# %% tags=["solution"]
def among_four(logits):
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


# %% tags=["wrong-solution"]
def among_four(logits):
    return [value / sum(logits) for value in logits]


# %% tags=["wrong-solution"]
def among_four(logits):
    return [math.exp(value) for value in logits]


# %%
shares = torch.tensor(four).softmax(-1).tolist()
bars = {
    letter: {"of the whole vocabulary": whole[token].item(), "among the four": share}
    for letter, (token,), share in zip(LETTERS, behind, shares, strict=True)
}
plots.plot_bars(
    bars,
    title=f"One question, four letters: {chosen} leads with {max(shares):.0%} of what the four share",
    xlabel="probability of the next token; the dashed line is a quarter",
    reference=CHANCE,
)
plt.show()

# %% [markdown]
# *Alternative text:* for each letter two bars: its probability as the next token, and its share among the
# four letters. The shares lie around the dashed line of a quarter.
#
# Nothing is drawn at random here, so the same model gives the same letter on every machine, but for
# rounding. The original project drew its letter from a distribution and, where it found none, took a random
# letter without a seed: about a quarter of what could not be read counted as right.

# %% [markdown]
# ## 2. Why five shots
#
# Before the question come five others with their answers. They are on the same subject, but they hardly
# teach it. What they show is the *form*: after `答案：` comes one letter, with no space before it. A model
# may not know that, and go on in another way. How much of its probability lies on the four letters?


# %%
def next_token(question, shots):
    """What the model expects behind a question with so many demonstrations."""
    prompt = build_prompt("ceval-official", question, choose_shots(dev, question, shots))
    letters = letter_ids(tokenizer, prompt)
    with torch.inference_mode():
        logits = model(torch.tensor([letters.context]), logits_to_keep=1).logits[0, -1]
    likely = logits.softmax(-1)
    four = likely[list(letters.ids)]
    return {
        "subject": question.subject,
        "shots": shots,
        "tokens": len(letters.context),
        "on the four letters": round(four.sum().item(), 4),
        "likeliest token": repr(tokenizer.decode([likely.argmax().item()])),
        "letter": LETTERS[four.argmax().item()],
        "right": question.answer,
    }


# One question from each of several subjects, and each with several numbers of shots.
firsts = [questions.select(split="val", subject=s)[0] for s in questions.subjects]
few = firsts[:: max(1, len(firsts) // profile["ceval_by_hand"])][: profile["ceval_by_hand"]]
expected = [next_token(one, shots) for one in few for shots in profile["ceval_shots"]]
results.save("09_shots", expected, seed=0, model=BEFORE)

# %%
lines = {}
for one in few:
    mine = [row for row in expected if row["subject"] == one.subject]
    lines[one.about().chinese] = ([r["shots"] for r in mine], [r["on the four letters"] for r in mine])
means = {n: np.mean([y[x.index(n)] for x, y in lines.values()]) for n in profile["ceval_shots"]}
low, high = profile["ceval_shots"][0], profile["ceval_shots"][-1]
plots.plot_lines(
    lines,
    title=f"The letters have {means[low]:.0%} of the probability at {low} shots, {means[high]:.0%} at {high}",
    xlabel="demonstrations before the question",
    ylabel="probability that a letter follows",
    ylim=(0, 1.02),
    xticks=profile["ceval_shots"],
)
plt.show()

# %% [markdown]
# *Alternative text:* lines over the number of shots, one for each subject: the probability that one of the
# four letters comes next, from no shots on the left to the most shots on the right.
#
# Four lettered options and `答案：` already suggest a letter. The first demonstration removes most of the
# doubt that is left, the others hardly any: shots teach the form. They do not settle *which* letter: in the
# table it changes with the number of shots, now to the right one, now away from it. (SmolLM2 is tuned to
# follow instructions; a base model has more of the form to learn. Five is a convention, as in MMLU.)
#
# The highest of four logits can be read off either way, even where the model would rather write something
# else. That is why a score without shots is defined for any model, and why it measures partly whether the
# form was understood. In the published table of section 7 base models gain from shots, and tuned ones may
# lose.

# %% [markdown]
# ## 3. The prefix is read once
#
# Header and five shots are the same for every question of a subject, and they are most of the text. A model
# that reads from left to right keeps keys and values of what it has read (chapter 08). So it can read the
# prefix once, keep its KV cache, and read each question behind it.

# %%
subject = profile["ceval_subjects"][0]
asked = questions.select(split="val", subject=subject)[: profile["ceval_alone"]]
prompts = [build_prompt("ceval-official", q, choose_shots(dev, q, 5)) for q in asked]
contexts = [letter_ids(tokenizer, prompt).context for prompt in prompts]
# Of ids, not of text: a tokenizer may join characters across the border.
shared = common_start(contexts)
tails = [context[shared:] for context in contexts]
alone, once = sum(map(len, contexts)), shared + sum(map(len, tails))
print(f"{load_subjects()[subject].chinese}: {shared} tokens are shared by {len(asked)} questions")
print(f"each question alone: {alone:,} tokens; the prefix once: {once:,}; {alone / once:.1f} times fewer")


# %%
def draw_tokens(axes, title, rows):
    """Rows of (start, length, colour, words) as boxes, to the scale of their tokens."""
    for place, row in enumerate(rows):
        for start, length, colour, words in row:
            box = Rectangle((start, -place - 0.4), length, 0.8, facecolor=colour, edgecolor="white")
            axes.add_patch(box)
            axes.text(start + length / 2, -place, words, ha="center", va="center", color="white", fontsize=8)
    axes.set(xlim=(0, max(map(len, contexts)) * 1.02), ylim=(-len(rows) + 0.4, 0.6), yticks=[])
    axes.set_title(title, fontsize=10)
    axes.grid(False)
    axes.spines["left"].set_visible(False)


grey, blue = "#555555", plots.PALETTE[0]
prefix_box = (0, shared, grey, "前缀 prefix: header and five shots")
question_boxes = [(shared, len(tail), blue, f"题 {n}") for n, tail in enumerate(tails[:4], start=1)]
figure, (above, below) = plt.subplots(2, 1, figsize=(8.5, 4.2), layout="constrained", sharex=True)
draw_tokens(above, "each question alone", [[prefix_box, box] for box in question_boxes])
draw_tokens(below, "the prefix once", [[prefix_box, question_boxes[0]], *([b] for b in question_boxes[1:])])
below.set_xlabel("position in the text, tokens")
part = shared * len(asked) / alone
figure.suptitle(f"{part:.0%} of the tokens of {len(asked)} questions are the same prefix", x=0.01, ha="left")
plt.show()

# %% [markdown]
# *Alternative text:* above, four rows, each a long grey box (the prefix) and a short blue one (a question).
# Below, the grey box stands in the first row only; the other three blue boxes begin where it ends.
#
# In code it is a loop: read the prefix, then each question with the cache, and cut the cache back.


# %%
@torch.inference_mode()
def with_one_prefix(prefix, tails):
    """Logits behind each tail; the prefix is read once."""
    cache = model(torch.tensor([prefix]), use_cache=True, logits_to_keep=1).past_key_values
    for tail in tails:
        out = model(torch.tensor([tail]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        yield out.logits[0, -1]
        cache.crop(-len(tail))


token = letter_ids(tokenizer, prompts[0]).ids
started = time.perf_counter()
by_hand = [row[list(token)].tolist() for row in with_one_prefix(contexts[0][:shared], tails)]
seconds = {"the prefix once, by hand": time.perf_counter() - started}
runs = {}
for way, share in (("each question alone", False), ("the package", True)):
    started = time.perf_counter()
    runs[way] = score(model, tokenizer, asked, dev=dev, shots=5, shared=share, progress=False)
    seconds[way] = time.perf_counter() - started

# %%
logits_of = {way: [list(row["logits"].values()) for row in run.rows] for way, run in runs.items()}
logits_of["the prefix once, by hand"] = by_hand
plain = np.array(logits_of["each question alone"])
rows = []
for way, values in logits_of.items():
    difference = np.abs(np.array(values) - plain).max()
    assert difference < 1e-3 and (np.argmax(values, axis=1) == plain.argmax(axis=1)).all()
    rows.append(
        {
            "way": way,
            "questions": len(asked),
            "tokens read": alone if way == "each question alone" else once,
            "seconds": round(seconds[way], 2),
            "questions per second": round(len(asked) / seconds[way], 2),
            "largest difference of a logit": f"{difference:.1e}",
        }
    )
results.save("09_prefix", rows, seed=0, model=BEFORE)

# %% [markdown]
# The same letters, and logits that differ by rounding alone. The package also reads the questions of a
# subject together, end to end, without padding, and multiplies the head with one position each. Its time
# here holds what is done before anything is read: prompts, letters, hashes. On the whole of C-Eval the
# questions of a subject are many more than here, and so is the gain.
#
# **Exercise 9.2.** Write `times_fewer(prefix, question, questions)`: how many times fewer tokens are read if
# the prefix, of so many tokens, is read once for so many questions of so many tokens each?

# %%
# NBVAL_CHECK_OUTPUT
times_fewer = ...
lab.check("9.2", times_fewer)


# %% tags=["solution"]
def times_fewer(prefix, question, questions):
    return questions * (prefix + question) / (prefix + questions * question)


# %% tags=["wrong-solution"]
def times_fewer(prefix, question, questions):
    return (prefix + question) / question


# %% tags=["wrong-solution"]
def times_fewer(prefix, question, questions):
    return questions


# %% [markdown]
# ## 4. SmolLM2 before and after
#
# Now the question of the course: does the model that was adapted to Chinese know more? `smollm2-zh` is
# SmolLM2 after this course's own adaptation: a longer vocabulary, and training on Chinese text. Five shots,
# the official prompt, some of the subjects.

# %%
AFTER = "smollm2-zh"
asked = [q for s in profile["ceval_subjects"] for q in questions.select(split="val", subject=s)]
asked = [q for q in asked if int(q.id) < profile["ceval_questions"]]
runs, seconds = {}, {}
for name in (BEFORE, AFTER):
    base, its_tokenizer = (model, tokenizer) if name == BEFORE else load_base(name)
    started = time.perf_counter()
    runs[name] = score(base, its_tokenizer, asked, dev=dev, shots=5, name="ceval-lab", model_name=name)
    seconds[name] = time.perf_counter() - started
reports = {name: make_report(run.rows, run.settings) for name, run in runs.items()}
reports[AFTER].table("all", "category")

# %%
rows = []
for name, report in reports.items():
    part = report.part("all")
    rows.append(
        {
            "model": name,
            "questions": part.questions,
            "right, %": round(100 * part.average_by_question.value, 1),
            "from": round(100 * part.average_by_question.low, 1),
            "to": round(100 * part.average_by_question.high, 1),
            "always one letter, %": round(100 * part.always[part.best_letter], 1),
            "tokens of a prompt": round(np.mean([row["tokens"] for row in runs[name].rows])),
            "fewer than five shots": report.fewer_shots,
            "seconds": round(seconds[name], 1),
            **{letter: report.predicted[letter] for letter in LETTERS},
        }
    )
results.save("09_scores", rows, seed=0, model=f"{BEFORE}, {AFTER}", prompt="ceval-official", shots=5)

# %%
figure, axes = plt.subplots(figsize=(8.5, 2.4), layout="constrained")
for place, row in enumerate(rows):
    value = row["right, %"]
    error = [[max(0, value - row["from"])], [max(0, row["to"] - value)]]
    axes.errorbar(value, place, xerr=error, fmt=plots.MARKERS[place], color=plots.PALETTE[place], capsize=4)
axes.axvline(100 * CHANCE, color="#555555", linestyle="--", linewidth=0.9)
inside = sum(row["from"] <= 100 * CHANCE <= row["to"] for row in rows)
axes.set_yticks(range(len(rows)), [row["model"] for row in rows])
axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 100))
axes.set_xlabel("right answers of the course's own questions, %, with 95 % intervals; dashed: chance")
axes.set_title(f"{len(asked)} questions: chance lies within {inside} of {len(rows)} intervals")
plt.show()

# %% [markdown]
# *Alternative text:* one point with a wide horizontal interval for each of the two models, and a dashed line
# at 25 %.
#
# A model of 135 million parameters sits near chance, and an interval that holds the chance line cannot
# tell it from a die with four sides. What the table does show are *habits*: which letters a model chooses
# when it does not know.

# %%
bars = {
    letter: {name: report.predicted[letter] / len(asked) for name, report in reports.items()}
    for letter in LETTERS
}
top = max(LETTERS, key=lambda letter: bars[letter][BEFORE])
right = sum(q.answer == top for q in asked) / len(asked)
plots.plot_bars(
    bars,
    title=f"{BEFORE} answers {top} to {bars[top][BEFORE]:.0%} of the questions; it is right in {right:.0%}",
    xlabel="share of the questions with this answer; dashed: each letter is right equally often",
    reference=CHANCE,
)
plt.show()

# %% [markdown]
# *Alternative text:* for each letter two bars, the share of the questions to which each of the two models
# gives this letter, and a dashed line at a quarter.
#
# A habit that happens to fit the letters of a set scores points with no knowledge at all. The course's set
# is balanced within each subject; C-Eval's val is not quite:

# %%
# NBVAL_CHECK_OUTPUT
right_in_val = {"A": 310, "B": 338, "C": 344, "D": 354}  # counted in C-Eval's val
favourite = max(right_in_val, key=right_in_val.get)
print(f"always {favourite}: {right_in_val[favourite] / sum(right_in_val.values()):.1%}")

# %% [markdown]
# Whether a model's choice follows the content or the letter is seen when the options change places:
# `chinese-llama-lab ceval-probe position`.
#
# Both models answered the *same* questions. So they are compared question by question: only those count on
# which one is right and the other wrong.

# %%
paired = compare_runs(
    runs[AFTER].rows, runs[BEFORE].rows, settings=(runs[AFTER].settings, runs[BEFORE].settings)
)
print(f"after against before: {paired}")
print(f"the same letter on {paired.same_letter} of {paired.questions} questions")
differ = (paired.only_first + paired.only_second) / paired.questions
print(f"one right, the other wrong: {differ:.1%} of the questions")
print("the paired test sees a difference" if paired.p < 0.05 else "the paired test sees no difference")
shorter = 1 - rows[1]["tokens of a prompt"] / rows[0]["tokens of a prompt"]
print(f"what a prompt costs: {shorter:.0%} fewer tokens after the adaptation")

# %% [markdown]
# The last line is a gain that needs no test: the same five shots and question in fewer tokens, so that more
# of them fit into a context, and the run takes less time.

# %% [markdown]
# ## 5. How many questions for two points?
#
# Suppose that the adaptation did help, by two points: from 25 to 27 %. How many questions does it take to
# see that? Three ways to ask, each from the normal approximation 正态近似: how far a share of $n$ answers
# strays is $\sqrt{p(1-p)/n}$; two shares stray $\sqrt2$ times as far; and on the same questions only the
# share $d$ on which one is right and the other wrong can stray, $\sqrt{d/n}$. A test that asks for 95 %
# certainty sees a difference of just so many deviations half of the time. To see it in 80 % of such
# experiments (the power 检验功效) takes some deviations more, and so more questions.

# %%
points = 0.02
sure, powerful = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.8)
measured = max(differ, points)  # of a difference of two points at least two in a hundred differ
spreads = {
    "one score, against a known 25 %": CHANCE * (1 - CHANCE),
    "two models, each with questions of its own": 2 * CHANCE * (1 - CHANCE),
    f"two models, the same questions, {measured:.0%} differ": measured,
}
needed = []
for what, spread in spreads.items():
    half, most = (math.ceil(z**2 * spread / points**2) for z in (sure, sure + powerful))
    needed.append(
        {"to see 2 points": what, "seen half of the time": f"{half:,}", "in 80 % of cases": f"{most:,}"}
    )
print(f"{sure:.2f} deviations for 95 %, and {powerful:.2f} more for 80 % of the experiments")
results.save("09_questions_needed", needed, seed=0, model=f"{BEFORE}, {AFTER}")

# %% [markdown]
# And how many are there? Then a check of the last row: draw pairs of runs in which the one model really is
# two points better, and let the exact test look at them.

# %%
# NBVAL_CHECK_OUTPUT
subjects = load_subjects()
there = {"the course's val": len(val)}
for split in ("val", "test"):
    there[f"C-Eval {split}"] = sum(subject.counts[split] for subject in subjects.values())
print(", ".join(f"{name}: {count:,}" for name, count in there.items()))

# %%
count = math.ceil((sure + powerful) ** 2 * measured / points**2)
draws = np.random.default_rng(0).multinomial(
    count, [(measured + points) / 2, (measured - points) / 2, 1 - measured], size=profile["ceval_trials"]
)
seen = np.mean([sign_test(int(better), int(worse)) < 0.05 for better, worse, _ in draws])
print(f"{count:,} questions: the difference is seen in {seen:.0%} of {len(draws)} experiments")

# %%
sizes = [2**power for power in range(5, 15)]
half_widths = {
    "one score of 25 %": [50 * (e.high - e.low) for n in sizes for e in [average_by_question(n // 4, n)]],
    f"difference of two models, the same questions, {measured:.0%} differ": [
        50 * (e.high - e.low)
        for n in sizes
        for e in [paired_difference(round(n * measured / 2), round(n * measured / 2), n)]
    ],
}
last = half_widths["one score of 25 %"][-1]
figure, axes = plots.plot_lines(
    {name: (sizes, widths) for name, widths in half_widths.items()},
    title=f"With {sizes[-1]:,} questions a score of 25 % is known to ±{last:.1f} points",
    xlabel="questions",
    ylabel="half of the 95 % interval, points",
    xscale="log",
    ylim=(0, 20),
)
axes.axhline(100 * points, color="#555555", linestyle="--", linewidth=0.9)
for label, size in {"this run": len(asked), **there}.items():
    axes.axvline(size, color="#999999", linewidth=0.9)
    axes.annotate(label, (size, 19.5), rotation=90, ha="right", va="top", fontsize=8, color="#555555")
plt.show()

# %% [markdown]
# *Alternative text:* two falling curves over the number of questions on a logarithmic axis, a dashed line at
# two points, and vertical lines at the sizes of this run and of three sets of questions.
#
# **Exercise 9.3.** Write `questions_for(share, margin)`: how many questions until a score of `share` (such
# as 0.25) is known to ± `margin` (such as 0.02), at 95 %? Use 1.96 and the approximation above; round up.

# %%
# NBVAL_CHECK_OUTPUT
questions_for = ...
lab.check("9.3", questions_for)


# %% tags=["solution"]
def questions_for(share, margin):
    return math.ceil(1.96**2 * share * (1 - share) / margin**2)


# %% tags=["wrong-solution"]
def questions_for(share, margin):
    return math.ceil(1.96 * math.sqrt(share * (1 - share)) / margin)


# %% tags=["wrong-solution"]
def questions_for(share, margin):
    return math.ceil(share * (1 - share) / margin**2)


# %% [markdown]
# ## 6. Choices that move a score
#
# **The letter's token.** In C-Eval's shots the letter follows the colon directly: `答案：A`. The official
# code nevertheless looks at the token of an A *behind a space*. lm-evaluation-harness writes a space into its
# shots and looks there. The original project adds up both logits. Same model, same questions, same prompt:

# %%
some = [q for q in asked if q.subject in profile["ceval_subjects"][: profile["ceval_form_subjects"]]]
places = {(q.subject, q.id) for q in some}
spaced = score(model, tokenizer, some, dev=dev, shots=5, form="spaced", progress=False)
bare = [row for row in runs[BEFORE].rows if (row["subject"], row["id"]) in places]
found = {"bare": [row["logits"] for row in bare], "spaced": [row["logits"] for row in spaced.rows]}
found["both, added"] = [
    {letter: one[letter] + other[letter] for letter in LETTERS}
    for one, other in zip(found["bare"], found["spaced"], strict=True)
]
answers = {form: [max(LETTERS, key=one.get) for one in rows] for form, rows in found.items()}
table = []
for form, letters in answers.items():
    right = sum(letter == q.answer for letter, q in zip(letters, some, strict=True))
    estimate = average_by_question(right, len(some))
    changed = sum(a != b for a, b in zip(letters, answers["bare"], strict=True))
    histogram = {letter: letters.count(letter) for letter in LETTERS}
    row = {"letter token": form, "score": str(estimate), "other letter than bare": changed}
    table.append(row | histogram)
results.save("09_letter_tokens", table, seed=0, model=BEFORE, questions=len(some))

# %%
rights = [sum(a == q.answer for a, q in zip(mine, some, strict=True)) for mine in answers.values()]
print(f"best less worst: {100 * (max(rights) - min(rights)) / len(some):.1f} points, {len(some)} questions")

# %% [markdown]
# Not one weight was touched. Whoever compares such numbers from two papers compares the codes as well. The
# package works out the token for each prompt and writes it into `run.json`.
#
# **The average.** By question 按题平均 each question counts the same; by subject 按科平均 each subject does.
# C-Eval's own table averages by subject, Chinese-LLaMA-Alpaca by question. Here all subjects have
# equally many questions, so the two agree. Had they as many as in C-Eval, with the same share right:

# %%
averages = []
for name, report in reports.items():
    shares = {key: report.part(key).average_by_question.value for key in profile["ceval_subjects"]}
    row = {"model": name, "by subject": f"{100 * np.mean(list(shares.values())):.1f} %"}
    for split in ("val", "test"):
        weights = [subjects[key].counts[split] for key in shares]
        mean = np.average(list(shares.values()), weights=weights)
        row[f"by question, sizes of {split}"] = f"{100 * mean:.1f} %"
    averages.append(row)
sizes_of_val = [subject.counts["val"] for subject in subjects.values()]
print(f"subjects of C-Eval's val have {min(sizes_of_val)} to {max(sizes_of_val)} questions")
results.save("09_averages", averages, seed=0, model=f"{BEFORE}, {AFTER}")

# %% [markdown]
# Two choices, both defensible, and the number moves. A report has to name its average.
#
# **Exercise 9.4.** Write `by_subject(counts)`: from a list of (right, total), one pair a subject, to the
# average by subject.

# %%
# NBVAL_CHECK_OUTPUT
by_subject = ...
lab.check("9.4", by_subject)


# %% tags=["solution"]
def by_subject(counts):
    return sum(right / total for right, total in counts) / len(counts)


# %% tags=["wrong-solution"]
def by_subject(counts):
    return sum(right for right, _ in counts) / sum(total for _, total in counts)


# %% tags=["wrong-solution"]
def by_subject(counts):
    return max(right / total for right, total in counts)


# %% [markdown]
# ## 7. What was published, and what an article says
#
# `data/ceval_published.csv` holds the scores that Chinese-LLaMA-Alpaca and its successors published, and
# those of an article on a fork of the first. First the published ones, with no shots and with five:

# %%
# NBVAL_CHECK_OUTPUT
published = results.read_table(data_dir() / "ceval_published.csv")
claims = [row for row in published.rows if "claim under test" in row["source"]]
theirs = [row for row in published.rows if row not in claims]
wide = {}
for row in theirs:
    if row["shots"] in ("0", "5"):
        wide.setdefault(row["model"], {})[f"{row['split']}, {row['shots']} shots"] = row["score"]
columns = [f"{split}, {shots} shots" for split in ("valid", "test") for shots in (0, 5)]
results.table(
    "published", [{"model": m, **{c: scores.get(c, "") for c in columns}} for m, scores in wide.items()]
)

# %%
# NBVAL_CHECK_OUTPUT
five_less_none = {
    m: float(s["valid, 5 shots"]) - float(s["valid, 0 shots"]) for m, s in wide.items() if len(s) > 1
}
best, worst = (pick(five_less_none, key=five_less_none.get) for pick in (max, min))
print(f"five shots instead of none: {five_less_none[best]:+.1f} points for {best},")
print(f"{five_less_none[worst]:+.1f} for {worst}")
same = [row["score"] for row in theirs if row["model"] == "Chinese-Alpaca-2-7B" and "issue" in row["source"]]
print(f"one model, two reports: {same[0]} and {wide['Chinese-Alpaca-2-7B']['valid, 5 shots']}")
val_size = there["C-Eval val"]
for kind in ("Chinese-LLaMA-2-7B", "Chinese-LLaMA-2-7B, 8-bit", "Chinese-LLaMA-2-7B, 4-bit"):
    share = float(wide[kind]["valid, 5 shots"]) / 100
    print(f"{kind:<26} {average_by_question(round(share * val_size), val_size)}, {val_size:,} questions")

# %% [markdown]
# Base models gain from shots, some tuned ones lose. The two reports of one model lie further apart than the
# 7B and the 13B of its kind: same weights, other prompt. And what four bits cost lies at the edge of what so
# many questions can show.
#
# The article's figures, beside everything that was published for a model of the same kind and size. The
# fork is one of the first project; version 2 stands beside it, because an article may mix them up.


# %%
def scores_of(family, size, version):
    """All published scores of Chinese-LLaMA or Chinese-Alpaca, of one version."""
    of_version = {
        "version 1": lambda row: (
            row["source"] == "ymcui/Chinese-LLaMA-Alpaca" or row["source"].startswith("arXiv 2304.08177")
        ),
        "version 2": lambda row: row["source"] == "ymcui/Chinese-LLaMA-Alpaca-2",
        "C-Eval's table": lambda row: row["source"].startswith("hkust-nlp"),
    }[version]
    named = [row for row in theirs if of_version(row) and row["size"] == size and "bit" not in row["model"]]
    return [float(row["score"]) for row in named if row["model"].startswith(f"Chinese-{family}")]


# %%
versions = ("version 1", "version 2", "C-Eval's table")
compared = []
for row in claims[:4]:
    family = row["model"].split("-")[1]
    claimed, by_version = float(row["score"]), {v: scores_of(family, row["size"], v) for v in versions}
    low, high = min(by_version["version 1"]), max(by_version["version 1"])
    shown = {
        v: " to ".join(map(str, dict.fromkeys((min(s), max(s))))) if s else "" for v, s in by_version.items()
    }
    verdict = "within version 1" if low <= claimed <= high else f"{claimed - high:+.1f} above version 1"
    estimate = average_by_question(round(claimed / 100 * val_size), val_size)
    interval = f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
    compared.append(
        {
            "model": row["model"],
            "claimed": claimed,
            **shown,
            "verdict": verdict,
            "95 % interval of the claim": interval,
        }
    )
results.save("09_published", compared, model="published figures")

# %%
figure, axes = plt.subplots(figsize=(8.5, 3.2), layout="constrained")
for place, row in enumerate(claims[:4]):
    for number, version in enumerate(versions):
        found = scores_of(row["model"].split("-")[1], row["size"], version)
        colour, marker = plots.PALETTE[number], plots.MARKERS[number]
        label = {"label": version} if place == len(claims[:4]) - 1 else {}
        axes.plot(found, [place + 0.15 * (number - 1)] * len(found), marker, color=colour, **label)
    said = {"label": "the article"} if place == 0 else {}
    axes.plot(float(row["score"]), place, "X", color="#000000", markersize=9, **said)
axes.axvline(100 * CHANCE, color="#555555", linestyle="--", linewidth=0.9)
axes.set_yticks(range(4), [row["model"] for row in claims[:4]])
axes.set(ylim=(3.6, -0.6), xlabel="C-Eval, % (valid and test, 0 and 5 shots); dashed: chance")
inside = sum(row["verdict"] == "within version 1" for row in compared)
axes.set_title(f"{inside} of {len(compared)} of the article's scores lie within what version 1 published")
axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
plt.show()

# %% [markdown]
# *Alternative text:* for each of four models a row of points: the scores published for version 1, for version
# 2 and in C-Eval's own table, and a black cross for the article's figure, which lies to the right of
# all points of version 1.
#
# The article names neither split nor prompt. How do its figures stand to version 2, another model with other
# data?

# %%
# NBVAL_CHECK_OUTPUT
for version in versions[:2]:
    fits = 0
    for row in claims[:4]:
        found = scores_of(row["model"].split("-")[1], row["size"], version)
        fits += min(found) <= float(row["score"]) <= max(found)
    print(f"{version}: {fits} of 4 figures lie within its published scores")

# %% [markdown]
# Its other figures, native models and a gap "roughly 40 %":

# %%
# NBVAL_CHECK_OUTPUT
fork = next(float(row["score"]) for row in claims if row["model"].startswith("the fork"))
others = [row for row in claims if row["shots"] == "not stated" and "fork" not in row["model"]]
native = {row["model"]: float(row["score"]) for row in others}
mean = sum(native.values()) / len(native)
print(", ".join(f"{name} {value}" for name, value in native.items()))
print(f"their mean is {mean:.1f}; {fork:.0f} is {mean - fork:.1f} points below it, or {1 - fork / mean:.0%}")
print(f"above chance: {mean - 25:.1f} and {fork - 25:.1f} points, {1 - (fork - 25) / (mean - 25):.0%} less")

# %% [markdown]
# A gap in per cent and a gap in points are two numbers for one thing. Since 25 % is what knowing nothing
# scores, the part above chance is the fairer comparison, and there the gap is larger still. Chapter 10 gives
# each claim its verdict.

# %% [markdown]
# ## 8. The real C-Eval, on a model from the hub
#
# The same functions, other names. C-Eval is under CC-BY-NC-SA 4.0: read it where it is published. A 7B model
# wants a GPU; which one holds it in which dtype is in chapter 08's table.
#
# ```sh
# # val, from the hub: Chinese-Alpaca-2-7B, asked as its authors asked
# chinese-llama-lab ceval --model hfl/chinese-alpaca-2-7b --kind bf16 --questions ceval/ceval-exam \
#     --prompt chinese-llama-alpaca-v2 --shots 5 --form both --names key --out runs/alpaca
#
# # a folder or a zip that you have, in four bits; a run that was stopped goes on with --resume
# chinese-llama-lab ceval --model hfl/chinese-llama-2-7b --kind nf4 --questions ceval-exam.zip \
#     --prompt chinese-llama-alpaca --shots 5 --form both --names key --out runs/llama-nf4
#
# # two runs over the same questions: is one better, or is it chance?
# chinese-llama-lab ceval-report runs/alpaca runs/llama-nf4
#
# # the test set, and the file that C-Eval's site scores: runs/test/submission.json
# chinese-llama-lab ceval --model hfl/chinese-alpaca-2-7b --kind bf16 --questions ceval/ceval-exam \
#     --split test --prompt chinese-llama-alpaca-v2 --shots 5 --form both --out runs/test
#
# # how much of a score is the prompt, and how much the order of the options?
# chinese-llama-lab ceval-probe prompts --model hfl/chinese-alpaca-2-7b --kind bf16 \
#     --questions ceval/ceval-exam --out runs/prompts
# chinese-llama-lab ceval-probe position --model hfl/chinese-alpaca-2-7b --kind bf16 \
#     --questions ceval/ceval-exam --out runs/position
#
# # this chapter's two models, on all of the course's own questions
# chinese-llama-lab ceval --model smollm2 --out runs/before
# chinese-llama-lab ceval --model smollm2-zh --out runs/after
# chinese-llama-lab ceval-report runs/after runs/before
# ```
#
# Several GPUs share the work: put `accelerate launch --multi_gpu --num_processes 2 -m chinese_llama_lab` in
# the place of `chinese-llama-lab`. The published code draws its letter with a temperature and a penalty, so
# its scores can be met closely, not to the digit.

# %% [markdown]
# ## What we measured

# %%
results.load("09_prefix")

# %%
results.load("09_scores")

# %%
results.load("09_questions_needed")

# %%
results.load("09_letter_tokens")

# %%
results.load("09_published")

# %% [markdown]
# ## What can go wrong
#
# - *Scoring a token that nobody would write.* `A` and ` A` are two tokens; a model that has seen the shots
#   expects the first behind `：`.
# - *Shots that do not fit.* A short context does not hold five long shots in every tokenizer. The package
#   drops them from the left and counts them; cutting the text anywhere else destroys it.
# - *Guessing where nothing was found.* An answer that cannot be extracted is wrong. A random letter in its
#   place is right in a quarter of the cases.
# - *A best score out of many prompts.* It was chosen on the questions that it is reported on.
# - *Comparing runs over different questions*, or a val with a test score.
# - *Reading a table's last digit.* Look at the interval: even on the whole of val it is several points wide.
# - *Questions that were in the training text.* `chinese-llama-lab ceval-probe contamination` looks whether
#   the published order of the options is cheaper than others.
# - *Options such as `None`, `NA` or `1`.* A table reader that turns them into numbers or blanks asks another
#   question.
#
# ## Where this came from
#
# - C-Eval: [arXiv 2305.08322](https://arxiv.org/abs/2305.08322); CMMLU: [arXiv
#   2306.09212](https://arxiv.org/abs/2306.09212); five shots, as in MMLU: [arXiv
#   2009.03300](https://arxiv.org/abs/2009.03300)
# - prompts and scores: [Chinese-LLaMA-Alpaca](https://github.com/ymcui/Chinese-LLaMA-Alpaca),
#   [-2](https://github.com/ymcui/Chinese-LLaMA-Alpaca-2) and
#   [-3](https://github.com/ymcui/Chinese-LLaMA-Alpaca-3); the paper: [arXiv
#   2304.08177](https://arxiv.org/abs/2304.08177); two scores of one model: [issue
#   253](https://github.com/ymcui/Chinese-LLaMA-Alpaca-2/issues/253)
# - [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness), task `ceval-valid`
# - models that favour a letter: [arXiv 2309.03882](https://arxiv.org/abs/2309.03882)
# - the interval: Wilson, [doi
#   10.1080/01621459.1927.10502953](https://doi.org/10.1080/01621459.1927.10502953); the paired test: McNemar,
#   [doi 10.1007/BF02295996](https://doi.org/10.1007/BF02295996)
#
# **Next:** [10 Claims and limits](10_claims_and_limits.ipynb) 主张与局限: every claim measured again.
