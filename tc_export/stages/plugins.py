# SPDX-License-Identifier: Apache-2.0
"""Stage `plugins`, for a GPU: the library that serves the custom ops in TensorRT."""

from __future__ import annotations

import shutil
from functools import partial

from tc_export.native.build import build_plugins, check_cuda, library_key
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs


def stage(inputs: BuildInputs) -> Stage:
    """Compile the plugins for the device, or take them from the cache.

    Raises:
        EnvironmentLacks: the CUDA compiler is not here, or its code cannot run on the release.
    """
    assert inputs.release is not None
    check_cuda(inputs.release)
    return Stage(
        name="plugins",
        description=f"compile the plugins for SM {inputs.target.sm}",
        key={"library": library_key(inputs.target)},
        outputs=(inputs.plugin_library,),
        run=partial(_run, inputs=inputs),
        in_subprocess=True,
    )


def _run(context: StageContext, *, inputs: BuildInputs) -> None:
    # A build that is cancelled ends here before the next step.
    library = build_plugins(inputs.target, on_step=lambda phrase: context.advance(0))
    shutil.copyfile(library.path, context.path(inputs.plugin_library))
