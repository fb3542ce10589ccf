"""Torch peers on equal work: Hugging Face's experts on our routing, and a plain list of FFNs of the true widths.

Needs the `peers` extra. Hugging Face's modules know one width, so mixed cases are padded to the widest. Their router is
left out, because our side's time holds none either: what is timed is `OlmoeSparseMoeBlock(...).experts`.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_lab.bench.cases import Case
from moe_lab.bench.competitors import draw_blocks, draw_tokens, stacked
from moe_lab.bench.measure import Prepare
from moe_lab.errors import Unavailable

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass
class TorchRunnable:
    """Forward without a graph, and forward with backward."""

    run: Callable[[Any, Any], Any]
    h: torch.Tensor
    weight: torch.Tensor
    parameters: list[torch.Tensor]
    compile_seconds: float
    temporary_bytes: tuple[None, None] = (None, None)

    def forward(self) -> None:
        import torch

        with torch.no_grad():
            self.run(self.h, self.weight)

    def both(self) -> None:
        import torch

        h, weight = (v.clone().requires_grad_() for v in (self.h, self.weight))
        y = self.run(h, weight)
        if y.requires_grad:  # a routing to nothing leaves nothing to differentiate
            torch.autograd.grad(y, (h, weight, *self.parameters), torch.ones_like(y), allow_unused=True)


def require_torch() -> Any:
    """Imports torch on all cores of this process, or says how to get it."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"--peers needs torch and transformers ({error}); pip install 'moe-lab[peers]'") from error
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


def hugging_face(block: str, implementation: str) -> Prepare:
    """The experts of `OlmoeSparseMoeBlock` or `MixtralSparseMoeBlock`, eager or grouped_mm."""

    def prepare(case: Case) -> TorchRunnable:
        torch = require_torch()
        started = time.perf_counter()
        experts = _experts(torch, block, implementation, case)
        gate, up, down = (torch.tensor(np.asarray(w)) for w in stacked(case, draw_blocks(case)))
        with torch.no_grad():
            experts.gate_up_proj.copy_(torch.cat([gate, up], dim=2).transpose(1, 2))
            experts.down_proj.copy_(down.transpose(1, 2))
        expert, width, weight = case.route()
        index = torch.tensor(expert.astype(np.int64))
        used = torch.tensor(width > 0)

        def run(h: Any, weight: Any) -> Any:
            return experts(h, index, weight * used)

        return TorchRunnable(
            run,
            torch.tensor(np.asarray(draw_tokens(case))),
            torch.tensor(weight),
            list(experts.parameters()),
            time.perf_counter() - started,
        )

    return prepare


def _experts(torch: Any, block: str, implementation: str, case: Case) -> Any:
    from transformers.models.mixtral import configuration_mixtral, modeling_mixtral
    from transformers.models.olmoe import configuration_olmoe, modeling_olmoe

    shape: dict[str, Any] = {
        "hidden_size": case.d_model,
        "intermediate_size": case.widest * case.block,
        "num_experts_per_tok": case.top_k,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    config: Any
    if block == "OLMoE":
        config = configuration_olmoe.OlmoeConfig(num_experts=len(case.counts), **shape)
        config._experts_implementation = implementation
        return modeling_olmoe.OlmoeSparseMoeBlock(config).experts
    config = configuration_mixtral.MixtralConfig(num_local_experts=len(case.counts), **shape)
    config._experts_implementation = implementation
    return modeling_mixtral.MixtralSparseMoeBlock(config).experts


def module_list(case: Case) -> TorchRunnable:
    """One FFN of its true width for each module, looped over: what anyone would write for modules of several sizes."""
    torch = require_torch()
    started = time.perf_counter()
    blocks, first = draw_blocks(case), np.cumsum(case.counts) - case.counts
    ffns = []
    for start, count in zip(first, case.counts, strict=True):
        own = [np.asarray(w[start : start + count]) for w in blocks]
        gate, up = (np.swapaxes(w, 0, 1).reshape(case.d_model, -1) for w in own[:2])
        weights = (gate.T, up.T, own[2].reshape(-1, case.d_model).T)
        ffns.append([torch.tensor(np.ascontiguousarray(w), requires_grad=True) for w in weights])
    expert, width, weight = case.route()
    # Rows of one module and width run together, on a view of the first rows of its weights.
    groups = []
    for module in range(len(ffns)):
        for blocks_run in np.unique(width[expert == module]):
            token, choice = np.nonzero((expert == module) & (width == blocks_run))
            if blocks_run:
                groups.append((module, int(blocks_run) * case.block, torch.tensor(token), torch.tensor(choice)))

    def run(h: Any, weight: Any) -> Any:
        linear = torch.nn.functional.linear
        y = torch.zeros_like(h)
        for module, units, token, choice in groups:
            gate, up, down = ffns[module]
            rows = h[token]
            hidden = torch.nn.functional.silu(linear(rows, gate[:units])) * linear(rows, up[:units])
            out = linear(hidden, down[:, :units]) * weight[token, choice][:, None]
            y = y.index_add(0, token, out) if torch.is_grad_enabled() else y.index_add_(0, token, out)
        return y

    return TorchRunnable(
        run,
        torch.tensor(np.asarray(draw_tokens(case))),
        torch.tensor(weight),
        [w for ffn in ffns for w in ffn],
        time.perf_counter() - started,
    )


PEERS: dict[str, Prepare] = {
    "torch ModuleList": module_list,
    "HF OLMoE eager": hugging_face("OLMoE", "eager"),
    "HF OLMoE grouped_mm": hugging_face("OLMoE", "grouped_mm"),
    "HF Mixtral eager": hugging_face("Mixtral", "eager"),
    "HF Mixtral grouped_mm": hugging_face("Mixtral", "grouped_mm"),
}
"""By name, in the order of the table."""
