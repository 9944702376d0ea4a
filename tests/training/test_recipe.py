from __future__ import annotations

import json

import pytest

from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.lora import expand
from chinese_llama_lab.training.recipe import Recipe, load_recipe, recipe_names, recipe_stages

LLAMA = 6_738_415_616
MLP, ATTENTION = 2 * (4096 + 11008) + (11008 + 4096), 4 * 2 * 4096
MATRIX = 49953 * 4096


def every():
    for name in recipe_names():
        yield from ((name, stage) for stage in recipe_stages(name) or [None])


def test_what_is_shipped():
    assert set(recipe_names()) == {
        "alpaca-lora-7b",
        "chinese-alpaca-7b",
        "chinese-llama-2-7b",
        "chinese-llama-7b",
        "chinese-llama-plus-7b",
        "smollm2-zh",
        "smollm2-zh-instruct",
    }
    assert recipe_stages("chinese-llama-7b") == ["embeddings", "lora", "instruct"]
    for name, stage in every():
        recipe = load_recipe(name, stage)
        assert recipe.source and recipe.title and recipe.base and recipe.name == name
        assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("name", "parameters", "trainable", "percent"),
    [
        ("chinese-llama-7b:embeddings", LLAMA + 2 * 17953 * 4096, MATRIX, 2.97),
        (
            "chinese-llama-7b:lora",
            LLAMA + 2 * 17953 * 4096 + 32 * 8 * ATTENTION,
            2 * MATRIX + 32 * 8 * ATTENTION,
            6.06,
        ),
        (
            "chinese-llama-7b:instruct",
            LLAMA + 2 * 17954 * 4096 + 32 * 8 * (ATTENTION + MLP),
            2 * (MATRIX + 4096) + 32 * 8 * (ATTENTION + MLP),
            6.22,
        ),
        ("chinese-alpaca-7b", 6_905_483_264, 429_211_648, 6.22),
        ("chinese-llama-plus-7b", 6_905_475_072, 429_203_456, 6.22),
        ("chinese-llama-2-7b", LLAMA + 2 * 23296 * 4096 + 64 * 32 * (ATTENTION + MLP), None, 8.65),
        ("alpaca-lora-7b", LLAMA + 4_194_304, 4_194_304, 0.06),
        ("smollm2-zh", 134_515_008 + 4_884_480, 4_884_480, 3.50),
        ("smollm2-zh-instruct", 134_515_008 + 4_884_480, 4_884_480, 3.50),
    ],
)
def test_expanded_at_full_size_on_the_meta_device(name, parameters, trainable, percent):
    counted = expand(load_recipe(name))
    assert counted.parameters == parameters
    assert trainable is None or counted.trainable == trainable
    assert round(100 * counted.share, 2) == percent
    assert sum(counted.by_kind.values()) == counted.trainable


def test_values_as_published():
    first = load_recipe("chinese-llama-7b", "embeddings")
    assert (first.rank, first.learning_rate, first.batch, first.steps) == (0, 2e-4, 1024, 3000)
    second = load_recipe("chinese-llama-2-7b")
    assert (second.rank, second.alpha, second.vocabulary) == (64, 128, 55296)
    lora = load_recipe("alpaca-lora-7b")
    assert (lora.alpha, lora.learning_rate, lora.block, lora.batch, lora.epochs) == (16, 3e-4, 256, 128, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rnak = 8", r"no key 'rnak'(.|\n)*did you mean 'rank'\? allowed: name, task"),
        ("rank = '8'", r"rank is '8', which is str(.|\n)*a whole number"),
        ("rank = true", r"rank is True(.|\n)*a whole number"),
        ("rank = -1", r"rank is -1(.|\n)*allowed: 0 or more, at most 4096"),
        ("learning_rate = 0", r"learning_rate is 0.0(.|\n)*more than 0, at most 1"),
        ("learning_rate = nan", r"learning_rate is nan(.|\n)*finite"),
        ("dora = 1", r"dora is 1(.|\n)*true or false"),
        ("targets = 'q_proj'", r"targets is 'q_proj'(.|\n)*list of texts"),
        ("schedule = 'cosin'", r"schedule is 'cosin'(.|\n)*cosine, linear, constant \(did you mean cosine"),
        ("template = 'v3'", r"template is 'v3'(.|\n)*v1, v2, alpaca, chat"),
        ("embedding_modules = ['wte']", r"names 'wte'(.|\n)*embed_tokens, lm_head"),
        ("batch = 6\nmicro_batch = 4", r"batch is 6 and micro_batch 4"),
        ("rank = 0\nembeddings = 'frozen'", r"nothing is trained"),
        ("rank = 0\ndora = true", r"rank is 0, and rslora, dora"),
        ("targets = []", r"targets is empty"),
        ("name = 'x'", r"does not name itself"),
        ("block = 512.0", r"block is 512.0(.|\n)*a whole number"),
        ("[architecture]\nvocab_size = 3", r"lacks hidden_size"),
        ("[architecture]\nlayers = 3", r"no key 'layers'"),
        ("rank == 3", r"not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(tmp_path, line, message):
    path = tmp_path / "own.toml"
    path.write_text(f"task = 'pretrain'\n{line}\n", encoding="utf-8")
    with pytest.raises(TrainingError, match=message):
        load_recipe(path)


def test_names_and_stages(tmp_path):
    with pytest.raises(TrainingError, match=r"no recipe 'smollm2-z'(.|\n)*did you mean smollm2-zh"):
        load_recipe("smollm2-z")
    with pytest.raises(TrainingError, match=r"none was named(.|\n)*chinese-llama-7b:embeddings"):
        load_recipe("chinese-llama-7b")
    with pytest.raises(TrainingError, match=r"no stage 'sft'"):
        load_recipe("chinese-llama-7b:sft")
    with pytest.raises(TrainingError, match="a single run"):
        load_recipe("smollm2-zh", "lora")
    with pytest.raises(TrainingError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")
    path = tmp_path / "own.toml"
    path.write_text("rank = 4", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"task is missing(.|\n)*pretrain, finetune"):
        load_recipe(path)


def test_replace_validates():
    recipe = load_recipe("smollm2-zh")
    assert recipe.replace(steps=7).steps == 7
    with pytest.raises(TrainingError, match="no key 'step'"):
        recipe.replace(step=7)
    with pytest.raises(TrainingError, match="steps is -7"):
        recipe.replace(steps=-7)
    assert recipe.replace(batch=8).accumulation(2) == 2
    with pytest.raises(TrainingError, match="multiple of 6"):
        recipe.accumulation(3)


def test_numbers_that_no_float_holds_are_refused():
    with pytest.raises(TrainingError, match="give a finite number"):
        load_recipe("smollm2-zh").replace(alpha=10**400)


def test_rows_of_no_matrix_are_refused():
    with pytest.raises(TrainingError, match="embedding_modules is empty"):
        load_recipe("smollm2-zh").replace(embedding_modules=[])
