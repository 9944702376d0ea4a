"""Whatever peft can put into an adapter: the merged model is the unmerged one, and peft's merged one."""

from __future__ import annotations

import random
import re
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from training.conftest import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from chinese_llama_lab.adapters import AdapterError, merge_adapters
from chinese_llama_lab.merging.settings import read_settings
from chinese_llama_lab.vocabulary.consistency import check_consistency

from .conftest import (
    RECIPE,
    edit,
    edit_json,
    key,
    load,
    save_adapter,
    save_base,
    save_with_peft,
    scores,
    tensors_of,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {tied: save_base(folder / str(tied), tied=tied, shard="20KB") for tied in (False, True)}


def agree(got, expected):
    return torch.allclose(got, expected, atol=1e-4) and torch.equal(got.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"embeddings": "frozen"},
        {"embeddings": "published"},
        {"rslora": True},
        {"dora": True},
        {"dora": True, "rslora": True, "targets": ("q_proj", "up_proj")},
        {"rank": 0},
    ],
    ids=str,
)
def test_recipes(tmp_path, bases, changes, tied):
    base = bases[tied]
    adapter, expected = save_adapter(base, tmp_path / "adapter", RECIPE.replace(**changes))
    report = merge_adapters(base, [adapter], tmp_path / "out", dtype="float32")
    model, tokenizer = load(report.out), AutoTokenizer.from_pretrained(report.out)
    assert agree(scores(model), expected)
    assert not torch.allclose(scores(model), scores(load(base)), atol=1e-3) and report.unchanged == ()
    check_consistency(model, tokenizer)
    assert report.tied == tied == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert report.rows == 264 and len(list(base.glob("*.safetensors"))) > 3
    assert sorted(p.name for p in base.iterdir()) == sorted(
        p.name for p in report.out.iterdir() if p.name != "made_of.json"
    )


EVERYTHING = r".*\.(q|k|v|o|gate|up|down)_proj"
CASES = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora and rslora": {"use_dora": True, "use_rslora": True, "target_modules": EVERYTHING},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"^model\.layers\.1\.mlp.*": 6},
        "alpha_pattern": {"up_proj": 3},
    },
    "patterns, the first counts": {
        "alpha_pattern": {r".*\.1\..*": 32, "up_proj": 3},
        "target_modules": EVERYTHING,
    },
    "patterns and rslora": {
        "use_rslora": True,
        "rank_pattern": {"up_proj": 9},
        "alpha_pattern": {"q_proj": 5},
    },
    "patterns and dora": {
        "use_dora": True,
        "rank_pattern": {"0.mlp.up_proj": 1},
        "alpha_pattern": {"q_proj": 5},
    },
    "one layer": {"layers_to_transform": 1},
    "one layer by name": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "no layer means all": {"layers_to_transform": []},
    "a full name is in every layer": {
        "layers_to_transform": [1],
        "target_modules": ["model.layers.0.mlp.up_proj", "k_proj"],
    },
    "excluded": {"target_modules": EVERYTHING, "exclude_modules": ["v_proj", "model.layers.1.mlp.down_proj"]},
    "excluded by pattern": {"exclude_modules": r".*\.0\..*"},
    "all-linear": {"target_modules": "all-linear"},
    "norms whole": {"modules_to_save": ["norm"]},
    "a block whole": {"modules_to_save": ["mlp"], "target_modules": ["k_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "rows as a list": {"trainable_token_indices": [260, 3]},
}
UNTIED = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "head with dora": {"target_modules": ["lm_head"], "use_dora": True},
    "rows as a table": {"trainable_token_indices": {"embed_tokens": [263, 1], "lm_head": [262]}},
    "embedding alone": {"modules_to_save": ["embed_tokens"]},
    "head alone": {"modules_to_save": ["lm_head"]},
}
TIED = {
    "rows, both named": {"trainable_token_indices": {"embed_tokens": [263, 1], "lm_head": [263, 1]}},
    "ensured": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "ensured rows": {"trainable_token_indices": [9, 8], "ensure_weight_tying": True},
}
# With `save_embedding_layers` peft adds frozen matrices, under several names.
ALSO = (
    "dora",
    "rows as a list",
    "rows as a table",
    "rows, both named",
    "ensured",
    "ensured rows",
    "norms whole",
)
KINDS = [
    (tied, name, embedding_layers)
    for tied in (False, True)
    for name in CASES | (TIED if tied else UNTIED)
    for embedding_layers in (False, True)
    if not embedding_layers or name in ALSO
]


