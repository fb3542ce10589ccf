"""What transformers computes from the same files: the oracle of an import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.errors import LabError, Unavailable, printable


def reference_logits(source: Path, tokens_T: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Float32[T, V] of one document, by transformers in float32 with plain attention.

    Args:
        source: a folder, or a GGUF file, which needs the package `accelerate` as well.
        tokens_T: its ids.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise Unavailable(f"comparing with transformers needs it: install moe-lab[peers] ({error})") from error
    where = {"pretrained_model_name_or_path": str(source)}
    if source.is_file():
        where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        ).eval()
    except Exception as error:  # it raises what its parts raise
        reason = printable(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        raise LabError(f"transformers cannot read {source}: {reason[:300]}") from error
    with torch.no_grad():
        logits_BTV = model(torch.asarray(tokens_T[None].astype(np.int64))).logits
    logits_TV: np.ndarray[Any, Any] = logits_BTV[0].numpy()
    return logits_TV
