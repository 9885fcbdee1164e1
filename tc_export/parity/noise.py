# SPDX-License-Identifier: Apache-2.0
"""Draws of the noise that a number format allows: what two right implementations may differ by.

Nobody says in which order a sum is taken, where a result is rounded, or which way a number falls
that lies between two of the format. So one run of PyTorch is one draw of many. Draw 0 is plain
PyTorch; in every other

1. each number that enters the model, and each that enters a layer, is moved to the next number of
   the format above or below with a chance of one in eight: the variance of one and a half
   roundings, where a layer of its own has about a dozen;
2. the sums of every linear layer are cut at a random channel, taken as two, and added;
3. before a cache in int8, keys and values are moved by a small part of a code, so that some codes
   fall the other way: those that lie near a tie. Two right implementations differ in such codes, in
   float32 in very few, and nobody could say in which.

Where what enters a product is rounded to eight bits, every draw, the plain one too, rounds it at
random: up as often as it is near to the next number. There to round is to decide, and whether a
last bit decides otherwise is chance: in most draws it would not, in few it would, by a whole unit.

Sums are taken in float32 (float64 in float64) and rounded once, as hardware does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tc_export.contracts.ops import LARGEST_CODE

CHANCES = 16
"""A number is moved up by one of so many chances, and down by another one."""

CODES_A_ROW = 1 / 4
"""Codes of a row that fall the other way in a draw, on average: many times as many as in float32,
so that even the first token, which sees one row of each head and layer, has some in most draws.
With 1 / 32 six in a hundred tokens of the demo model had too few to be judged by; with 1, codes
that were cut off in place of rounded passed."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Draw:
    """One draw. It is used for one pass through the model; another pass takes another."""

    def __init__(self, number: int, *, dithers: bool = False) -> None:
        """Number 0 changes nothing; the same number always changes the same.

        With `dithers` inputs of eight bits are rounded at random.
        """
        self.number = number
        self.dithers = dithers
        self._dither = torch.Generator().manual_seed(number)
        self._random = np.random.default_rng(number)

    def move(self, x: Tensor) -> Tensor:
        """Move some numbers by one unit in the last place; zeros and what is not finite stay."""
        if not self.number:
            return x
        x = x.clone(memory_format=torch.contiguous_format)
        # The numbers of a format lie in the order of their bits.
        bits = x.view(_BITS[x.dtype.itemsize]).numpy().reshape(-1)
        chances = np.frombuffer(self._random.bytes(bits.size), np.uint8) // (256 // CHANCES)
        places = np.flatnonzero(chances < 2)
        stepped = bits[places] + (2 * chances[places].astype(np.int8) - 1)
        moved = torch.from_numpy(stepped).view(x.dtype)
        before = x.reshape(-1)[places]
        stays = (before == 0) | ~before.isfinite() | ~moved.isfinite()
        bits[places] = np.where(stays.numpy(), bits[places], stepped)
        return x

    def order_sums(self, module: nn.Module) -> None:
        """Cut the sums of every linear layer in `module` at another channel.

        From here on they round their inputs as this draw does, where they round any.
        """
        for linear in module.modules():
            if isinstance(linear, OrderedLinear):
                linear.cut = self._channel(linear.in_features)
                linear.dither = self._dither if self.dithers else None

    def shake_cache(
        self, layer: nn.Module, head_dim: int, codes_a_row: float = CODES_A_ROW
    ) -> None:
        """Move what a layer's cache in int8 is given, until so many codes of a row have changed."""
        for name in ("k_proj", "v_proj"):
            linear = layer.get_submodule(f"self_attn.{name}")
            assert isinstance(linear, OrderedLinear)
            shake = Shake(self._random, head_dim, codes_a_row)
            linear.shake = shake if self.number else None

    def _channel(self, channels: int) -> int | None:
        """A channel to cut before, or None."""
        if not self.number or channels < 2:
            return None
        return int(self._random.integers(1, channels))


def draws(count: int) -> list[Draw]:
    """Plain PyTorch, and so many more that there are `count`."""
    return [Draw(number, dithers=True) for number in range(count)]


PLAIN: Sequence[Draw] = (Draw(0),)


class Shake:
    """Moves rows before they are rounded to int8."""

    def __init__(self, random: np.random.Generator, head_dim: int, codes_a_row: float) -> None:
        self._random = random
        self._head_dim = head_dim
        self._codes_a_row = codes_a_row

    def __call__(self, x: Tensor) -> Tensor:
        """Move the heads [..., K D].

        A code whose place between two ties is as likely anywhere changes with a chance that is the
        distance it is moved by, in codes: half of `reach` on average.
        """
        rows = torch.unflatten(x, -1, (-1, self._head_dim))
        reach = 2 * self._codes_a_row / self._head_dim
        codes = self._random.uniform(-reach, reach, rows.shape).astype(np.float32)
        step = rows.abs().amax(dim=-1, keepdim=True) / LARGEST_CODE
        moved: Tensor = rows + torch.from_numpy(codes).to(x.dtype) * step
        return moved.flatten(-2)


NUMBERS_WIDENED = 1 << 19
"""Weights that are widened at once for a few tokens: so many stay in a processor's cache."""


class OrderedLinear(nn.Linear):
    """A linear layer that sums in its weights' format and rounds the result to its input's.

    16-bit weights are held widened to float32: the same numbers, at a third of the time on a
    processor. For a few tokens `widened_to` names a wider format than the weights are held in: they
    are widened some rows at a time, since to write all of them takes longer than to multiply.
    """

    cut: int | None = None
    dither: torch.Generator | None = None
    shake: Shake | None = None
    widened_to: torch.dtype | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        out = self._product(input)
        return out if self.shake is None else self.shake(out)

    def _product(self, input: Tensor) -> Tensor:
        if self.widened_to is not None:
            return self._by_rows(input.to(self.widened_to)).to(input.dtype)
        x = input.to(self.weight.dtype)
        if self.cut is None:
            return F.linear(x, self.weight, self.bias).to(input.dtype)
        low, high = self.weight[:, : self.cut], self.weight[:, self.cut :]
        summed = F.linear(x[..., : self.cut], low, self.bias)
        return summed.add_(F.linear(x[..., self.cut :], high)).to(input.dtype)

    def _by_rows(self, x: Tensor) -> Tensor:
        rows = torch.split(self.weight, max(1, NUMBERS_WIDENED // self.in_features))
        y = torch.cat([F.linear(x, some.to(x.dtype)) for some in rows], dim=-1)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def order_linears(model: nn.Module) -> None:
    """Let the sums of a model's linear layers be cut; the model has no weights yet."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                ordered = OrderedLinear(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    device=child.weight.device,
                )
                setattr(parent, name, ordered)