@pytest.mark.parametrize(("tied", "name", "embedding_layers"), KINDS)
def test_every_kind(tmp_path, bases, tied, name, embedding_layers):
    options = (CASES | TIED | UNTIED)[name]
    folder, expected, theirs = save_with_peft(
        bases[tied], tmp_path / "adapter", embedding_layers=embedding_layers, **options
    )
    report = merge_adapters(bases[tied], [folder], tmp_path / "out", dtype="float32")
    assert report.tied == tied and report.unchanged == ()
    assert agree(scores(load(report.out)), expected)
    for tensor, merged in tensors_of(report.out).items():
        assert torch.allclose(merged, theirs[tensor], atol=1e-6), tensor


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": {"embed_tokens": [260], "lm_head": [261]}},
        {"trainable_token_indices": {"lm_head": [261]}},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
    ids=str,
)
def test_a_tied_pair_that_was_trained_apart(tmp_path, bases, options):
    """A tied result could only be wrong: refused, or two matrices that give the unmerged model's logits."""
    folder, expected, _ = save_with_peft(bases[True], tmp_path / "adapter", **options)
    with pytest.raises(AdapterError, match="trained embedding and head apart"):
        merge_adapters(bases[True], [folder], tmp_path / "out")
    report = merge_adapters(bases[True], [folder], tmp_path / "out", dtype="float32", untie=True)
    model = load(report.out)
    assert not report.tied and not model.config.tie_word_embeddings
    assert agree(scores(model), expected)
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_untied_in_the_middle_of_a_chain(tmp_path, bases):
    """Before that, both matrices take what was trained as one; after it, each what is its own."""
    chain, base = [], bases[True]
    for n, options in enumerate(
        [
            {"trainable_token_indices": [260, 261]},
            {"target_modules": ["q_proj", "lm_head"]},
            {"trainable_token_indices": [261, 262], "use_dora": True},
        ]
    ):
        folder, expected, _ = save_with_peft(base, tmp_path / str(n), seed=n, **options)
        chain.append(folder)
        base = merge_adapters(bases[True], chain, tmp_path / f"until {n}", dtype="float32", untie=True).out
        assert agree(scores(load(base)), expected), n
    head, embedding = (tensors_of(base)[name] for name in ("lm_head.weight", "model.embed_tokens.weight"))
    assert (head != embedding).any()


def test_the_same_rows_for_other_tokens_are_not_one_matrix(tmp_path, bases):
    tokens = {"embed_tokens": [260], "lm_head": [261]}
    folder, _, _ = save_with_peft(bases[True], tmp_path / "adapter", trainable_token_indices=tokens)
    edit(folder, lambda t: t[key(t, "lm_head")].copy_(t[key(t, "embed_tokens")]))
    with pytest.raises(AdapterError, match="trained embedding and head apart"):
        merge_adapters(bases[True], [folder], tmp_path / "out")


