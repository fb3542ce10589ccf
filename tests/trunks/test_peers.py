"""Held against transformers itself, where it is installed: `make peers`.

The golden logits are still its own, and a config in which one value is changed gives its logits or is refused.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.jobs.trunk_check import LARGEST_DIFFERENCE, LARGEST_DIVERGENCE, compare_logits
from moe_lab.nn.precision import BFLOAT16
from moe_lab.trunks.checkpoint import open_checkpoint
from tests.trunks.cases import CASES, KEPT, tokens, write_folder
from tests.trunks.reference import reference_logits, reference_model, reference_weights
from tests.trunks.run import checkpoint_logits
from tests.trunks.test_families import golden

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FUZZED = [
    "llama3-new",
    "mistral",
    "smollm3-sliding",
    "qwen2-sliding",
    "qwen3",
    "olmo2",
    "olmo3",
    "gemma2",
    "gemma3-new",
]
FUZZED += ["granite", "phi3"]
SHAPES = {"num_hidden_layers", "vocab_size", "model_type", "layer_types"}
"""Keys whose change makes another model to be compared than the one at hand."""


def opened(folder: Path, config: Mapping[str, Any], model: Any) -> Any:
    write_folder(folder, config, reference_weights(model))
    return open_checkpoint(folder, routed_layers=(), block=16)


@pytest.mark.parametrize("case", CASES)
def test_the_golden_logits_are_its_own(case: str) -> None:
    kept, largest, _ = golden(case)
    np.testing.assert_allclose(
        reference_logits(reference_model(CASES[case]), tokens())[KEPT], kept, atol=3e-6 * largest
    )


def others(value: Any) -> Iterator[Any]:
    """Values that a key might have instead."""
    match value:
        case bool():
            yield not value
        case int():
            yield from (value * 2, value + 1, max(1, value // 2))
        case float():
            yield from (value * 1.5, value / 4)
        case None:
            yield from (5.0, 8, True)
        case "silu":
            yield from ("gelu", "gelu_pytorch_tanh", "gelu_new", "relu")
        case "gelu_pytorch_tanh":
            yield from ("silu", "gelu")
        case dict():
            for key, inner in value.items():
                for other in others(inner):
                    yield {**value, key: other}
        case list():
            yield value[::-1]


@pytest.mark.parametrize("case", FUZZED)
def test_one_value_changed_is_followed_or_refused(case: str, tmp_path: Path) -> None:
    config = golden(case)[2]["written"] | {"model_type": CASES[case]["model_type"]}
    base = reference_logits(reference_model(config), tokens())
    spec = opened(tmp_path / "base", config, reference_model(config)).spec
    followed, refused, same = 0, 0, 0
    changes = [(key, other) for key in sorted(config.keys() - SHAPES) for other in others(config[key])]
    for number, (key, value) in enumerate(changes):
        changed = {**config, key: value}
        try:
            model = reference_model(changed)
            theirs = reference_logits(model, tokens())
        except Exception:  # what transformers cannot run is nobody's model
            continue
        try:
            checkpoint = opened(tmp_path / str(number), changed, model)
        except LabError:
            refused += 1
            continue
        if checkpoint.spec == spec and theirs.shape == base.shape and np.array_equal(theirs, base):
            same += 1
            continue
        agreement = compare_logits(checkpoint_logits(checkpoint, tokens()), theirs)
        assert agreement.difference <= LARGEST_DIFFERENCE, f"{key}: {config[key]} -> {value}"
        assert agreement.divergence <= LARGEST_DIVERGENCE, f"{key}: {config[key]} -> {value}"
        followed += 1
    print(f"{case}: {followed} followed, {refused} refused, {same} without effect on both")
    assert followed > 3


@pytest.mark.parametrize("case", FUZZED)
def test_bfloat16_is_as_near_as_theirs(case: str, tmp_path: Path) -> None:
    import torch

    model = reference_model(CASES[case])
    exact = reference_logits(model, tokens())
    checkpoint = opened(tmp_path, CASES[case], model)
    ours = checkpoint_logits(checkpoint, tokens(), BFLOAT16)
    theirs = reference_logits(model.to(torch.bfloat16), tokens())
    assert mean_divergence(exact, ours) <= 1.5 * mean_divergence(exact, theirs)


def mean_divergence(exact_TV: np.ndarray, other_TV: np.ndarray) -> float:
    log_exact, log_other = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
        for logits in (exact_TV.astype(np.float64), other_TV.astype(np.float64))
    )
    return float((np.exp(log_exact) * (log_exact - log_other)).sum(-1).mean())
