"""Where float16 runs out: numbers above 65,504, numbers below 6·10⁻⁸, and what helps.

bfloat16 has the range of float32 and fewer digits; float16 has more digits and a small range. Overflow is a
matter of range: the same model can be fine in one and not a number in the other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from chinese_llama_lab.training.errors import TrainingError

LARGEST = torch.finfo(torch.float16).max  # 65,504
SMALLEST = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps  # 2⁻²⁴, 5.96e-8


def largest_activations(model: Any, ids: torch.Tensor) -> list[dict[str, Any]]:
    """The largest absolute values that the layers of a LLaMA hold for a text.

    Args:
        model: a transformers causal language model with `model.layers`; float32 or bfloat16, since float16
            would have overflowed already.
        ids: token ids, int64 (sequences, tokens).

    Returns: a row a layer: `layer` (from 1); `residual`, the largest value of the stream that it passes on,
        `typical`, the median of the stream's absolute values, and `position`, where the largest lies in its
        sequence (from 0); `inside`, the largest product of gate and up in its MLP; `of float16`, the larger
        of the two over 65,504; `fits float16`, `fits bfloat16`.

    Raises: TrainingError: a model without such layers.
    """
    rows: list[dict[str, Any]] = []
    inside: list[float] = []

    def before_down(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        inside.append(float(inputs[0].abs().max()))

    def after_layer(module: Any, inputs: Any, output: Any) -> None:
        stream = (output[0] if isinstance(output, tuple) else output).abs()
        largest = float(stream.max())
        most = max(largest, inside[-1])
        rows.append(
            {
                "layer": len(rows) + 1,
                "residual": largest,
                "typical": float(stream.float().median()),
                "position": int(stream.argmax()) // stream.shape[-1] % stream.shape[-2],
                "inside": inside[-1],
                "of float16": most / LARGEST,
                "fits float16": most <= LARGEST,
                "fits bfloat16": most <= torch.finfo(torch.bfloat16).max,
            }
        )

    hooks = []
    try:
        for layer in _layers(model):
            hooks.append(layer.mlp.down_proj.register_forward_pre_hook(before_down))
            hooks.append(layer.register_forward_hook(after_layer))
        with torch.no_grad():
            _decoder(model)(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _decoder(model: Any) -> Any:
    return model.get_decoder()


def _layers(model: Any) -> Any:
    layers = getattr(_decoder(model), "layers", None)
    if layers is None or any(not hasattr(getattr(layer, "mlp", None), "down_proj") for layer in layers):
        raise TrainingError(
            f"{type(model).__name__} has no layers with an MLP of gate, up and down",
            where="model",
            remedy="give a LLaMA, such as load_base('smollm2')",
        )
    return layers


@contextmanager
def widened(model: Any, layer: int, factor: float) -> Iterator[None]:
    """Within the block, one layer computes the same with inner values `factor` times as large.

    Its `up_proj` is multiplied by the factor and its `down_proj` divided by it: the product is what it was. A
    power of two changes no digit in float32 and bfloat16.

    Args:
        model: a LLaMA. layer: from 1, as in `largest_activations`. factor: a power of two.
    """
    mlp = _layers(model)[layer - 1].mlp
    kept = [(weight, weight.detach().clone()) for weight in (mlp.up_proj.weight, mlp.down_proj.weight)]
    with torch.no_grad():
        mlp.up_proj.weight.mul_(factor)
        mlp.down_proj.weight.div_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in kept:
                weight.copy_(value)


def losses_by_dtype(
    model: Any,
    ids: torch.Tensor,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16, torch.float16),
) -> dict[str, float]:
    """Loss (nats a token) of the same weights in several dtypes, by name; NaN where one overflows.

    The model stays as it is: a copy is converted. Give one whose own dtype is the widest of them.
    """
    found = {}
    for dtype in dtypes:
        # Parameters alone: the rotary frequencies are float32 in every loaded model, and must not be rounded.
        copied = copy.deepcopy(model)
        for parameter in copied.parameters():
            parameter.data = parameter.data.to(dtype)
        with torch.no_grad():
            logits = copied(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1].float()
        targets = ids[:, 1:].reshape(-1).to(logits.device)
        name = str(dtype).removeprefix("torch.")
        found[name] = float(functional.cross_entropy(logits.flatten(0, 1), targets))
    return found


def pitfalls() -> list[dict[str, str]]:
    """Four things that go wrong in float16 with one tensor each, and what cures each: computed when called.

    Returns: rows with `what`, `float16`, `cure`, `cured`, `right` (as text, four digits).
    """
    half = torch.float16
    scores = torch.tensor([12.0, 11.0])
    by_hand = scores.to(half).exp() / scores.to(half).exp().sum()
    shifted = (scores - scores.max()).to(half).exp()
    wide = torch.full((4,), 300.0)
    small = torch.tensor(1e-8)
    weight, update = torch.tensor(1.0), torch.tensor(1e-4)
    cases = [
        ("softmax of 12 and 11 by exp(x) / sum exp(x)", by_hand[0], "subtract the largest score first",
         (shifted / shifted.sum())[0], scores.softmax(0)[0]),
        ("mean square of four times 300", wide.to(half).square().mean(), "square in float32, as RMSNorm does",
         wide.to(half).float().square().mean(), wide.square().mean()),
        ("a gradient of 1e-8", small.to(half), "multiply the loss by 65,536, divide the gradient in float32",
         (small * 65536).to(half).float() / 65536, small),
        ("a weight of 1 and an update of 0.0001", weight.to(half) + update.to(half),
         "keep trained weights in float32", weight + update, weight + update),
    ]  # fmt: skip
    return [
        {
            "what": what,
            "float16": f"{float(wrong):.5g}",
            "cure": cure,
            "cured": f"{float(cured):.5g}",
            "right": f"{float(right):.5g}",
        }
        for what, wrong, cure, cured, right in cases
    ]


def gradient_underflow(
    logits: torch.Tensor, targets: torch.Tensor, scales: Sequence[float] = (1.0, 1024.0, 65536.0)
) -> list[dict[str, Any]]:
    """What float16 leaves of the gradient that the mean cross-entropy sends to the logits.

    Args:
        logits: (n, pieces), any float dtype. targets: (n,) token ids.
        scales: by which the loss is multiplied before the gradient is rounded to float16.

    Returns: a row a scale: `scale`, `zero` (share of the entries, of those that are not zero in float32, that
        are zero in float16), `kept` (of the sum over all tokens that are to become less likely, the share
        that is left), `overflow` (whether an entry became infinite).
    """
    exact = logits.detach().float().softmax(-1)
    there = exact != 0
    others = torch.ones_like(there)
    rows_of = torch.arange(len(targets), device=exact.device)
    others[rows_of, targets] = False
    exact[rows_of, targets] -= 1
    exact /= len(targets)
    rows = []
    for scale in scales:
        rounded = (exact * scale).to(torch.float16)
        left = rounded[others].double().sum() / scale
        rows.append(
            {
                "scale": scale,
                "zero": float((rounded[there] == 0).float().mean()),
                "kept": float(left / exact[others].double().sum()),
                "overflow": bool(rounded.isinf().any()),
            }
        )
    return rows
