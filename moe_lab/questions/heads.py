"""Linear heads that predict every candidate's outcome jointly, and what makes them honest.

The weights are `W_DC = shared_X + own_XC`: what all candidates share (how hard a question is) and what each has of
its own (what the others cannot do). The two have penalties of their own, because only the second matters to a choice.

Legend: N items, X features, C candidates.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Link = Literal["logistic", "identity"]
_CERTAIN = 1e-4
_PULL = 10.0


@dataclasses.dataclass(frozen=True)
class Heads:
    """Predicts `link(X @ weight_XC + bias_C)`."""

    link: Link
    weight_XC: np.ndarray  # float32
    bias_C: np.ndarray

    def __call__(self, x_NX: csr_matrix) -> np.ndarray:
        """Predicted qualities [N, C]."""
        return expected(np.asarray(x_NX @ self.weight_XC, np.float64) + self.bias_C, self.link)


def fit_heads(
    x_NX: csr_matrix,
    quality_NC: np.ndarray,
    link: Link,
    *,
    penalty: float,
    own_penalty: float,
    iterations: int,
) -> Heads:
    """Minimises the summed loss plus `penalty / 2 * (C |mean_c W|^2 + own_penalty * |W - mean_c W|^2)`.

    The loss is the cross-entropy of a quality in [0, 1] (`logistic`), or half the squared error in units of each
    candidate's spread (`identity`). L-BFGS from the candidates' means; the intercept is not penalised. Few iterations
    are a penalty of their own, so the heads never start from others that were fitted to part of the items.
    """
    from scipy.optimize import minimize

    candidates, width = quality_NC.shape[1], x_NX.shape[1]
    scale_C = np.ones(candidates) if link == "logistic" else np.maximum(quality_NC.std(axis=0), 1e-12)
    target_NC = quality_NC / scale_C
    transposed = x_NX.T.tocsr()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight_XC, bias_C = flat[:-candidates].reshape(width, candidates), flat[-candidates:]
        z_NC = x_NX @ weight_XC.astype(np.float32) + bias_C
        loss, slope_NC = link_loss(z_NC, target_NC, link)
        shared_X1 = weight_XC.mean(axis=1, keepdims=True)
        own_XC = weight_XC - shared_X1
        loss += penalty / 2 * (candidates * float((shared_X1**2).sum()) + own_penalty * float((own_XC**2).sum()))
        gradient_XC = transposed @ slope_NC.astype(np.float32) + penalty * (shared_X1 + own_penalty * own_XC)
        return loss, np.concatenate([gradient_XC.reshape(-1), slope_NC.sum(axis=0)])

    first = np.concatenate([np.zeros(width * candidates), inverse(target_NC.mean(axis=0), link)])
    settings: Any = {"maxiter": iterations, "maxcor": 6}
    best = minimize(objective, first, jac=True, method="L-BFGS-B", options=settings).x
    return Heads(
        link,
        (best[:-candidates].reshape(width, candidates) * scale_C).astype(np.float32),
        best[-candidates:] * scale_C,
    )


def link_loss(z_NC: np.ndarray, target_NC: np.ndarray, link: Link) -> tuple[float, np.ndarray]:
    """Summed loss, and its slope in every prediction."""
    if link == "identity":
        slope_NC = z_NC - target_NC
        return float((slope_NC**2).sum() / 2), slope_NC
    loss = float((np.logaddexp(0, z_NC) - target_NC * z_NC).sum())
    return loss, expected(z_NC, link) - target_NC


def expected(z: np.ndarray, link: Link) -> np.ndarray:
    """From the linear scale to qualities."""
    return z if link == "identity" else 1 / (1 + np.exp(-np.clip(z, -40, 40)))


def inverse(quality: np.ndarray, link: Link) -> np.ndarray:
    """From qualities to the linear scale; certainty is cut off."""
    if link == "identity":
        return np.asarray(quality, np.float64)
    inside = np.clip(quality, _CERTAIN, 1 - _CERTAIN)
    return np.log(inside / (1 - inside))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Blends heads and neighbours and makes them as sure as they may be, on the linear scale of the link.

        link(m_C + a * (heads - m_C) + b * (neighbours - m_C)),  m_C the candidate's mean

    `a` and `b` are shared by all candidates: weights of their own fit each candidate's outcome better, and the
    differences between candidates, which is what a choice rests on, worse.
    """

    link: Link
    weight_2: np.ndarray
    middle_C: np.ndarray

    def __call__(self, heads_NC: np.ndarray, neighbours_NC: np.ndarray) -> np.ndarray:
        """Calibrated qualities [N, C]."""
        away = [inverse(quality_NC, self.link) - self.middle_C for quality_NC in (heads_NC, neighbours_NC)]
        return expected(self.middle_C + self.weight_2[0] * away[0] + self.weight_2[1] * away[1], self.link)


def plain_calibration(mean_C: np.ndarray, link: Link, neighbours: float) -> Calibration:
    """A fixed blend of heads and neighbours, corrected by nothing."""
    return Calibration(link, np.array([1 - neighbours, neighbours]), inverse(mean_C, link))


def fit_calibration(
    heads_NC: np.ndarray, neighbours_NC: np.ndarray, quality_NC: np.ndarray, plain: Calibration
) -> Calibration:
    """Fits how sure the blend may be, on items that neither heads nor neighbours have seen.

    One number scales both weights of `plain`. How much heads and neighbours count beside each other stays fixed: what
    fits outcomes best chose worse on every table that was tried.
    """
    from scipy.optimize import minimize_scalar

    link, middle_C = plain.link, plain.middle_C
    away = [inverse(values_NC, link) - middle_C for values_NC in (heads_NC, neighbours_NC)]
    scale_C = np.ones_like(middle_C) if link == "logistic" else np.maximum(quality_NC.std(axis=0), 1e-12)
    blend_NC = (plain.weight_2[0] * away[0] + plain.weight_2[1] * away[1]) / scale_C

    def objective(factor: float) -> float:
        loss, _ = link_loss(middle_C / scale_C + factor * blend_NC, quality_NC / scale_C, link)
        return loss + _PULL / 2 * (factor - 1) ** 2

    best = minimize_scalar(objective, bounds=(0.0, 5.0), method="bounded").x
    return Calibration(link, plain.weight_2 * best, middle_C)


def rising(predicted_NC: np.ndarray, ladders: list[list[int]]) -> np.ndarray:
    """The nearest predictions in which no larger candidate of a ladder is worse (isotonic regression by pooling).

    Args:
        ladders: candidates of one family each, from small to large.
    """
    fitted_NC = predicted_NC.copy()
    for ladder in ladders:
        values = fitted_NC[:, ladder]
        rungs = len(ladder)
        # Min-max formula of isotonic regression: max over i <= k of min over j >= k of the mean of i..j.
        sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
        best = np.full_like(values, -np.inf)
        for k in range(rungs):
            for i in range(k + 1):
                means = np.stack([(sums[:, j + 1] - sums[:, i]) / (j + 1 - i) for j in range(k, rungs)])
                best[:, k] = np.maximum(best[:, k], means.min(axis=0))
        fitted_NC[:, ladder] = best
    return fitted_NC
