# SPDX-License-Identifier: Apache-2.0
"""Stage `plugins`, for a GPU: the library that serves the custom ops in TensorRT, or its sources.

A library runs on CUDA of the major version that compiled it. Where the device's release has another
than the compiler here, and the device builds its engines itself, it compiles the library as well.
"""

from __future__ import annotations

import shutil
from functools import partial

from tc_export.bundle.layout import PLUGIN_SOURCES
from tc_export.native.build import (
    build_plugins,
    can_compile_for,
    check_cuda,
    find_sources,
    library_key,
)
from tc_export.native.sources import library_sources, sources_digest
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs

STAGE = "plugins"


def stage(inputs: BuildInputs) -> Stage:
    """Compile the plugins for the device, take them from the cache, or send their sources.

    Raises:
        UnsupportedEnvironment: the CUDA compiler is not here, or its code cannot run on the release
            of a device whose engines are built here.
    """
    assert inputs.release is not None
    if inputs.target.toolchain.engine == "tensorrt" and not can_compile_for(inputs.release):
        return Stage(
            name=STAGE,
            description="copy the plugins' sources, for the device to compile",
            key={"sources": sources_digest(find_sources())},
            outputs=(PLUGIN_SOURCES,),
            run=_copy_sources,
        )
    check_cuda(inputs.release)
    return Stage(
        name=STAGE,
        description=f"compile the plugins for SM {inputs.target.sm}",
        key={"library": library_key(inputs.target)},
        outputs=(inputs.plugin_library,),
        run=partial(_compile, inputs=inputs),
        in_subprocess=True,
    )


def _compile(context: StageContext, *, inputs: BuildInputs) -> None:
    # A build that is cancelled ends here before the next step.
    library = build_plugins(inputs.target, on_step=lambda phrase: context.advance(0))
    shutil.copyfile(library.path, context.path(inputs.plugin_library))


def _copy_sources(context: StageContext) -> None:
    folder = find_sources()
    for source in library_sources(folder):
        shutil.copyfile(folder / source, context.path(f"{PLUGIN_SOURCES}/{source.as_posix()}"))
