"""Fast decoding gives the tokens of transformers' `generate`, for every form of LLaMA that it claims."""

from __future__ import annotations

import pytest
import torch

from chinese_llama_lab.inference.bandwidth import SpeedError
from chinese_llama_lab.inference.decode import FastDecoder, generate_fast
from chinese_llama_lab.inference.engines import engine, generate
from tests.threads import one_thread  # noqa: F401 - a fixture

ROPE = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def make_model(*, kv_heads=2, tied=False, seed=0, dtype=torch.float32, **options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=211,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,  # logits far apart, so that equality tells something
        **options,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def prompts(batch=1, tokens=9, seed=1):
    return torch.randint(0, 211, (batch, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_tokens_of_generate(kv_heads, tied, batch):
    model = make_model(kv_heads=kv_heads, tied=tied)
    ids = prompts(batch)
    found = generate_fast(model, ids, 30)
    assert found.shape == (batch, 39)
    assert torch.equal(found, generate(model, ids, 30, "generate"))
    assert len(set(found[0, 9:].tolist())) > 3  # no loop on one token, which anything would pass


@pytest.mark.parametrize("kind", ["forward", "static"])
def test_the_other_engines_agree(kind):
    model, ids = make_model(), prompts(2)
    assert torch.equal(generate(model, ids, 20, kind), generate(model, ids, 20, "generate"))


@pytest.mark.parametrize("kind", ROPE)
def test_rope_scaling(kind):
    model, ids = make_model(rope_parameters=ROPE[kind]), prompts()
    plain = make_model()
    found = generate_fast(model, ids, 40)
    assert torch.equal(found, generate(model, ids, 40, "generate"))
    if kind != "dynamic":  # which scales beyond the context alone
        assert not torch.equal(found, generate_fast(plain, ids, 40))


def test_biases_head_width_and_another_activation():
    model = make_model(attention_bias=True, mlp_bias=True, head_dim=24, hidden_act="gelu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
    ids = prompts()
    assert torch.equal(generate_fast(model, ids, 30), generate(model, ids, 30, "generate"))


@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_short_and_long_prompts(tokens):
    model, ids = make_model(), prompts(tokens=tokens)
    assert torch.equal(generate_fast(model, ids, 31), generate(model, ids, 31, "generate"))


def test_one_new_token_and_the_whole_context():
    model, ids = make_model(), prompts(tokens=4)
    assert torch.equal(generate_fast(model, ids, 1), generate(model, ids, 1, "generate"))
    assert torch.equal(generate_fast(model, ids, 60), generate(model, ids, 60, "generate"))


def test_logits_step_by_step():
    """Tokens could agree by luck: the head's input is compared at each step."""
    model, ids = make_model(), prompts(2)
    seen = []
    hook = model.lm_head.register_forward_pre_hook(lambda module, given: seen.append(given[0].reshape(2, -1)))
    found = generate_fast(model, ids, 12)
    hook.remove()
    with torch.no_grad():
        whole = model.model(found).last_hidden_state
    for step, state in enumerate(seen):
        torch.testing.assert_close(state, whole[:, 8 + step], rtol=1e-4, atol=1e-4)
    assert len(seen) == 12


def test_bfloat16_tokens_are_the_best_up_to_rounding():
    """Wherever the two differ, both tokens are within the rounding of a bfloat16 logit of the best."""
    model, ids = make_model(dtype=torch.bfloat16), prompts(2)
    found = generate_fast(model, ids, 30)
    with torch.no_grad():
        logits = model(found[:, :-1]).logits[:, 8:].float()
    best = logits.amax(-1)
    chosen = logits.gather(-1, found[:, 9:, None])[..., 0]
    assert ((best - chosen) <= 0.02 * logits.abs().amax(-1)).all()


def test_eos_stops_nothing():
    model, ids = make_model(), prompts()
    third = int(generate_fast(model, ids, 5)[0, -3])
    model.generation_config.eos_token_id = third
    before = model.generation_config
    assert generate(model, ids, 5, "generate").shape == (1, 14)
    assert generate_fast(model, ids, 5).shape == (1, 14)
    assert model.generation_config is before


def test_lora_layers_are_heard():
    from peft import LoraConfig, get_peft_model

    model, ids = make_model(), prompts()
    plain = generate_fast(model, ids, 20)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"])).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    found = generate_fast(adapted, ids, 20)
    assert torch.equal(found, generate(adapted, ids, 20, "generate"))
    assert not torch.equal(found, plain)


def test_weights_and_modules_stay_as_they_are():
    model = make_model()
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    generate_fast(model, prompts(), 8)
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_a_second_prompt_forgets_the_first():
    model = make_model()
    decoder = FastDecoder(model)
    decoder.step(decoder.start(prompts(), 4))
    other = prompts(seed=5)
    first = decoder.start(other, 4)
    assert torch.equal(first, generate(model, other, 1, "generate")[:, -1])
    assert torch.equal(decoder.step(first), generate(model, other, 2, "generate")[:, -1])


def test_beyond_the_context():
    with pytest.raises(SpeedError, match=r"context of 64.*\n.*51 new tokens"):
        generate_fast(make_model(), prompts(tokens=13), 52)
    for kind in ("generate", "forward", "static"):
        with pytest.raises(SpeedError, match="context of 64"):
            generate(make_model(), prompts(tokens=13), 52, kind)


def test_beyond_the_buffer():
    decoder = FastDecoder(make_model())
    with pytest.raises(SpeedError, match="room for 0"):
        decoder.step(torch.tensor([1]))
    tokens = decoder.start(prompts(tokens=3), 2)
    tokens = decoder.step(decoder.step(tokens))
    with pytest.raises(SpeedError, match="room for 5 tokens"):
        decoder.step(tokens)


@pytest.mark.parametrize("new_tokens", [0, -1])
def test_nothing_to_do(new_tokens):
    with pytest.raises(SpeedError, match=f"new_tokens is {new_tokens}"):
        generate_fast(make_model(), prompts(), new_tokens)


def test_prompts_of_a_wrong_form():
    with pytest.raises(SpeedError, match="0 tokens"):
        generate_fast(make_model(), prompts(tokens=0), 4)
    for ids in (torch.tensor([1, 2]), torch.rand(1, 3)):
        with pytest.raises(SpeedError, match="the prompt is a tensor"):
            generate_fast(make_model(), ids, 4)


def test_models_that_it_does_not_know():
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=32)).eval()
    with pytest.raises(SpeedError, match="'gpt2'"):
        FastDecoder(other)
    with pytest.raises(SpeedError, match="training mode"):
        FastDecoder(make_model().train())
    with pytest.raises(SpeedError, match="no engine 'quick'"):
        engine(make_model(), "quick")


def test_four_bit_modules_are_called_as_they_are():
    """Against transformers on the same quantized modules."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="an optional dependency")
    model = make_model()
    for layer in model.model.layers:
        for owner in (layer.self_attn, layer.mlp):
            for name, child in list(owner.named_children()):
                if isinstance(child, torch.nn.Linear):
                    small = bitsandbytes.nn.Linear4bit(
                        child.in_features, child.out_features, bias=False, quant_type="nf4"
                    )
                    small.load_state_dict(child.state_dict())
                    small.support_avx512bf16_for_cpu = False
                    setattr(owner, name, small.to("cpu"))
    ids = prompts()
    assert torch.equal(generate_fast(model, ids, 12), generate(model, ids, 12, "generate"))
