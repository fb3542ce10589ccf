"""Who works when: texts that somebody waits for, and batch texts, which take what is left.

Neither lane waits for ever. Of several slots one is the batch lane's as long as it has texts; and while somebody waits,
batch texts may make the others slower by a fixed share of their time, measured as they run. With one slot texts are
written in the order in which they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterator

from moe_lab.generation.writing import Writing

SHARE = 0.15
"""By so much of its time batch texts may slow down a text that somebody waits for."""


class Queues:
    """Texts without a slot, and who of those that have one gives it up.

    Args:
        slots: in all.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._interactive: deque[Writing] = deque()
        self._batch: deque[Writing] = deque()

    def __len__(self) -> int:
        return len(self._interactive) + len(self._batch)

    def __iter__(self) -> Iterator[Writing]:
        yield from self._interactive
        yield from self._batch

    def add(self, writing: Writing) -> None:
        """The last of its lane; one that was interrupted is the first."""
        queue = self._interactive if writing.interactive else self._batch
        if writing.parked:
            queue.appendleft(writing)
        else:
            queue.append(writing)

    def remove(self, number: int) -> Writing | None:
        """Takes a text out, if it is here."""
        for queue in (self._interactive, self._batch):
            for writing in queue:
                if writing.number == number:
                    queue.remove(writing)
                    return writing
        return None

    def next(self, running: Collection[Writing]) -> Writing | None:
        """Takes out the text that gets a slot, if one is free for it."""
        free = self._slots - len(running)
        if not free or not len(self):
            return None
        if not (self._interactive and self._batch):
            return (self._interactive or self._batch).popleft()
        if self._slots == 1:
            earlier = min(self._interactive[0].number, self._batch[0].number)
            return self.remove(earlier)
        last_for_batch = free == 1 and all(writing.interactive for writing in running)
        return (self._batch if last_for_batch else self._interactive).popleft()

    def interrupted(self, running: Collection[Writing]) -> Writing | None:
        """The batch text whose slot somebody waits for: the newest, and never the only one."""
        batch = [writing for writing in running if not writing.interactive]
        if len(running) < self._slots or not self._interactive or len(batch) < 2:
            return None
        return max(batch, key=lambda writing: writing.number)


class Share:
    """When batch texts may work beside those that somebody waits for: a share of the others' time is theirs."""

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._saved = 0.0
        self._alone: dict[Hashable, float] = {}  # seconds of a step without batch texts, by its kind
        self._dearer = 0.0  # seconds by which batch texts lengthen a step

    def may_join(self, kind: Hashable) -> bool:
        """Whether batch texts may take part in the next step, which is of this kind; how long it takes without them has
        to be known."""
        return kind in self._alone and self._saved >= self._dearer

    def note(self, kind: Hashable, joined: bool, seconds: float) -> None:
        """What a step took: `kind` says what it did for those that somebody waits for, `joined` whether batch texts
        were with them."""
        if joined:
            alone = self._alone[kind]
            more = max(0.0, seconds - alone)
            self._dearer = more if not self._dearer else (self._dearer + more) / 2
        else:
            before = self._alone.get(kind, seconds)
            alone = self._alone[kind] = (before + min(seconds, 2 * before)) / 2  # one step in a crowd says little
            more = 0.0
        # What is not spent is kept for one step and no longer, or a quiet hour would pay for a slow minute.
        self._saved = min(self._saved + self._share * alone - more, max(self._dearer, self._share * alone))
