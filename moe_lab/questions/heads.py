"""Linear heads that predict every candidate's outcome jointly, and what makes them honest.

The weights are `W_DC = shared_D + own_DC`: what all candidates share (how hard a question is) and what each has of
its own (what the others cannot do). The two have penalties of their own, because only the second matters to a choice.

Legend: N items, D features, C candidates.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Link = Literal["logistic", "identity"]
_CERTAIN = 1e-4


@dataclasses.dataclass(frozen=True)
class Heads:
    """Predicts `link(X @ weight_DC + bias_C)`."""

    link: Link
    weight_DC: np.ndarray  # float32
    bias_C: np.ndarray

    def __call__(self, x_ND: csr_matrix) -> np.ndarray:
        """Predicted qualities [N, C]."""
        return expected(np.asarray(x_ND @ self.weight_DC, np.float64) + self.bias_C, self.link)


def fit_heads(
    x_ND: csr_matrix,
    quality_NC: np.ndarray,
    link: Link,
    *,
    penalty: float,
    own_penalty: float,
    iterations: int,
) -> Heads:
    """Minimises the summed loss plus `penalty / 2 * (C |mean_c W|^2 + own_penalty * |W - mean_c W|^2)`.

    The loss is the cross-entropy of a quality in [0, 1] (`logistic`), or half the squared error in units of each
    candidate's spread (`identity`). L-BFGS from the candidates' means; the intercept is not penalised.
    """
    from scipy.optimize import minimize

    candidates, width = quality_NC.shape[1], x_ND.shape[1]
    scale_C = np.ones(candidates) if link == "logistic" else np.maximum(quality_NC.std(axis=0), 1e-12)
    target_NC = quality_NC / scale_C
    transposed = x_ND.T.tocsr()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight_DC, bias_C = flat[:-candidates].reshape(width, candidates), flat[-candidates:]
        z_NC = x_ND @ weight_DC.astype(np.float32) + bias_C
        loss, slope_NC = _loss(z_NC, target_NC, link)
        shared_D1 = weight_DC.mean(axis=1, keepdims=True)
        own_DC = weight_DC - shared_D1
        loss += penalty / 2 * (candidates * float((shared_D1**2).sum()) + own_penalty * float((own_DC**2).sum()))
        gradient_DC = transposed @ slope_NC.astype(np.float32) + penalty * (shared_D1 + own_penalty * own_DC)
        return loss, np.concatenate([gradient_DC.reshape(-1), slope_NC.sum(axis=0)])

    start = np.concatenate([np.zeros(width * candidates), inverse(target_NC.mean(axis=0), link)])
    settings: Any = {"maxiter": iterations, "maxcor": 6}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=settings).x
    return Heads(
        link,
        (found[:-candidates].reshape(width, candidates) * scale_C).astype(np.float32),
        found[-candidates:] * scale_C,
    )


def _loss(z_NC: np.ndarray, target_NC: np.ndarray, link: Link) -> tuple[float, np.ndarray]:
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
    """Corrects predictions of one candidate: `link(a_C * inverse(heads) + b_C * inverse(group mean) + c_C)`."""

    link: Link
    weight_3C: np.ndarray

    def __call__(self, predicted_NC: np.ndarray, group_mean_NC: np.ndarray) -> np.ndarray:
        """Calibrated qualities [N, C]."""
        a_C, b_C, c_C = self.weight_3C
        return expected(
            a_C * inverse(predicted_NC, self.link) + b_C * inverse(group_mean_NC, self.link) + c_C, self.link
        )


def plain_calibration(candidates: int, link: Link) -> Calibration:
    """Leaves predictions as they are."""
    return Calibration(link, np.stack([np.ones(candidates), np.zeros(candidates), np.zeros(candidates)]))


def fit_calibration(
    predicted_NC: np.ndarray, group_mean_NC: np.ndarray, quality_NC: np.ndarray, link: Link
) -> Calibration:
    """Fits the correction on items that the heads have not seen, drawn a little towards leaving them as they are."""
    from scipy.optimize import minimize

    candidates = predicted_NC.shape[1]
    plain = plain_calibration(candidates, link).weight_3C
    found = np.empty_like(plain)
    for c in range(candidates):
        columns = np.stack(
            [inverse(predicted_NC[:, c], link), inverse(group_mean_NC[:, c], link), np.ones(len(quality_NC))], axis=1
        )
        scale = 1.0 if link == "logistic" else max(float(quality_NC[:, c].std()), 1e-12)

        def objective(weight: np.ndarray, c: int = c, x: np.ndarray = columns, s: float = scale) -> tuple[float, Any]:
            loss, slope = _loss((x @ weight)[:, None] / s, quality_NC[:, c : c + 1] / s, link)
            away = weight - plain[:, c]
            return loss + float(away @ away) / 2, x.T @ slope[:, 0] / s + away

        found[:, c] = minimize(objective, plain[:, c], jac=True, method="L-BFGS-B").x
    return Calibration(link, found)


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
