"""A text under way: what is read, what is written, and how a token that was drawn becomes a step."""

from __future__ import annotations

import dataclasses

import numpy as np

from moe_lab.compose.model import ComposedModel
from moe_lab.data.tokenizers import PieceStream
from moe_lab.generation.drafting import Luck, NgramDrafter
from moe_lab.generation.pages import Page, Trail
from moe_lab.generation.reading import Checked, Read
from moe_lab.generation.receipts import Receipt, Tally
from moe_lab.generation.requests import End, Request, Said, Step, said
from moe_lab.generation.sampling import Drawn
from moe_lab.generation.text import StopStrings


@dataclasses.dataclass(eq=False)
class Writing:
    """A text that is taken on.

    Attributes:
        slot: where it is written; -1 while it waits.
        unread: int32, what is left of the prompt, or the last token written.
        length: tokens that were read.
        trail: to its next full page; none where pages are not kept.
        reused: tokens of its prompt that an earlier text had read.
        parked: what its slot remembered, while it is interrupted.
        guessed: what may come behind the last token.
    """

    number: int
    request: Request
    price: float
    ends: frozenset[int]
    unread: np.ndarray
    tally: Tally
    pieces: PieceStream
    stops: StopStrings
    trail: Trail | None = None
    drafter: NgramDrafter | None = None
    luck: Luck = dataclasses.field(default_factory=Luck)
    slot: int = -1
    length: int = 0
    reused: int = 0
    written: int = 0
    guessed: list[int] = dataclasses.field(default_factory=list)
    prompt: list[Said] = dataclasses.field(default_factory=list)
    parked: list[Page] = dataclasses.field(default_factory=list)

    @property
    def interactive(self) -> bool:
        return self.request.lane == "interactive"

    @property
    def begun(self) -> bool:
        return self.length > 0

    @property
    def in_prompt(self) -> bool:
        """Whether more than the last token is still to be read."""
        return not self.begun or len(self.unread) > 1

    def count(self, expert_SK: np.ndarray, blocks_SK: np.ndarray) -> None:
        """Notes that tokens were read, and what ran for them."""
        self.tally.add(expert_SK, blocks_SK)
        self.length += len(expert_SK)

    def receipt(self) -> Receipt:
        """So far."""
        return self.tally.receipt(self.price, self.request.without)

    def take(self, drawn: Drawn, made: Read | Checked, row: int, place: int, model: ComposedModel) -> Step:
        """Takes a token that was drawn for it.

        Args:
            drawn: the token.
            made: what chose it.
            row: the text's in that.
            place: of the token before it in that.
            model: whose router chose.
        """
        token = int(drawn.token_B)
        if self.drafter is not None:
            if self.guessed:  # and not checked, but whether it was right is known now
                self.luck.note(int(self.guessed[0] == token), 1)
                self.guessed = []
            self.drafter.read([token])
        self.written += 1
        self.unread = np.array([token], np.int32)
        text, end = self._text(token)
        blocks_K = made.blocks_RSK[row, place]
        names = [model.space.modules[expert] for expert in made.expert_RSK[row, place]]
        widths = made.width_RSK[row, place] * model.trunk.spec.block
        first = self.written == 1
        return Step(
            request=self.number,
            said=said(*drawn),
            text=text,
            modules=tuple((name, int(width)) for name, width in zip(names, widths, strict=True) if width),
            multiply_adds=int(blocks_K.sum()) * model.multiply_adds_per_block + model.router.multiply_adds,
            end=end,
            prompt=tuple(self.prompt) if first else (),
            reused=self.reused if first else 0,
            receipt=None if end is None else self.receipt(),
        )

    def _text(self, token: int) -> tuple[str, End | None]:
        """What is certain to be the text's next part, and why it ends here, if it does."""
        ends_here = token in self.ends
        text = "" if ends_here else self.stops.add(self.pieces.add(token))
        end: End | None = None
        if ends_here or self.stops.found is not None:
            end = "stop"
        elif self.written == self.request.sampling.max_tokens:
            end = "length"
        if end is not None and self.stops.found is None:
            text += self.stops.add(self.pieces.end()) + self.stops.end()
        return text, end
