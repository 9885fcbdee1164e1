# SPDX-License-Identifier: Apache-2.0
"""Stage `answering`: what answering reads beside the graphs is read and tried once.

A bundle whose tokenizer, template or preprocessing is of no use is refused here, by who built it,
and not when somebody asks it. It stands before the stages that export.
"""

from __future__ import annotations

from functools import partial

from tc_export.errors import CheckpointError
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import ANSWERERS, versions


def stage(inputs: BuildInputs) -> Stage:
    """Try tokenizer, template and preprocessing; writes nothing."""
    return Stage(
        name="answering",
        description="try tokenizer, template and preprocessing",
        key={"tools": versions(ANSWERERS)},  # the profile is in the assets' config.json
        outputs=(),
        needs=("assets",),
        run=partial(_run, inputs=inputs),
    )


def _run(context: StageContext, *, inputs: BuildInputs) -> None:
    from tc_export.runtime.rehearsal import rehearse

    try:
        rehearse(context.folder, inputs.spec.profile)
    except CheckpointError as error:
        # The staged files are the checkpoint's, which is where the user can mend them.
        message = str(error).replace(str(context.folder), str(inputs.checkpoint.folder))
        raise CheckpointError(message, hint=error.hint) from error
