"""Writes many texts at once with one resident model: texts come and go, the compiled programs stay.

Each text has a slot while it is written. A step reads a chunk of one prompt that is not read yet, and then one token of
every text that is being written; so a long prompt never keeps the others waiting for more than a chunk. All shapes are
fixed: two programs are compiled, for a chunk of one row and for a token of every slot; and one that checks guesses.

Shape letters: R rows of a step, S tokens of a chunk, K choices of a token.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from moe_lab.compose.model import ComposedModel
from moe_lab.data.tokenizers import PieceStream
from moe_lab.errors import LabError, Refused
from moe_lab.generation.drafting import Luck, NgramDrafter, Pace
from moe_lab.generation.reading import (
    Checked,
    Chunk,
    Read,
    Terms,
    check_guesses,
    empty_memory,
    read_chunk,
    structure_of,
)
from moe_lab.generation.receipts import Receipt, Tally
from moe_lab.generation.requests import End, Request, Said, Step, read_prompt, said
from moe_lab.generation.sampling import Drawn, Draws
from moe_lab.generation.text import StopStrings
from moe_lab.nn.backends import native


@dataclasses.dataclass
class _Writing:
    """A text in a slot."""

    number: int
    request: Request
    slot: int
    unread: np.ndarray  # int32, of prompt or the last token written
    pieces: PieceStream
    stops: StopStrings
    tally: Tally
    ends: frozenset[int]
    price: float
    drafter: NgramDrafter | None = None
    luck: Luck = dataclasses.field(default_factory=Luck)
    guessed: list[int] = dataclasses.field(default_factory=list)  # what may come behind the last token
    fresh: bool = True
    written: int = 0
    prompt: list[Said] = dataclasses.field(default_factory=list)

    @property
    def in_prompt(self) -> bool:
        """Whether more than the last token is still to be read."""
        return self.fresh or len(self.unread) > 1


class Engine:
    """Texts that are written side by side.

    Args:
        model: on one device, with a router that steps.
        slots: texts at once.
        capacity: tokens that a text may have, its prompt included; memory for them is taken now.
        chunk: tokens of a prompt that are read at once.
        guesses: tokens of a text that are guessed from the text itself and checked in one step, where that is faster;
            what is written stays the same.

    Raises:
        Refused: the router cannot route a text while it is written, or guesses cannot be checked here.
    """

    def __init__(
        self, model: ComposedModel, *, slots: int = 4, capacity: int = 1024, chunk: int = 64, guesses: int = 0
    ):
        require_stepping(model)
        obstacle = native.obstacle_here(model.trunk.precision.compute)
        if guesses and obstacle is not None:
            raise Refused(
                f"guesses are checked by the compiled kernel, which cannot run here ({obstacle}); leave them out"
            )
        self.model, self.slots, self.capacity, self.chunk, self.guesses = model, slots, capacity, chunk, guesses
        self.checked, self.right = 0, 0
        """Guesses that were checked so far, and those that were right."""
        self._structure, self._arrays = structure_of(model), model.arrays()
        self._memory, self._pace = empty_memory(model, slots, capacity, guesses), Pace()
        self._terms, self._draws = Terms.usual(model, slots), Draws.greedy(slots)
        self._waiting: deque[_Writing] = deque()
        self._writing: dict[int, _Writing] = {}  # by slot
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether any text is not finished."""
        return bool(self._waiting or self._writing)

    def try_checking(self) -> None:
        """Compiles the program that checks guesses and measures its pace, before any text waits for it."""
        for _ in range(3 if self.guesses else 0):
            started = time.perf_counter()
            self._check([])
            self._pace.note(True, time.perf_counter() - started)

    def submit(self, request: Request) -> int:
        """Takes a text on; it begins when a slot is free. Returns its number.

        Raises:
            LabError: it would not fit, or names a module that is not composed.
        """
        model, sampling = self.model, request.sampling
        prompt = read_prompt(model, request)
        if (needed := len(prompt) + sampling.max_tokens) > self.capacity:
            raise LabError(
                f"a prompt of {len(prompt)} tokens with max_tokens {sampling.max_tokens} needs room for {needed}, and "
                f"there is room for {self.capacity}; shorten one of them, or raise the room (capacity)"
            )
        if not model.available(request.without).any():
            raise LabError("all modules are opted out of this text; keep at least one")
        price = model.price if request.price is None else request.price
        if not (np.isfinite(price) and price >= 0):
            raise LabError(f"price is {price}; it must be a number from 0 up, in nats per token")
        ends = frozenset(sampling.stop_ids)
        if not sampling.ignore_end:
            ends |= {model.trunk.tokenizer.eos_id, *model.trunk.ends}
        number, self._count = self._count, self._count + 1
        pieces, stops = model.trunk.tokenizer.stream(), StopStrings(sampling.stop)
        drafter = NgramDrafter() if self.guesses else None
        writing = _Writing(number, request, -1, prompt, pieces, stops, Tally(model), ends, float(price), drafter)
        if drafter is not None:
            drafter.read(prompt.tolist())
        self._waiting.append(writing)
        return number

    def cancel(self, number: int) -> Receipt | None:
        """Gives a text's slot back at once; nothing more comes of it. What it cost so far, if it had begun."""
        self._waiting = deque(writing for writing in self._waiting if writing.number != number)
        for slot, writing in self._writing.items():
            if writing.number == number:
                del self._writing[slot]
                return writing.tally.receipt(writing.price, writing.request.without)
        return None

    def step(self) -> list[Step]:
        """Reads one chunk of one prompt, then a token of each text that is being written; what was written."""
        self._admit()
        prompts = [writing for writing in self._writing.values() if writing.in_prompt]
        steps = self._read(min(prompts, key=lambda writing: writing.number)) if prompts else []
        others = [writing for writing in self._writing.values() if not writing.in_prompt]
        if not others:
            return steps
        started, check = time.perf_counter(), self.guesses > 0 and self._guess(others)
        steps += self._check(others) if check else self._read_all(others)
        self._pace.note(check, time.perf_counter() - started)
        return steps

    def _guess(self, others: Sequence[_Writing]) -> bool:
        """Guesses how the texts go on, and whether it pays to check that."""
        for writing in others:
            assert writing.drafter is not None
            left = writing.request.sampling.max_tokens - writing.written - 1
            writing.guessed = writing.drafter.guess(min(self.guesses, left))
        expected = [writing.luck.expect(len(writing.guessed)) for writing in others]
        return self._pace.worth_it(expected)

    def _admit(self) -> None:
        free = deque(slot for slot in range(self.slots) if slot not in self._writing)
        while free and self._waiting:
            writing = self._waiting.popleft()
            slot = writing.slot = free.popleft()
            request = writing.request
            self._terms.price_B[slot] = writing.price
            self._terms.available_BE[slot] = self.model.available(request.without)
            self._terms.hint_BE[slot] = self.model.hint([request.domain or ""])[0]
            self._draws.put(slot, request.sampling)
            self._writing[slot] = writing

    def _read(self, writing: _Writing) -> list[Step]:
        """A chunk of one text that has more than a token to read."""
        own = writing.unread[: self.chunk]
        tokens_RS = np.zeros((1, self.chunk), np.int32)
        tokens_RS[0, : len(own)] = own
        slot_R, first_R, count_R = np.array([writing.slot]), np.array([writing.fresh]), np.array([len(own)])
        chunk = Chunk(slot_R.astype(np.int32), first_R, tokens_RS, count_R.astype(np.int32))
        if not writing.request.score_prompt:
            return self._run(chunk, [writing])
        follows_RS = np.zeros((1, self.chunk), np.int32)
        following = writing.unread[1 : self.chunk + 1]
        follows_RS[0, : len(following)] = following
        return self._run(chunk, [writing], follows_RS)

    def _read_all(self, others: Sequence[_Writing]) -> list[Step]:
        """The last token of each text that is being written."""
        tokens_RS, count_R = np.zeros((self.slots, 1), np.int32), np.zeros(self.slots, np.int32)
        for writing in others:
            tokens_RS[writing.slot], count_R[writing.slot] = writing.unread, 1
        slot_R = np.arange(self.slots, dtype=np.int32)
        rows = [self._writing.get(slot) if count_R[slot] else None for slot in range(self.slots)]
        return self._run(Chunk(slot_R, np.zeros(self.slots, bool), tokens_RS, count_R), rows)

    def _check(self, others: Sequence[_Writing]) -> list[Step]:
        """The last token of each text, and guesses; all that comes of them."""
        tokens_RS, count_R = np.zeros((self.slots, 1 + self.guesses), np.int32), np.zeros(self.slots, np.int32)
        for writing in others:
            own = [*writing.unread, *writing.guessed]
            tokens_RS[writing.slot, : len(own)], count_R[writing.slot] = own, len(own)
        chunk = Chunk(np.arange(self.slots, dtype=np.int32), np.zeros(self.slots, bool), tokens_RS, count_R)
        self._memory, checked = check_guesses(self._structure, self._arrays, self._memory, chunk, *self._copies())
        checked = jax.device_get(checked)
        steps = []
        for writing in others:
            row, guessed = writing.slot, writing.guessed
            kept = int(checked.kept_R[row])
            self.checked, self.right = self.checked + len(guessed), self.right + kept - 1
            writing.luck.note(kept - 1, min(kept, len(guessed)))
            writing.guessed = []
            for place in range(kept):
                writing.tally.add(
                    checked.expert_RSK[row, place : place + 1], checked.blocks_RSK[row, place : place + 1]
                )
                drawn = Drawn(*(values[row, place] for values in checked.drawn))
                steps.append(self._write(writing, drawn, checked, row, place))
                if steps[-1].end is not None:
                    break
        return steps

    def _copies(self) -> tuple[Terms, Draws]:
        """Terms and draws as they are: what is handed to a compiled program must not change while it runs."""
        terms, draws = self._terms, self._draws
        return Terms(*(values.copy() for values in terms)), Draws(*(values.copy() for values in draws))

    def _run(self, chunk: Chunk, rows: Sequence[_Writing | None], follows_RS: np.ndarray | None = None) -> list[Step]:
        terms, draws = self._copies()
        self._memory, read = read_chunk(self._structure, self._arrays, self._memory, chunk, terms, draws, follows_RS)
        read = jax.device_get(read)
        steps = []
        for row, writing in enumerate(rows):
            if writing is None:
                continue
            count = chunk.count_R[row]
            if read.told is not None:
                assert follows_RS is not None
                places = range(min(count, len(writing.unread) - 1))
                told = (values[row] for values in read.told)
                writing.prompt += [said(follows_RS[row, s], *at) for s, *at in zip(places, *told, strict=False)]
            writing.tally.add(read.expert_RSK[row, :count], read.blocks_RSK[row, :count])
            writing.unread, writing.fresh = writing.unread[count:], False
            if not len(writing.unread):
                drawn = Drawn(*(values[row] for values in read.drawn))
                steps.append(self._write(writing, drawn, read, row, count - 1))
        return steps

    def _write(self, writing: _Writing, drawn: Drawn, read: Read | Checked, row: int, place: int) -> Step:
        """Takes a token that was drawn for a text."""
        model, sampling = self.model, writing.request.sampling
        token = int(drawn.token_B)
        if writing.drafter is not None:
            if writing.guessed:  # and not checked, but whether it was right is known now
                writing.luck.note(int(writing.guessed[0] == token), 1)
                writing.guessed = []
            writing.drafter.read([token])
        writing.written += 1
        ends_here = token in writing.ends
        text = "" if ends_here else writing.stops.add(writing.pieces.add(token))
        end: End | None = None
        if ends_here or writing.stops.found is not None:
            end = "stop"
        elif writing.written == sampling.max_tokens:
            end = "length"
        if end is not None and writing.stops.found is None:
            text += writing.stops.add(writing.pieces.end()) + writing.stops.end()
        if end is not None:
            del self._writing[writing.slot]
        writing.unread = np.array([token], np.int32)
        blocks_K = read.blocks_RSK[row, place]
        names = [model.space.modules[expert] for expert in read.expert_RSK[row, place]]
        widths = read.width_RSK[row, place] * model.trunk.spec.block
        return Step(
            request=writing.number,
            said=said(*drawn),
            text=text,
            modules=tuple((name, int(width)) for name, width in zip(names, widths, strict=True) if width),
            multiply_adds=int(blocks_K.sum()) * model.multiply_adds_per_block + model.router.multiply_adds,
            end=end,
            prompt=tuple(writing.prompt) if writing.written == 1 else (),
            receipt=None if end is None else writing.tally.receipt(writing.price, writing.request.without),
        )