def test_all_linear_that_peft_did_not_spell_out(tmp_path, bases):
    """All but the head, whether or not the config was saved before peft replaced the word."""
    folder, expected, _ = save_with_peft(bases[False], tmp_path / "adapter", target_modules="all-linear")
    edit_json(folder / "adapter_config.json", target_modules="all-linear")
    out = merge_adapters(bases[False], [folder], tmp_path / "out", dtype="float32").out
    assert agree(scores(load(out)), expected)
    edit(folder, lambda t: [t.pop(name) for name in list(t) if "0.mlp.down_proj" in name])
    with pytest.raises(AdapterError, match="1 of 14 updates are missing"):
        merge_adapters(bases[False], [folder], tmp_path / "out2")


def test_an_adapter_of_a_tied_model_does_not_fit_an_untied_one(tmp_path, bases):
    adapter, _ = save_adapter(bases[True], tmp_path / "adapter")
    with pytest.raises(AdapterError, match="a model that ties embedding and head, and here they are two"):
        merge_adapters(bases[False], [adapter], tmp_path / "out")


@pytest.mark.parametrize(
    "style",
    [
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("lora_A.weight", "lora_A.default.weight").replace(
            "lora_B.weight", "lora_B.default.weight"
        ),
        lambda name: re.sub(r"(embed_tokens|lm_head)\.weight", r"\1.modules_to_save.weight", name),
        lambda name: re.sub(r"(embed_tokens|lm_head)\.weight", r"\1.modules_to_save.default.weight", name),
    ],
)
def test_key_styles(tmp_path, bases, style):
    adapter, expected = save_adapter(
        bases[False], tmp_path / "adapter", RECIPE.replace(embeddings="published")
    )
    names = []

    def rename(tensors):
        for name in list(tensors):
            tensors[style(name)] = tensors.pop(name)
            names.append(name != style(name))

    edit(adapter, rename)
    assert any(names)
    report = merge_adapters(bases[False], [adapter], tmp_path / "out", dtype="float32")
    assert agree(scores(load(report.out)), expected)


