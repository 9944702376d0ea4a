"""Quantizing the head too, which bitsandbytes and transformers leave alone.

With a large vocabulary the head is much of what is read for each token: a fifth of SmolLM2's weights.
"""

from __future__ import annotations

from typing import Any

import torch


def quantize_head_of(model: Any, config: Any) -> None:
    """Put a quantized head in the place of the model's; the embedding stays as it is, and is tied no longer.

    Args:
        model: loaded through `from_pretrained` with `config`, its head not quantized.
        config: a BitsAndBytesConfig. It and the model's own then say that no head was left out.
    """
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    head = model.get_output_embeddings()
    weight, place = head.weight.detach(), head.weight.device
    shape: tuple[int, int, bool] = (head.in_features, head.out_features, head.bias is not None)
    layer: Any
    with torch.device("meta"):
        if config.load_in_8bit:
            limit = config.llm_int8_threshold
            layer = Linear8bitLt(*shape, has_fp16_weights=False, threshold=limit)
        else:
            settings = {
                "compress_statistics": config.bnb_4bit_use_double_quant,
                "quant_type": config.bnb_4bit_quant_type,
            }
            layer = Linear4bit(*shape, config.bnb_4bit_compute_dtype, **settings)
    if config.load_in_8bit:
        layer.weight = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(place)
    else:
        layer.weight = Params4bit(weight, requires_grad=False, module=layer, **settings).to(place)
    if head.bias is not None:
        layer.bias = head.bias
    layer.source_cls = torch.nn.Linear
    layer.requires_grad_(False)
    model.set_output_embeddings(layer.eval())
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    for settings_of in (config, model.config.quantization_config, model.hf_quantizer.quantization_config):
        names = settings_of.llm_int8_skip_modules or []
        settings_of.llm_int8_skip_modules = [name for name in names if name != "lm_head"]
