# SPDX-License-Identifier: Apache-2.0
"""Stage `weights`: every weight is read once, so that no NaN or infinity comes into a bundle."""

from __future__ import annotations

from tc_export.runner import Stage
from tc_export.stages.inputs import BuildInputs


def stage(inputs: BuildInputs) -> Stage:
    """Check the weights' values; writes nothing."""
    checkpoint = inputs.checkpoint
    return Stage(
        name="weights",
        description="check the weights",
        key={"checkpoint": inputs.spec.checkpoint_digest},
        outputs=(),
        run=lambda context: checkpoint.check_values(context.advance),
    )
