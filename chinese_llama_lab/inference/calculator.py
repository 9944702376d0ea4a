"""The estimate with dials: widgets for a live notebook, and tables that a saved one keeps."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from chinese_llama_lab.inference.errors import EstimateError
from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.fits import ASKED, verdict
from chinese_llama_lab.inference.memory import GB, GIB, Memory
from chinese_llama_lab.inference.shapes import SHAPES, shape_of
from chinese_llama_lab.plots import PALETTE

_OTHER = "other"
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "weights": ("linear weights", "embeddings", "head", "norms and biases"),
    "quantization constants": ("quantization constants",),
    "trained beside them": ("LoRA weights", "new rows", "modules_to_save", "master weights"),
    "gradients, optimizer": ("gradients", "Adam moments", "optimizer's temporary copy"),
    "KV cache": ("KV cache",),
    "activations": ("activations", "layer at work"),
    "logits": ("logits",),
    "dequantized matrix": ("dequantized matrix",),
    "CUDA context": ("CUDA context",),
}
_BLOCKS = tuple(2**power for power in range(7, 16))
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_TRAINS_ADAPTER = ("lora", "qlora")


def grouped(memory: Memory) -> dict[str, float]:
    """Bytes by purpose: the components of an estimate put together to about ten; nothing is left out."""
    by = dict.fromkeys([*_GROUPS, _OTHER], 0.0)
    group_of = {part: group for group, parts in _GROUPS.items() for part in parts}
    for part, size in memory.components.items():
        by[group_of.get(part, _OTHER)] += size
    return {group: size for group, size in by.items() if size}


def component_rows(memory: Memory) -> list[dict[str, str]]:
    """One row a component, and the total: GB (10⁹ bytes), GiB (2³⁰ bytes) and share."""
    parts = [(name, size) for name, size in memory.components.items() if size]
    return [
        {
            "component": name,
            "GB": f"{size / GB:.3f}",
            "GiB": f"{size / GIB:.3f}",
            "share": f"{size / memory.total:.1%}" if memory.total else "",
        }
        for name, size in [*parts, ("total", memory.total)]
    ]


def case_rows(cases: Mapping[str, Memory]) -> list[dict[str, str]]:
    """One row a case, in GiB by purpose; the last two columns are the total in GiB and in GB."""
    groups = {name: grouped(memory) for name, memory in cases.items()}
    used = [group for group in (*_GROUPS, _OTHER) if any(group in by for by in groups.values())]
    return [
        {
            "GiB": name,
            **{group: f"{groups[name].get(group, 0.0) / GIB:.2f}" for group in used},
            "total": f"{memory.gib:.2f}",
            "total in GB": f"{memory.gb:.2f}",
        }
        for name, memory in cases.items()
    ]


class Calculator:
    """Dials for `estimate`; the answer changes as they are turned.

    In a notebook, end a cell with `Calculator(model="llama-2-7b").box`. Combinations that cannot be, such as
    full training of quantized weights, are answered with the reason.

    Args:
        start: where dials stand at first: `model`, `task`, `quantization`, `new_tokens` (rows added to the
            vocabulary), `embeddings`, `rank`, `block`, `batch`, `gradient_checkpointing`.

    Attributes:
        dials: name → widget. box: all of it, to be shown. answer: the widget with the table.
        memory: the estimate as the dials stand, or None where there is none.

    Raises: EstimateError: no such dial, or a dial has no such position.
    """

    def __init__(self, **start: Any) -> None:
        import ipywidgets

        self.dials = _dials(ipywidgets)
        for name, value in start.items():
            _turn(self.dials, name, value)
        self.answer = ipywidgets.HTML()
        self.memory: Memory | None = None
        for dial in self.dials.values():
            dial.observe(self._update, names="value")
        columns = [ipywidgets.VBox(list(self.dials.values())), self.answer]
        self.box = ipywidgets.HBox(columns)
        self._update()

    def options(self) -> dict[str, Any]:
        """The arguments of `estimate` as the dials stand: `source`, `task` and the options that matter there.

        Raises: EstimateError: new tokens are to be trained, and there are none.
        """
        at = {name: dial.value for name, dial in self.dials.items()}
        found = {"source": at["model"], "task": at["task"], "block": at["block"], "batch": at["batch"]}
        if at["quantization"] != "as usual":
            found["quantization"] = at["quantization"]
        if at["new_tokens"]:
            found["vocabulary"] = shape_of(at["model"]).vocabulary + at["new_tokens"]
        if at["task"] != "inference":
            found["gradient_checkpointing"] = at["gradient_checkpointing"]
        if at["task"] in _TRAINS_ADAPTER:
            found |= {"rank": at["rank"], "embeddings": at["embeddings"]}
            if at["embeddings"] == "new-rows":
                found["new_tokens"] = at["new_tokens"]
        return found

    def _update(self, change: Any = None) -> None:
        adapter = self.dials["task"].value in _TRAINS_ADAPTER
        for name in ("rank", "embeddings"):
            self.dials[name].disabled = not adapter
        self.dials["gradient_checkpointing"].disabled = self.dials["task"].value == "inference"
        try:
            options = self.options()
            self.memory = estimate(options.pop("source"), options.pop("task"), **options)
        except EstimateError as error:
            self.memory = None
            self.answer.value = f"<p>{html.escape(f'{error.what}: {error.remedy}')}</p>"
            return
        self.answer.value = as_html(self.memory)


def as_html(memory: Memory) -> str:
    """The components with a bar each, the total, and which GPUs it fits on."""
    rows = []
    for place, (name, size) in enumerate(grouped(memory).items()):
        bar = (
            f'<div style="width:{200 * size / memory.total:.0f}px;height:0.8em;'
            f'background:{PALETTE[place % len(PALETTE)]}"></div>'
        )
        rows.append(f"<tr><td>{html.escape(name)}</td>{_units(size)}<td>{bar}</td></tr>")
    rows.append(f"<tr><th>total</th>{_units(memory.total)}<td></td></tr>")
    said = {"fits": "✔ fits", "tight": "≈ only just", "no": "✘ no"}
    gpus = "; ".join(f"{gpu} GiB: {said[verdict(memory, gpu)]}" for gpu in ASKED)
    return (
        f"<b>{html.escape(memory.name)}</b>, most while {html.escape(memory.moment)}"
        f"<table><tr><th></th><th>GB</th><th>GiB</th><th></th></tr>{''.join(rows)}</table>{gpus}"
    )


def _units(size: float) -> str:
    style = 'style="text-align:right;padding:0 0.6em"'
    return f"<td {style}>{size / GB:.2f}</td><td {style}>{size / GIB:.2f}</td>"


def _dials(ipywidgets: Any) -> dict[str, Any]:
    def menu(label: str, options: Any, value: Any) -> Any:
        return ipywidgets.Dropdown(options=options, value=value, description=label)

    def slider(label: str, options: Any, value: Any) -> Any:
        return ipywidgets.SelectionSlider(options=options, value=value, description=label)

    return {
        "model": menu("model", tuple(SHAPES), "llama-2-7b"),
        "task": menu("task", ("inference", "lora", "qlora", "full"), "inference"),
        "quantization": menu("weights", ("as usual", "none", "int8", "nf4", "nf4-double"), "as usual"),
        "new_tokens": ipywidgets.BoundedIntText(0, min=0, max=200_000, description="new tokens"),
        "embeddings": menu("embeddings", ("frozen", "new-rows", "published"), "frozen"),
        "rank": slider("rank", _RANKS, 8),
        "block": slider("block", _BLOCKS, 512),
        "batch": slider("batch", _BATCHES, 1),
        "gradient_checkpointing": ipywidgets.Checkbox(True, description="checkpointing"),
    }


def _turn(dials: Mapping[str, Any], name: str, value: Any) -> None:
    if name not in dials:
        raise EstimateError(f"there is no dial {name!r}", where=name, remedy=f"use {', '.join(dials)}")
    import traitlets

    try:
        dials[name].value = value
        kept = dials[name].value == value
    except traitlets.TraitError:
        kept = False
    if not kept:  # a bounded number is moved into its bounds without a word
        positions = getattr(dials[name], "options", None)
        wanted = f"one of {', '.join(map(str, positions))}" if positions else "a whole number, 0 to 200,000"
        if isinstance(dials[name].value, bool):
            wanted = "True or False"
        raise EstimateError(f"{name} = {value!r}", where=name, remedy=f"use {wanted}")
