"""Writes many texts at once with one resident model: texts come and go, the compiled programs stay.

Each text has a slot while it is written. A step reads a chunk of one prompt that is not read yet, and then one token of
every text that is being written; so a long prompt never keeps the others waiting for more than a chunk. All shapes are
fixed: programs are compiled for a chunk of one row, for a token of one, four, sixteen, ... rows, and for what checks
guesses. What a text has read page by page is kept for others that begin alike, and put aside while it is interrupted.

Shape letters: R rows of a step, S tokens of a chunk, P tokens of a page, K choices of a token.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from moe_lab.compose.model import ComposedModel
from moe_lab.errors import LabError, Refused
from moe_lab.generation.drafting import NgramDrafter, Pace
from moe_lab.generation.lanes import Queues, Share
from moe_lab.generation.pages import Kept, Page, Shelf, Trail, first_key, page_keys, put_page, take_page
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
from moe_lab.generation.requests import Request, Step, read_prompt, said
from moe_lab.generation.sampling import Drawn, Draws
from moe_lab.generation.text import StopStrings
from moe_lab.generation.writing import Writing
from moe_lab.nn.backends import native

KEEP_BYTES = 256 << 20
"""Of what texts have read, for those that begin alike."""


class Engine:
    """Texts that are written side by side.

    Args:
        model: on one device, with a router that steps.
        slots: texts at once.
        capacity: tokens that a text may have, its prompt included; memory for them is taken now.
        chunk: tokens of a prompt that are read at once.
        guesses: tokens of a text that are guessed from the text itself and checked in one step, where that is faster;
            what is written stays the same.
        keep_bytes: of what texts have read, for later ones that begin alike.

    Attributes:
        checked: guesses that were checked so far.
        right: those of them that were right.
        shelf: what is kept for texts that begin alike.

    Raises:
        Refused: the router cannot route a text while it is written, or guesses cannot be checked here.
    """

    def __init__(
        self,
        model: ComposedModel,
        *,
        slots: int = 4,
        capacity: int = 1024,
        chunk: int = 64,
        guesses: int = 0,
        keep_bytes: int = KEEP_BYTES,
    ):
        require_stepping(model)
        obstacle = native.obstacle_here(model.trunk.precision.compute)
        if guesses and obstacle is not None:
            raise Refused(
                f"guesses are checked by the compiled kernel, which cannot run here ({obstacle}); leave them out"
            )
        self.model, self.slots, self.capacity, self.chunk, self.guesses = model, slots, capacity, chunk, guesses
        self.checked, self.right = 0, 0
        self.shelf = Shelf(keep_bytes)
        self._structure, self._arrays = structure_of(model), model.arrays()
        self._memory = empty_memory(model, slots, capacity, guesses)
        self._terms, self._draws = Terms.usual(model, slots), Draws.greedy(slots)
        self._queues, self._share = Queues(slots), Share()
        self._paces = {rows: Pace() for rows in row_counts(slots)}
        self._writing: dict[int, Writing] = {}  # by slot
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether any text is not finished."""
        return bool(self._queues or self._writing)

    def warm(self) -> None:
        """Compiles all programs and measures the pace of checking guesses, before any text waits for it."""
        nothing = np.zeros((1, self.chunk), np.int32)
        for follows_RS in (None, nothing):
            self._run([], nothing.shape, follows_RS)
        for rows, pace in self._paces.items():
            self._run([], (rows, 1))
            for _ in range(3 if self.guesses else 0):
                started = time.perf_counter()
                self._check([], rows)
                pace.note(True, time.perf_counter() - started)
        self._put(take_page(self._memory, 0, 0, self.chunk), 0, 0, 0)

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
        writing = Writing(
            number=number,
            request=request,
            price=float(price),
            ends=ends,
            unread=prompt,
            tally=Tally(model),
            pieces=model.trunk.tokenizer.stream(),
            stops=StopStrings(sampling.stop),
            drafter=NgramDrafter() if self.guesses else None,
        )
        if writing.drafter is not None:
            writing.drafter.read(prompt.tolist())
        self._queues.add(writing)
        return number

    def cancel(self, number: int) -> Receipt | None:
        """Gives a text's slot back at once; nothing more comes of it. What it cost so far, if it had begun."""
        writing = self._queues.remove(number)
        if writing is None:
            writing = next((some for some in self._writing.values() if some.number == number), None)
            if writing is not None:
                del self._writing[writing.slot]
        return writing.receipt() if writing is not None and writing.begun else None

    def step(self) -> list[Step]:
        """Reads one chunk of one prompt, then a token of each text that is being written; what was written.

        Batch texts take part in it as far as those that somebody waits for can spare the time.
        """
        self._admit()
        everybody = list(self._writing.values())
        waited_for = [writing for writing in everybody if writing.interactive]
        if not waited_for:
            return self._turn(everybody)
        kind = (any(writing.in_prompt for writing in waited_for), self._rows(waited_for))
        joined = len(waited_for) < len(everybody) and self._share.may_join(kind)
        started = time.perf_counter()
        steps = self._turn(everybody if joined else waited_for)
        self._share.note(kind, joined, time.perf_counter() - started)
        return steps

    def _turn(self, texts: Sequence[Writing]) -> list[Step]:
        """A step of these texts. Where several have a prompt to read, one that somebody waits for comes first."""
        prompts = [writing for writing in texts if writing.in_prompt]
        first = min(prompts, key=lambda writing: (not writing.interactive, writing.number), default=None)
        steps = [] if first is None else self._read(first)
        others = [writing for writing in texts if not writing.in_prompt and self._writing.get(writing.slot) is writing]
        if not others:
            return steps
        rows, check = self._rows(others), self.guesses > 0 and self._guess(others)
        started = time.perf_counter()
        steps += self._check(others, rows) if check else self._read_all(others, rows)
        self._paces[rows].note(check, time.perf_counter() - started)
        return steps

    def _rows(self, texts: Sequence[Writing]) -> int:
        """Rows of the smallest program that reads a token of each."""
        return next(rows for rows in self._paces if rows >= len(texts))

    def _guess(self, others: Sequence[Writing]) -> bool:
        """Guesses how the texts go on, and whether it pays to check that."""
        for writing in others:
            assert writing.drafter is not None
            left = writing.request.sampling.max_tokens - writing.written - 1
            writing.guessed = writing.drafter.guess(min(self.guesses, left))
        expected = [writing.luck.expect(len(writing.guessed)) for writing in others]
        return self._paces[self._rows(others)].worth_it(expected)

    def _admit(self) -> None:
        """Gives free slots to those who wait, and takes one back where somebody waits for it."""
        while True:
            running = self._writing.values()
            if (interrupted := self._queues.interrupted(running)) is not None:
                self._park(interrupted)
            elif (writing := self._queues.next(running)) is not None:
                self._begin(writing, next(slot for slot in range(self.slots) if slot not in self._writing))
            else:
                return

    def _begin(self, writing: Writing, slot: int) -> None:
        """Puts a text into a slot, with what was read of it, or of one that begins alike."""
        request = writing.request
        self._terms.price_B[slot] = writing.price
        self._terms.available_BE[slot] = self.model.available(request.without)
        self._terms.hint_BE[slot] = self.model.hint([request.domain or ""])[0]
        self._draws.put(slot, request.sampling)
        self._writing[slot], writing.slot = writing, slot
        if writing.parked:
            for index, page in enumerate(writing.parked):
                first = index * self.chunk
                self._put(page, slot, first, min(self.chunk, writing.length - first))
            writing.parked = []
        elif self.shelf.most_bytes:
            self._reuse(writing)

    def _reuse(self, writing: Writing) -> None:
        """Begins a text behind the pages that an earlier one has read, on the same terms."""
        terms = (self._terms.price_B, self._terms.available_BE, self._terms.hint_BE)
        key, tokens = first_key(*(values[writing.slot].tobytes() for values in terms)), self.chunk
        # Its last token is read in any case, for what comes behind it; and all are where each is to be told.
        reusable = writing.unread[:-1] if not writing.request.score_prompt else writing.unread[:0]
        for found, kept in self.shelf.find(page_keys(key, reusable, tokens)):
            self._put(kept.page, writing.slot, writing.length, tokens)
            writing.count(kept.expert_PK, kept.blocks_PK)
            key = found
        writing.reused, writing.unread = writing.length, writing.unread[writing.length :]
        writing.trail = Trail(key, tokens)

    def _park(self, writing: Writing) -> None:
        """Puts aside what a slot remembers of a text, which then waits for another."""
        del self._writing[writing.slot]
        writing.parked = [
            take_page(self._memory, writing.slot, first, self.chunk) for first in range(0, writing.length, self.chunk)
        ]
        writing.slot = -1
        self._queues.add(writing)

    def _put(self, page: Page, slot: int, first: int, count: int) -> None:
        self._memory = put_page(self._memory, page, slot, first, count)

    def _keep(self, writing: Writing, tokens_S: np.ndarray, expert_SK: np.ndarray, blocks_SK: np.ndarray) -> None:
        """Keeps the page that ends with what was just read of a text, for those that begin alike."""
        if writing.trail is None:
            return
        filled = writing.trail.note(tokens_S, expert_SK, blocks_SK)
        if filled is not None and filled.key not in self.shelf:
            page = take_page(self._memory, writing.slot, writing.length - self.chunk, self.chunk)
            self.shelf.add(filled.key, Kept(page, filled.expert_PK, filled.blocks_PK))
        if writing.trail.lost:
            writing.trail = None

    def _read(self, writing: Writing) -> list[Step]:
        """A chunk of one text that has more than a token to read."""
        if not writing.request.score_prompt:
            return self._run([writing], (1, self.chunk))
        follows_RS = np.zeros((1, self.chunk), np.int32)
        following = writing.unread[1 : self.chunk + 1]
        follows_RS[0, : len(following)] = following
        return self._run([writing], (1, self.chunk), follows_RS)

    def _read_all(self, others: Sequence[Writing], rows: int) -> list[Step]:
        """The last token of each text that is being written."""
        return self._run(others, (rows, 1))

    def _chunk(self, texts: Sequence[Writing], shape_RS: tuple[int, int]) -> tuple[Chunk, list[int]]:
        """What these texts read next, as far as it fits, with their guesses behind it; and how much that is."""
        rows, length = shape_RS
        tokens_RS, count_R = np.zeros(shape_RS, np.int32), np.zeros(rows, np.int32)
        first_R = np.zeros(rows, bool)
        for row, writing in enumerate(texts):
            own = [*writing.unread, *writing.guessed][:length]
            tokens_RS[row, : len(own)], count_R[row], first_R[row] = own, len(own), not writing.begun
        # Rows that read nothing work on slots of their own, and change nothing there.
        own_slots = [writing.slot for writing in texts]
        others = [slot for slot in range(self.slots) if slot not in own_slots]
        slot_R = np.array([*own_slots, *others][:rows], np.int32)
        return Chunk(slot_R, first_R, tokens_RS, count_R), count_R.tolist()

    def _check(self, others: Sequence[Writing], rows: int) -> list[Step]:
        """The last token of each text, and guesses; all that comes of them."""
        chunk, _ = self._chunk(others, (rows, 1 + self.guesses))
        self._memory, checked = check_guesses(self._structure, self._arrays, self._memory, chunk, *self._copies())
        checked = jax.device_get(checked)
        steps = []
        for row, writing in enumerate(others):
            guessed, kept = writing.guessed, int(checked.kept_R[row])
            self.checked, self.right = self.checked + len(guessed), self.right + kept - 1
            writing.luck.note(kept - 1, min(kept, len(guessed)))
            writing.guessed = []
            for place in range(kept):
                own = slice(place, place + 1)
                writing.count(checked.expert_RSK[row, own], checked.blocks_RSK[row, own])
                drawn = Drawn(*(values[row, place] for values in checked.drawn))
                steps.append(self._take(writing, drawn, checked, row, place))
                if steps[-1].end is not None:
                    break
            else:
                self._keep(
                    writing, chunk.tokens_RS[row, :kept], checked.expert_RSK[row, :kept], checked.blocks_RSK[row, :kept]
                )
        return steps

    def _copies(self) -> tuple[Terms, Draws]:
        """Terms and draws as they are: what is handed to a compiled program must not change while it runs."""
        terms, draws = self._terms, self._draws
        return Terms(*(values.copy() for values in terms)), Draws(*(values.copy() for values in draws))

    def _run(
        self, texts: Sequence[Writing], shape_RS: tuple[int, int], follows_RS: np.ndarray | None = None
    ) -> list[Step]:
        chunk, counts = self._chunk(texts, shape_RS)
        terms, draws = self._copies()
        self._memory, read = read_chunk(self._structure, self._arrays, self._memory, chunk, terms, draws, follows_RS)
        read = jax.device_get(read)
        steps = []
        for row, (writing, count) in enumerate(zip(texts, counts, strict=False)):
            if read.told is not None:
                assert follows_RS is not None
                places = range(min(count, len(writing.unread) - 1))
                told = (values[row] for values in read.told)
                writing.prompt += [said(follows_RS[row, s], *at) for s, *at in zip(places, *told, strict=False)]
            own, writing.unread = writing.unread[:count], writing.unread[count:]
            ran = read.expert_RSK[row, :count], read.blocks_RSK[row, :count]
            writing.count(*ran)
            self._keep(writing, own, *ran)
            if not len(writing.unread):
                drawn = Drawn(*(values[row] for values in read.drawn))
                steps.append(self._take(writing, drawn, read, row, count - 1))
        return steps

    def _take(self, writing: Writing, drawn: Drawn, made: Read | Checked, row: int, place: int) -> Step:
        """Takes a token that was drawn for a text; its slot is free if it was the last."""
        step = writing.take(drawn, made, row, place, self.model)
        if step.end is not None:
            del self._writing[writing.slot]
        return step


def row_counts(slots: int) -> list[int]:
    """Rows of the programs that read a token of several texts: four times as many each, up to all slots."""
    return [*itertools.takewhile(lambda rows: rows < slots, (4**n for n in itertools.count())), slots]


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
