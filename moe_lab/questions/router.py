"""A trained question router: predicts every candidate's quality on an item, and picks by price.

Legend: N items, C candidates, G groups, F numbers, X features.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np

from moe_lab.config import decode
from moe_lab.errors import LabError, NotFound, Refused, did_you_mean
from moe_lab.metrics.choices import Choice, choose
from moe_lab.questions.features import FeatureMap, RawFeatures, raw_features
from moe_lab.questions.heads import Calibration, Heads, Link, expected, inverse, rising
from moe_lab.questions.neighbours import Neighbours, make_embedding
from moe_lab.questions.spec import QuestionFeatures
from moe_lab.questions.table import ItemTable

Mode = Literal["learned", "group_table", "zero_router"]


@dataclasses.dataclass(frozen=True)
class Joined:
    """Candidates without heads of their own, read off the others' predictions; made by `moe_lab.questions.join`.

    link(inverse(quality_NC) @ weight_CJ + bias_J), C the candidates that the heads know, J those that joined
    """

    weight_CJ: np.ndarray
    bias_J: np.ndarray

    def __call__(self, quality_NC: np.ndarray, link: Link) -> np.ndarray:
        """Predicted qualities of those that joined [N, J]."""
        # Not by matmul, whose rounding depends on how many have joined.
        terms = zip(inverse(quality_NC, link).T, self.weight_CJ, strict=True)
        return expected(self.bias_J + sum(z_N[:, None] * weight_J for z_N, weight_J in terms), link)

    def and_then(self, later: Joined) -> Joined:
        """These, and behind them those that joined later."""
        weight_CJ = np.concatenate([self.weight_CJ, later.weight_CJ], axis=1)
        return Joined(weight_CJ, np.concatenate([self.bias_J, later.bias_J]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionRouter:
    """What training makes. `mode` says whether it routes by what it learnt, or abstains and to what.

    `names`, costs and means are of all candidates, those that joined last; heads, neighbours, calibration and ladders
    are of the ones it was trained on.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    number_names: tuple[str, ...]
    mode: Mode
    cost_C: np.ndarray  # mean cost of each candidate on the training items
    mean_C: np.ndarray  # mean quality
    group_mean_GC: np.ndarray
    features: FeatureMap
    heads: Heads
    neighbours: Neighbours | None
    calibration: Calibration
    ladders: tuple[tuple[int, ...], ...]
    joined: Joined | None = None

    @property
    def relative_cost_C(self) -> np.ndarray:
        """Cost in units of the dearest candidate, so that a price is the quality one would give to run that one."""
        return relative_cost(self.cost_C)

    @property
    def parameters(self) -> int:
        """Numbers of its own that a prediction may read; a sentence encoder has more."""
        arrays = self.tensors()
        return sum(array.size for name, array in arrays.items() if not name.startswith("kept/"))

    def learned(self, raw: RawFeatures) -> np.ndarray:
        """Quality [N, C] as the heads see it, calibrated, whatever the mode."""
        return self.blended(*self.parts(raw))

    def blended(self, heads_NC: np.ndarray, neighbours_NC: np.ndarray) -> np.ndarray:
        """The same from `parts`."""
        predicted = self.calibration(heads_NC, neighbours_NC)
        risen = rising(predicted, [list(ladder) for ladder in self.ladders])
        if self.joined is None:
            return risen
        return np.concatenate([risen, self.joined(risen, self.heads.link)], axis=1)

    def parts(self, raw: RawFeatures) -> tuple[np.ndarray, np.ndarray]:
        """What the calibration blends: heads and neighbours (the heads again, where there are none) [N, C] each."""
        x_NX = self.features(raw)
        heads_NC = self.heads(x_NX)
        return heads_NC, heads_NC if self.neighbours is None else self.neighbours(x_NX)

    def by_group(self, group_N: np.ndarray) -> np.ndarray:
        """The mean quality of each item's group [N, C]; of all items, where the group is unknown."""
        known = (group_N >= 0) & (group_N < len(self.group_mean_GC))
        return np.where(known[:, None], self.group_mean_GC[np.where(known, group_N, 0)], self.mean_C)

    def predict(self, raw: RawFeatures) -> np.ndarray:
        """Predicted quality [N, C] by the router's mode."""
        if self.mode == "learned":
            return self.learned(raw)
        if self.mode == "group_table":
            return self.by_group(raw.group_N)
        return np.tile(self.mean_C, (len(raw.group_N), 1))

    def route(self, table: ItemTable, price: float, available: Collection[str] | None = None) -> Choice:
        """A candidate for each item of a table [N], as an index into `names`; the outcomes are not looked at.

        Args:
            price: the quality that running the dearest candidate must be worth.
            available: the candidates that there are; by default the table's own. One that the router does not know
                is refused, one that is missing is never chosen.
        """
        there = list(table.names if available is None else available)
        if unknown := [name for name in there if name not in self.names]:
            raise NotFound(
                f'this router has never seen the candidate "{unknown[0]}"; train it on a table that has it.'
                f"{did_you_mean(unknown[0], self.names)}"
            )
        if not there:
            raise LabError(f"no candidate is available; name some of {', '.join(self.names)}")
        absent_C = np.array([name not in there for name in self.names])
        loss_NC = np.where(absent_C, np.inf, -self.predict(self.read(table)))
        return choose(loss_NC, self.relative_cost_C, price)

    def read(self, table: ItemTable) -> RawFeatures:
        """The raw features of another table's items, with groups and numbers matched by name."""
        if self.reads_text != (table.text_N is not None):
            like = "with text" if self.reads_text else "without text"
            raise LabError(f"{table.name}: this router was trained on items {like}; give it the like")
        if lost := [name for name in self.number_names if name not in table.number_names]:
            raise LabError(f"{table.name}: the router reads {lost[0]}, which the table lacks; add that column")
        order = [table.number_names.index(name) for name in self.number_names]
        known = {name: g for g, name in enumerate(self.groups)}
        group_N = np.array([known.get(name, -1) for name in table.groups], np.int64)[table.group_N]
        seen = dataclasses.replace(
            table, number_NF=table.number_NF[:, order], number_names=self.number_names, group_N=group_N
        )
        raw = raw_features(seen, self.features.settings)
        if raw.encoder != self.features.encoder:
            raise Refused(
                f"{self.features.settings.encoder}: the encoder there is {raw.encoder}, but this router was trained "
                f"with {self.features.encoder}; install that one, or train the router again"
            )
        return raw

    @property
    def reads_text(self) -> bool:
        """Whether the items had text: then there are numbers about how it looks, if nothing else of it is read."""
        return len(self.features.mean_F) > len(self.number_names)

    def tensors(self) -> dict[str, np.ndarray]:
        """All its arrays by name."""
        arrays = {
            "weight": self.heads.weight_XC,
            "bias": self.heads.bias_C,
            "calibration": self.calibration.weight_2,
            "middle": self.calibration.middle_C,
            "cost": self.cost_C,
            "mean": self.mean_C,
            "group_mean": self.group_mean_GC,
            "number_mean": self.features.mean_F,
            "number_spread": self.features.spread_F,
        }
        for block, (kept, idf) in enumerate(zip(self.features.kept, self.features.idf, strict=True)):
            arrays |= {f"kept/{block}": kept, f"idf/{block}": idf}
        if self.features.encoder is not None:
            arrays["encoded_mean"] = self.features.encoded_mean_W
        if (near := self.neighbours) is not None:
            arrays |= {"direction": near.embedding.direction_ZW, "point": near.points_MW, "quality": near.quality_MC}
        if self.joined is not None:
            arrays |= {"joined_weight": self.joined.weight_CJ, "joined_bias": self.joined.bias_J}
        return arrays

    def describe(self) -> dict[str, Any]:
        """Everything that is not an array."""
        return {
            "names": list(self.names),
            "groups": list(self.groups),
            "number_names": list(self.number_names),
            "mode": self.mode,
            "link": self.heads.link,
            "ladders": [list(ladder) for ladder in self.ladders],
            "features": self.features.settings.model_dump(mode="json"),
            "encoder": self.features.encoder,
        }

    @staticmethod
    def rebuild(described: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> QuestionRouter:
        """The inverse of `describe` and `tensors`."""
        blocks = range(sum(name.startswith("kept/") for name in tensors))
        groups, near = tuple(described["groups"]), None
        features = FeatureMap(
            settings=decode(QuestionFeatures, described["features"], "features of a router"),
            num_groups=len(groups),
            kept=tuple(tensors[f"kept/{block}"] for block in blocks),
            idf=tuple(tensors[f"idf/{block}"] for block in blocks),
            mean_F=tensors["number_mean"],
            spread_F=tensors["number_spread"],
            encoder=described.get("encoder"),
            encoded_mean_W=tensors.get("encoded_mean", np.zeros(0, np.float32)),
        )
        if "point" in tensors:
            near = Neighbours(make_embedding(tensors["direction"], features), tensors["point"], tensors["quality"])
        return QuestionRouter(
            names=tuple(described["names"]),
            groups=groups,
            number_names=tuple(described["number_names"]),
            mode=described["mode"],
            cost_C=tensors["cost"],
            mean_C=tensors["mean"],
            group_mean_GC=tensors["group_mean"],
            features=features,
            heads=Heads(described["link"], tensors["weight"], tensors["bias"]),
            neighbours=near,
            calibration=Calibration(described["link"], tensors["calibration"], tensors["middle"]),
            ladders=tuple(map(tuple, described["ladders"])),
            joined=Joined(tensors["joined_weight"], tensors["joined_bias"]) if "joined_weight" in tensors else None,
        )


def relative_cost(cost_C: np.ndarray) -> np.ndarray:
    """Cost in units of the dearest candidate; all 0 where nothing costs anything."""
    most = float(np.max(cost_C))
    return np.asarray(cost_C, np.float64) / most if most > 0 else np.zeros_like(cost_C, dtype=np.float64)


def price_grid(predicted_NC: np.ndarray, relative: np.ndarray, points: int) -> list[float]:
    """Prices at which choices change, evenly spread over the changes: from 0 to where only the cheapest is left.

    An item goes from candidate j to a cheaper i at the price (q_j - q_i) / (c_j - c_i), with relative costs, which are
    one number a candidate [C] or one for each item and candidate [N, C].
    """
    # Between two changes every price gives the same choices, so prices in between would draw the same point again. The
    # last price is a little above the last change: there nobody is worth more than the cheapest.
    cost_NC = np.broadcast_to(relative, predicted_NC.shape)
    prices = np.zeros(1)
    for j, i in itertools.permutations(range(predicted_NC.shape[1]), 2):
        dearer = cost_NC[:, j] > cost_NC[:, i]
        gain = predicted_NC[dearer, j] - predicted_NC[dearer, i]
        prices = np.concatenate([prices, gain / (cost_NC[dearer, j] - cost_NC[dearer, i])])
    prices = prices[np.isfinite(prices) & (prices > 0)]
    if not len(prices):
        return [0.0]
    inside = np.quantile(prices, np.linspace(0, 1, max(points - 1, 2)))
    return [0.0, *np.unique(inside).tolist(), float(prices.max()) * (1 + 1e-9) + 1e-12]