def generate(model: ComposedModel, requests: Sequence[Request], *, slots: int = 4, guesses: int = 0) -> Iterator[Step]:
    """Writes some texts on, a few at a time, and gives each token as it is written.

    Args:
        model: from `load_composition`, on one device.
        requests: texts; the steps of all come mixed, `Step.request` counts them from 0.
        slots: texts at once.
        guesses: see `Engine`.

    Raises:
        Refused: the router cannot route a text while it is written, or guesses cannot be checked here.
        LabError: a request names a module that is not composed, or a price that is none.
    """
    require_stepping(model)
    longest = max((len(read_prompt(model, some)) + some.sampling.max_tokens for some in requests), default=1)
    # Few programs: room is a power of two.
    capacity = max(64, 1 << (longest - 1).bit_length())
    engine = Engine(model, slots=min(slots, max(1, len(requests))), capacity=capacity, guesses=guesses)
    for request in requests:
        engine.submit(request)
    while engine.busy:
        yield from engine.step()


def require_stepping(model: ComposedModel) -> None:
    """Refuses models that cannot write."""
    name = type(model.router).__name__
    if model.mesh is not None:
        raise Refused("a model on a mesh cannot write yet; leave the mesh out")
    if not model.router.causal:
        raise Refused(
            f"{name} routes by what comes later in a text, so nothing can be written with it; compose gain, domain, "
            "cascade, topk or fixed"
        )
    if not model.router.steps:
        raise Refused(f"{name} routes whole rows only; it needs `init_state` and `step` to write (docs/routers.md)")
