"""What guesses are worth: seconds for the same texts with and without, in turns, by kind of prompt.

    python -m tests.generation.bench_guesses LAB OWNER/TRUNK [PRECISION]...

The trunk is one that converses. `tests/generation/bench_generate.py` says what it is composed with.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
import time
from typing import Any

from moe_lab.compose.model import ComposedModel
from moe_lab.generation import drafting
from moe_lab.generation.chat import Message, chat_request
from moe_lab.generation.engine import Engine
from moe_lab.generation.requests import Request
from moe_lab.generation.sampling import Sampling
from tests.generation.bench_generate import compose

GUESSES, ROUNDS = 8, 3
CODE = inspect.getsource(drafting.NgramDrafter.read)
PROSE = textwrap.shorten(inspect.getdoc(drafting) or "", 900)
KINDS = {
    "code": [
        f"Write this function again, with `token` renamed to `item`:\n```python\n{CODE}```",
        f"Add a comment to each line of this function:\n```python\n{CODE}```",
    ],
    "summaries": [f"Summarise this text:\n{PROSE}", f"List the main points of this text, in its own words:\n{PROSE}"],
    "stories": ["Write a story about a lighthouse keeper.", "Describe a market in the morning."],
    "questions": ["Why is the sky blue?", "Name five rivers of Europe and where they end."],
}


def requests(model: ComposedModel, kind: str, temperature: float) -> list[Request]:
    sampling = Sampling(max_tokens=100, temperature=temperature, seed=1, ignore_end=True)
    return [chat_request(model, [Message(role="user", content=text)], sampling=sampling) for text in KINDS[kind]]


def run(engine: Engine, texts: list[Request]) -> tuple[float, list[list[int]]]:
    """Seconds behind the prompts, and the tokens; one text after another."""
    took, written = 0.0, []
    for text in texts:
        engine.submit(text)
        steps = engine.step()
        while not steps:
            steps = engine.step()
        started = time.perf_counter()
        while engine.busy:
            steps += engine.step()
        took += time.perf_counter() - started
        written.append([step.token for step in steps])
    return took, written


def main() -> None:
    precisions: list[Any]
    root, ref, *precisions = sys.argv[1:]
    for precision in precisions or ["float32", "bfloat16_weights"]:
        model = compose(root, ref, precision)
        plain, guessing = Engine(model, slots=1), Engine(model, slots=1, guesses=GUESSES)
        for temperature in (0.0, 0.8):
            for kind in KINDS:
                texts = requests(model, kind, temperature)
                run(plain, texts[:1])
                run(guessing, texts)
                checked, right = guessing.checked, guessing.right
                times = [(run(plain, texts), run(guessing, texts)) for _ in range(ROUNDS)]
                assert all(one[1] == other[1] for one, other in times), "guesses changed a text"
                (slow, fast), tokens = (min(pair[side][0] for pair in times) for side in (0, 1)), 200
                checked, right = guessing.checked - checked, guessing.right - right
                print(
                    f"{precision}, {kind}, temperature {temperature}: {tokens / slow:.1f} tokens/s, with guesses "
                    f"{tokens / fast:.1f}, {slow / fast:.2f} times; {right} of {checked} guesses were right",
                    flush=True,
                )


if __name__ == "__main__":
    main()