def test_a_config_of_the_first_peft(tmp_path, bases):
    """What Chinese-LLaMA-LoRA's config says: few keys, and two that peft has dropped."""
    adapter, expected = save_adapter(
        bases[False], tmp_path / "adapter", RECIPE.replace(embeddings="published")
    )
    path = adapter / "adapter_config.json"
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
    path.write_text("{}", encoding="utf-8")
    edit_json(
        path,
        base_model_name_or_path="llama",
        bias="none",
        enable_lora=None,
        fan_in_fan_out=False,
        inference_mode=True,
        lora_alpha=8.0,
        lora_dropout=0.05,
        merge_weights=False,
        modules_to_save=["embed_tokens", "lm_head"],
        peft_type="LORA",
        r=4,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    report = merge_adapters(bases[False], [adapter], tmp_path / "out", dtype="float32")
    assert agree(scores(load(report.out)), expected)


def test_pissa_is_refused(tmp_path, bases):
    """It moves the base's weights: adding the update to the plain base gives another model."""
    folder, _, theirs = save_with_peft(bases[False], tmp_path / "adapter", init_lora_weights="pissa")
    with pytest.raises(AdapterError, match="started from 'pissa', which changes the base's weights"):
        merge_adapters(bases[False], [folder], tmp_path / "out")
    edit_json(folder / "adapter_config.json", init_lora_weights=True)
    out = merge_adapters(bases[False], [folder], tmp_path / "out", dtype="float32").out
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(tensors_of(out)[name], theirs[name], atol=1e-3), "then why refuse it?"


def test_which_modules_are_meant_is_what_peft_means(tmp_path):
    """Random configs: `targets` against peft's own function, on every module of a model."""
    modules = [name for name, _ in make_model().named_modules() if name]
    rng = random.Random(0)
    few = ["q_proj", "proj", "mlp", "up_proj", "lm_head", "embed_tokens", "norm", "0.mlp.up_proj", *modules]
    patterns = [r".*q_proj", r".*\.1\..*", "q_proj|.*up_proj", r"model\.layers\.\d+\.mlp\.(up|down)_proj"]
    hits = 0
    for _ in range(400):
        config = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": rng.choice([rng.sample(few, 3), rng.choice(patterns)]),
            "exclude_modules": rng.choice([None, None, rng.sample(few, 2), rng.choice(patterns)]),
            "modules_to_save": rng.choice([None, None, rng.sample(["mlp", "norm", "lm_head", "1"], 2)]),
        }
        if isinstance(config["target_modules"], list):
            config["layers_to_transform"] = rng.choice([None, 0, [1], [0, 1], []])
            if config["layers_to_transform"] is not None:
                config["layers_pattern"] = rng.choice([None, "layers", ["h", "layers"], "h"])
        (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
        edit_json(tmp_path / "adapter_config.json", **config)
        ours = read_settings(tmp_path)
        theirs = LoraConfig(**{k: v for k, v in config.items() if k != "peft_type"})
        for module in modules:
            expected = bool(check_target_module_exists(theirs, module))
            hits += expected
            assert ours.targets(module) == expected, (config, module)
    assert hits > 400


def test_scales_are_peft_s(tmp_path):
    rng = random.Random(1)
    patterns = ["q_proj", r".*\.1\..*", "mlp.up_proj", r"^model\.layers\.0.*", "proj", "_proj"]
    for n in range(20):
        options = {
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": bool(n % 2),
            "rank_pattern": {p: rng.randint(1, 9) for p in rng.sample(patterns, 2)},
            "alpha_pattern": {p: rng.randint(1, 99) for p in rng.sample(patterns, 3)},
        }
        LoraConfig(target_modules=["q_proj", "up_proj"], **options).save_pretrained(tmp_path / str(n))
        settings = read_settings(tmp_path / str(n))
        # Read again: peft sorts the patterns when it saves them, and the first that matches counts.
        saved = LoraConfig.from_pretrained(tmp_path / str(n))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(make_model(), saved)
        layers = {k: m for k, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
        assert len(layers) == 4
        for name, module in layers.items():
            assert settings.scale(name) == pytest.approx(module.scaling["default"], rel=1e-12)
            assert settings.rank_of(name) == module.r["default"]


def test_by_hand(tmp_path):
    """2 × W with α/r = 2: W + 2 · BA; with DoRA every row has the length of its magnitude."""
    base = save_base(tmp_path / "base")
    for dora in (False, True):
        folder, _, _ = save_with_peft(base, tmp_path / f"a{dora}", use_dora=dora, target_modules=["q_proj"])

        def write(tensors):
            for name in tensors:
                tensors[name] = torch.full_like(tensors[name], 3.0 if "magnitude" in name else 1.0)

        edit(folder, write)
        out = merge_adapters(base, [folder], tmp_path / f"out{dora}", dtype="float32").out
        name = "model.layers.1.self_attn.q_proj.weight"
        was, got = tensors_of(base)[name], tensors_of(out)[name]
        expected = was + 2 * 4  # each of the four ranks adds 1 · 1
        if dora:
            expected = torch.stack([3 * row / float((row * row).sum()) ** 0.5 for row in expected])
        assert torch.allclose(got, expected, atol=1e-5)


def test_an_update_of_a_base_that_is_saved_in_bfloat16(tmp_path, bases):
    """Rounded once: the result is the float32 sum rounded, not a sum of rounded numbers."""
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(bases[False], dtype=torch.bfloat16).save_pretrained(base)
    folder, _, _ = save_with_peft(bases[False], tmp_path / "adapter")
    out = merge_adapters(base, [folder], tmp_path / "out").out
    name = "model.layers.0.mlp.up_proj.weight"
    adapter = tensors_of(folder)
    b, a = (adapter[key(adapter, f"0.mlp.up_proj.lora_{part}")] for part in "BA")
    expected = (tensors_of(base)[name].float() + 2 * (b @ a)).bfloat16()
    assert torch.equal(tensors_of(out)[name], expected)
    shutil.rmtree(out)
