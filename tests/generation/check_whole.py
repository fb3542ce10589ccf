"""Greedy texts of a real trunk, held against reading the whole of each again, and against the same written alone.

    python -m tests.generation.check_whole LAB OWNER/TRUNK

Fifty prompts of 64 ids each, 64 tokens written. `tests/generation/bench_generate.py` says what the trunk is composed
with.
"""

from __future__ import annotations

import inspect
import sys

import jax
import numpy as np

from moe_lab.compose.model import ComposedModel
from moe_lab.generation.engine import Engine
from moe_lab.generation.requests import Request, Step
from moe_lab.generation.sampling import Sampling
from tests.compose.published import Tokens
from tests.generation.bench_generate import compose

PROMPTS, LENGTH = 50, 64


def write(model: ComposedModel, prompts: list[tuple[int, ...]], **sizes: int) -> list[list[Step]]:
    engine, steps = Engine(model, capacity=2 * LENGTH + 8, **sizes), {}
    for prompt in prompts:
        steps[engine.submit(Request(prompt=prompt, sampling=Sampling(max_tokens=LENGTH, ignore_end=True)))] = []
    while engine.busy:
        for step in engine.step():
            steps[step.request].append(step)
    return list(steps.values())


def main() -> None:
    root, ref = sys.argv[1:]
    model = compose(root, ref)
    ids = model.trunk.tokenizer.encode("\n".join(inspect.getsource(some) for some in (inspect, np.lib.format, jax.nn)))[
        0
    ]
    places = np.random.default_rng(0).integers(0, len(ids) - LENGTH, PROMPTS)
    prompts = [tuple(ids[place : place + LENGTH].tolist()) for place in places]
    together, alone = write(model, prompts, slots=16), write(model, prompts, slots=1, chunk=17)
    same = sum([s.said for s in one] == [s.said for s in other] for one, other in zip(together, alone, strict=True))
    print(f"{same} of {PROMPTS} texts have the same bits written sixteen at a time and alone in other chunks")
    equal, worst, arrays, everything = 0, 0.0, model.arrays(), model.available(())
    for prompt, steps in zip(prompts, together, strict=True):
        written = [step.token for step in steps]
        tokens = np.array([[model.trunk.tokenizer.start_id, *prompt, *written[:-1]]], np.int32)
        batch = Tokens(
            tokens, np.zeros_like(tokens), np.ones_like(tokens), np.arange(tokens.size, dtype=np.int32)[None]
        )
        logits = np.asarray(
            model.run_with_logits(arrays, batch, model.enter(arrays, batch), available_E=everything)[0]
        )[0, -LENGTH:]
        equal += int((logits.argmax(-1) == written).sum())
        whole = np.asarray(jax.nn.log_softmax(logits))[np.arange(LENGTH), written]
        worst = max(worst, float(np.abs(whole - [step.said.logprob for step in steps]).max()))
    print(
        f"{equal} of {PROMPTS * LENGTH} tokens are the likeliest when all is read again; log-probabilities differ by "
        f"{worst:.2g} nats at most"
    )


if __name__ == "__main__":
    main()
