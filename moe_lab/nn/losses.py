"""What a token cost, from its logits or from the hidden state in front of them.

A large vocabulary's logits are the largest array of a pass, so they are made for a few positions at a time and dropped.

Shape letters: B batch, S sequence, D model width, V vocabulary, N chunks of positions.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from moe_lab.nn.products import product_by_token

LOGITS_AT_ONCE = 2**24
"""Logits of one device that are in memory at a time, 64 MiB; where a batch has no more, it is not cut."""
FEWEST_AT_ONCE = 512
"""Tokens that share one reading of the head's matrix at least, or its bytes would take longer than its work."""


def choose_tokens_at_once(vocabulary: int, devices: int = 1) -> int:
    """Tokens, over all devices, whose logits are made at a time."""
    return max(LOGITS_AT_ONCE // vocabulary, FEWEST_AT_ONCE) * devices


class Unembedding(NamedTuple):
    """How logits are made of hidden states: `cap(multiplier * x @ weight)`.

    Attributes:
        weight: [D, V], or with `tied` the embedding, [V, D], which is not turned around first: a loop over chunks would
            keep it twice.
        multiplier: of the products.
        softcap: bounds them.
        tied: whether the weight is an embedding.
    """

    weight: jax.Array
    multiplier: float = 1.0
    softcap: float | None = None
    tied: bool = False

    @property
    def _how(self) -> _How:
        return _How(self.multiplier, self.softcap, self.tied)

    def logits(self, x_BSD: jax.Array, *, by_token: bool = False) -> jax.Array:
        """float32[B, S, V]; `by_token`: each token's bits are its own, and there is no gradient."""
        return _logits(x_BSD, self.weight, self._how, by_token)

    def losses(self, x_BSD: jax.Array, targets_BS: jax.Array, at_once: int) -> jax.Array:
        """Cross-entropy in nats of every position, float32[B, S], from the logits of `at_once` tokens at a time.

        Its gradient in the hidden states is made while the logits are there, so what is not trained costs no second
        look at them. Where the weight is trained they are made again.
        """
        if targets_BS.size <= at_once:
            return token_losses(self.logits(x_BSD), targets_BS)
        cut = cut_positions(targets_BS.shape, at_once)
        return _losses((self._how, cut), x_BSD, self.weight, targets_BS)

    def scores(self, x_BSD: jax.Array, targets_BS: jax.Array, at_once: int) -> tuple[jax.Array, jax.Array]:
        """Losses, and whether greedy decoding gives the target, both [B, S]: for measuring, without a gradient of
        their own."""

        def score(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            logits = self.logits(part[0])
            return token_losses(logits, part[1]), greedy_hits(logits, part[1])

        if targets_BS.size <= at_once:
            return score((x_BSD, targets_BS))
        cut, length = cut_positions(targets_BS.shape, at_once), x_BSD.shape[1]
        losses, hits = jax.lax.map(score, _in_chunks((x_BSD, targets_BS), cut))
        return _whole(losses, length), _whole(hits, length)


def token_losses(logits_BSV: jax.Array, targets_BS: jax.Array) -> jax.Array:
    """Cross-entropy in nats of every position, float32[B, S]."""
    target_logit = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BSV, axis=-1) - target_logit


def greedy_hits(logits_BSV: jax.Array, targets_BS: jax.Array) -> jax.Array:
    """Whether greedy decoding would have produced the target, bool[B, S]."""
    return jnp.argmax(logits_BSV, axis=-1) == targets_BS


def mask_padding(logits_BSV: jax.Array, padding: int) -> jax.Array:
    """Logits to pick a token from: those of the last `padding` ids, which stand for no token, are -inf."""
    vocabulary = logits_BSV.shape[-1]
    return jnp.where(jnp.arange(vocabulary) < vocabulary - padding, logits_BSV, -jnp.inf)


class _How(NamedTuple):
    """Of an `Unembedding` what is no array."""

    multiplier: float
    softcap: float | None
    tied: bool


def _logits(x_BSD: jax.Array, weight: jax.Array, how: _How, by_token: bool = False) -> jax.Array:
    if by_token:
        logits = product_by_token(x_BSD, weight, turned=how.tied, dtype=jnp.float32)
    else:
        flat_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        logits = _product(flat_TD, weight.astype(x_BSD.dtype), 1 if how.tied else 0, jnp.float32)
        logits = logits.reshape(*x_BSD.shape[:-1], -1)
    if how.multiplier != 1:
        logits = logits * how.multiplier
    return logits if how.softcap is None else how.softcap * jnp.tanh(logits / how.softcap)


def _product(left: jax.Array, right: jax.Array, axis: int, dtype: DTypeLike) -> jax.Array:
    """`left @ right`, summed over this axis of `right`."""
    return jax.lax.dot_general(left, right, (((1,), (axis,)), ((), ())), preferred_element_type=dtype)


def cut_positions(shape_BS: tuple[int, ...], at_once: int) -> int:
    """Positions of a chunk of about `at_once` tokens. A chunk has all rows, which may be spread over devices."""
    rows, length = shape_BS
    return min(length, max(1, at_once // rows))


def _in_chunks(arrays: Any, cut: int) -> Any:
    """[B, S, ...] as [N, B, cut, ...], the last chunk filled up with zeros."""

    def chunk(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, [(0, 0), (0, -array.shape[1] % cut), *[(0, 0)] * (array.ndim - 2)])
        return rearrange(padded, "b (n s) ... -> n b s ...", s=cut)

    return jax.tree.map(chunk, arrays)


def _whole(array_NBS: jax.Array, length: int) -> jax.Array:
    """The inverse of `_in_chunks`."""
    return rearrange(array_NBS, "n b s ... -> b (n s) ...")[:, :length]


def _losses_and_gradient(logits_BSV: jax.Array, targets_BS: jax.Array, how: _How) -> tuple[jax.Array, jax.Array]:
    """Losses, and the gradient of each in what its logits are made of: softmax less the target, through the cap."""
    top_BS1 = logits_BSV.max(-1, keepdims=True)
    share_BSV = jnp.exp(logits_BSV - top_BS1)
    sum_BS1 = share_BSV.sum(-1, keepdims=True)
    target_BS1 = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1)
    is_target = jnp.arange(logits_BSV.shape[-1]) == targets_BS[..., None]
    gradient_BSV = share_BSV * (how.multiplier / sum_BS1) - jnp.where(is_target, how.multiplier, 0.0)
    if how.softcap is not None:
        gradient_BSV = gradient_BSV * (1 - jnp.square(logits_BSV / how.softcap))
    return (jnp.log(sum_BS1) + top_BS1 - target_BS1)[..., 0], gradient_BSV


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(how_and_cut: tuple[_How, int], x_BSD: jax.Array, weight: jax.Array, targets_BS: jax.Array) -> jax.Array:
    how, cut = how_and_cut
    losses = jax.lax.map(
        lambda part: token_losses(_logits(part[0], weight, how), part[1]),
        _in_chunks((x_BSD, targets_BS), cut),
    )
    return _whole(losses, x_BSD.shape[1])


def _losses_forward(how_and_cut, x, weight, targets):  # type: ignore[no-untyped-def]
    """The losses, and their gradient in each hidden state: a token's own loss is the only one that it is in."""
    how, cut = how_and_cut
    x_BSD, targets_BS = x.value, targets.value

    def chunk(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        logits = _logits(part[0], weight.value, how)
        if not x.perturbed:
            return token_losses(logits, part[1]), None
        losses, gradient_BSV = _losses_and_gradient(logits, part[1], how)
        flat_TV = gradient_BSV.astype(x_BSD.dtype).reshape(-1, gradient_BSV.shape[-1])
        dx_TD = _product(flat_TV, weight.value.astype(x_BSD.dtype), 0 if how.tied else 1, x_BSD.dtype)
        return losses, dx_TD.reshape(part[0].shape)

    losses, dx = jax.lax.map(chunk, _in_chunks((x_BSD, targets_BS), cut))
    length = x_BSD.shape[1]
    again = (x_BSD, weight.value, targets_BS) if weight.perturbed else None
    return _whole(losses, length), (None if dx is None else _whole(dx, length), again)


def _losses_backward(how_and_cut, residuals, dloss_BS):  # type: ignore[no-untyped-def]
    how, cut = how_and_cut
    dx_BSD, again = residuals
    if isinstance(dloss_BS, SymbolicZero):
        dloss_BS = jnp.zeros(dloss_BS.shape, dloss_BS.dtype)
    dx = None if dx_BSD is None else dx_BSD * dloss_BS[..., None].astype(dx_BSD.dtype)
    return dx, None if again is None else _weight_gradient(how, cut, again, dloss_BS), None


def _weight_gradient(how, cut, again, dloss_BS):  # type: ignore[no-untyped-def]
    x_BSD, weight, targets_BS = again

    def add(total: jax.Array, part: tuple) -> tuple[jax.Array, None]:
        x, targets, dloss = part
        logits = _logits(x, weight, how)
        gradient_BSV = _losses_and_gradient(logits, targets, how)[1] * dloss[..., None]
        flat_TV = gradient_BSV.astype(x.dtype).reshape(-1, gradient_BSV.shape[-1])
        factors = x.reshape(-1, x.shape[-1]), flat_TV
        left, right = reversed(factors) if how.tied else factors
        return total + jnp.matmul(left.T, right, preferred_element_type=jnp.float32), None

    start = jnp.zeros(weight.shape, jnp.float32)
    return jax.lax.scan(add, start, _in_chunks((x_BSD, targets_BS, dloss_BS), cut))[0].astype(weight.dtype)


_losses.defvjp(_losses_forward, _losses_backward, symbolic_zeros=True)
