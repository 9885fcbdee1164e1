# SPDX-License-Identifier: Apache-2.0
"""Gradients for a custom op whose kernel has none: differentiate a second run of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]  # not in its __all__


def differentiate_by_recomputing(op: CustomOpDef, reference: Callable[..., Any]) -> None:
    """Register a backward for `op` that recomputes `reference` under autograd.

    Costs one more forward of the op in the backward pass, and keeps only the op's inputs.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.rest = tuple(None if isinstance(x, Tensor) else x for x in inputs)

    def backward(ctx: Any, *output_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        arguments = [next(saved) if x is None else x for x in ctx.rest]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        for i in wanted:
            arguments[i] = arguments[i].detach().requires_grad_()
        with torch.enable_grad():
            outputs = reference(*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        paired = [
            (out, gradient)
            for out, gradient in zip(outputs, output_gradients, strict=True)
            if gradient is not None and out.requires_grad
        ]
        gradients = torch.autograd.grad(
            [out for out, _ in paired],
            [arguments[i] for i in wanted],
            [gradient for _, gradient in paired],
            allow_unused=True,
        )
        result: list[Tensor | None] = [None] * len(arguments)
        for i, gradient in zip(wanted, gradients, strict=True):
            result[i] = gradient
        return tuple(result)

    op.register_autograd(backward, setup_context=setup_context)
