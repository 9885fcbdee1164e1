# SPDX-License-Identifier: Apache-2.0
"""`TcDualRope`: the temporal-aware dual rotary embedding.

Two rotations of one frequency add, so rotating by the global position n and again by gamma times
the temporal position T is one rotation at the fractional position P = n + gamma T.

Axes: B batch, H heads, S tokens of this call, D head size, R half of the rotated channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tc_export.ops.autograd import differentiate_by_recomputing


def dual_rope_reference(
    x: Tensor,
    position_ids: Tensor,
    temporal_ids: Tensor,
    inv_freq: Tensor,
    gamma: float,
    attention_factor: float = 1.0,
) -> Tensor:
    """Rotate x by its fractional position, with angles in float32 whatever the type of x.

    In float64 the angles are float64 too: the form that parity takes as the truth.
    """
    if inv_freq.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"inv_freq is {inv_freq.dtype}: rounded frequencies give wrong angles")
    angle_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    position_BS = position_ids.to(angle_dtype) + gamma * temporal_ids.to(angle_dtype)
    angle_B1SR = (position_BS[:, :, None] * inv_freq.to(angle_dtype))[:, None]
    cos = (angle_B1SR.cos() * attention_factor).to(x.dtype)
    sin = (angle_B1SR.sin() * attention_factor).to(x.dtype)
    half = inv_freq.shape[0]
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


@torch.library.custom_op("tc::dual_rope", mutates_args=())
def dual_rope(
    x: Tensor,
    position_ids: Tensor,
    temporal_ids: Tensor,
    inv_freq: Tensor,
    gamma: float,
    attention_factor: float = 1.0,
) -> Tensor:
    """`TcDualRope` for PyTorch; see `DUAL_ROPE` for shapes and types."""
    return dual_rope_reference(
        x, position_ids, temporal_ids, inv_freq, gamma, attention_factor
    ).contiguous()


@dual_rope.register_fake
def _(
    x: Tensor,
    position_ids: Tensor,
    temporal_ids: Tensor,
    inv_freq: Tensor,
    gamma: float,
    attention_factor: float = 1.0,
) -> Tensor:
    return x.new_empty(x.shape)


differentiate_by_recomputing(dual_rope, dual_rope_reference)
