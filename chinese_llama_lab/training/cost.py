"""How long a training run takes, what it costs, and how well it uses its devices.

Rates are measured by the reader or taken from a published run; nothing here knows how fast a device is. Hours
are hours; a price is in whatever currency the caller counts in, an hour and a device. Floating-point
operations follow Kaplan et al., arXiv 2001.08361 (a multiplication and an addition are two), utilization
follows Chowdhery et al., arXiv 2204.02311, appendix B.
"""

from __future__ import annotations

import math
from typing import Any

from chinese_llama_lab.inference.settings import Settings
from chinese_llama_lab.inference.shapes import shape_of
from chinese_llama_lab.inference.weights import lora_parameters
from chinese_llama_lab.training.errors import TrainingError

_HOUR = 3600.0


def training_time(
    tokens: float, tokens_per_second: float, devices: int = 1, efficiency: float = 1.0
) -> float:
    """Hours of training.

    Args:
        tokens: that the run reads in all. tokens_per_second: of one device. devices: how many.
        efficiency: what each of several devices keeps of that rate, in (0, 1].

    Raises: TrainingError: a value that is not positive, or an efficiency above 1.
    """
    _positive(tokens=tokens, tokens_per_second=tokens_per_second, efficiency=efficiency)
    _share(efficiency=efficiency)
    return tokens / (tokens_per_second * _whole(devices=devices) * efficiency) / _HOUR


def training_cost(hours: float, price_per_hour: float, devices: int = 1) -> float:
    """Price of a run, in the currency of `price_per_hour`, which is that of one device.

    Raises: TrainingError: a value that is not positive.
    """
    _positive(hours=hours, price_per_hour=price_per_hour)
    return hours * price_per_hour * _whole(devices=devices)


def tokenization_time(gigabytes: float, megabytes_per_second_per_core: float, cores: int = 1) -> float:
    """Hours of tokenizing and packing text.

    Args:
        gigabytes: of UTF-8, 1,000,000,000 bytes each. megabytes_per_second_per_core: as `index.json` of
            shards says for one worker, 1,000,000 bytes each. cores: that work beside each other.

    Raises: TrainingError: a value that is not positive.
    """
    _positive(gigabytes=gigabytes, megabytes_per_second_per_core=megabytes_per_second_per_core)
    return gigabytes * 1000 / (megabytes_per_second_per_core * _whole(cores=cores)) / _HOUR


def flops_per_token(
    source: Any,
    *,
    lora: int = 0,
    targets: tuple[str, ...] | None = None,
    embeddings: str = "frozen",
    checkpointing: bool = False,
    block: int = 0,
) -> float:
    """Floating-point operations of training on one token.

    A weight that is multiplied takes 2 operations forward and 2 for the gradient of what came in. Only a
    weight that is trained takes 2 more for its own gradient: 6 in full training, 4 under LoRA. The rows of an
    embedding are looked up, not multiplied.

    Args:
        source: a model as `shape_of` takes it, or a number of parameters, all of them taken as multiplied.
        lora: rank of LoRA over frozen weights; 0 is full training. targets: its modules (all linear layers).
        embeddings: under LoRA, `published` trains the head whole. New rows alone are not counted.
        checkpointing: layers are computed forward twice. For a number of parameters all are, the head too.
        block: tokens of a sequence, to count attention's scores, of which a token sees half on average; 0
            leaves them out, as the rule of six does. A number of parameters does not tell them.

    Returns: operations a token, a float.

    Raises: TrainingError: a number that is not positive, or LoRA or block with a number of parameters alone
        where the shape is needed. EstimateError: an unknown model or module.
    """
    for name, value in (("lora", lora), ("block", block)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise TrainingError(f"{name} is {value!r}", where=name, remedy="use a whole number, 0 or more")
    if isinstance(source, (int, float)) and not isinstance(source, bool):
        _positive(parameters=source)
        if block or targets:
            raise TrainingError(
                f"a number of parameters does not tell {'attention' if block else 'the size of modules'}",
                where="source",
                remedy="give the model's name or config, or leave out block and targets",
            )
        # The adapter's own share is a few in a thousand, and unknown here.
        return float(source) * ((4 if lora else 6) + (2 if checkpointing else 0))
    shape = shape_of(source)
    options: dict[str, Any] = {} if targets is None else {"targets": targets}
    adapter = lora_parameters(shape, Settings(task="lora", rank=lora, **options)) if lora else 0
    head = shape.matrix  # of a tied pair too: it is multiplied once
    scores = 2 * shape.layers * shape.heads * shape.head_width * block / 2  # q·k and p·v, forward, MACs
    forward = 2.0 * (shape.linear + adapter + scores)
    trained = adapter + (head if embeddings == "published" else 0) if lora else shape.linear + head
    # Forward, and the same for what came in; scores have two inputs and no weight of their own.
    total = 2 * (forward + 2.0 * head) + 2.0 * trained + 2.0 * scores
    return total + (forward if checkpointing else 0.0)


def utilization(
    tokens_per_second: float, flops_per_token: float, peak_flops: float, devices: int = 1
) -> float:
    """Share of the devices' peak that a run uses.

    With operations that leave out recomputation this is MFU; with `checkpointing=True` counted it is HFU.

    Args:
        tokens_per_second: of all devices together. flops_per_token: as the function of that name gives.
        peak_flops: of one device, operations a second at the run's precision without sparsity.

    Raises: TrainingError: a value that is not positive, or a share above 1, which cannot be.
    """
    _positive(tokens_per_second=tokens_per_second, flops_per_token=flops_per_token, peak_flops=peak_flops)
    share = tokens_per_second * flops_per_token / (peak_flops * _whole(devices=devices))
    if share > 1:
        raise TrainingError(
            f"{tokens_per_second:,.0f} tokens/s would be {share:.2f} of the peak",
            where="utilization",
            remedy="check the units: tokens/s of all devices, peak operations/s (not tera) of one",
        )
    return share


def _positive(**values: float) -> None:
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise TrainingError(f"{name} is {value!r}", where=name, remedy="use a number above 0")


def _share(**values: float) -> None:
    for name, value in values.items():
        if value > 1:
            raise TrainingError(f"{name} is {value!r}", where=name, remedy="use a share, at most 1")


def _whole(**values: int) -> int:
    ((name, value),) = values.items()
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TrainingError(f"{name} is {value!r}", where=name, remedy="use a whole number, 1 or more")
    return value
