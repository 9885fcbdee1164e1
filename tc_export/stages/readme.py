# SPDX-License-Identifier: Apache-2.0
"""Stage `readme`: `README.md`, for whoever finds the bundle on a disk and has never seen one.

It says what the manifest says, in words, and what to type. Nothing in it is of the machine that
built the bundle. It says the same before and after the device has built its engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tc_export.bundle import BundleSpec
from tc_export.bundle.layout import PLUGIN_SOURCES, README_FILE
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import versions
from tc_export.targets import Release, Target


@dataclass(frozen=True, kw_only=True)
class BundleSummary:
    """All that the text is made from.

    Attributes:
        model: the family of the checkpoint.
        spec: what the manifest begins with.
        target: the device.
        has_report: the build compared the graphs with PyTorch.
    """

    model: str
    spec: BundleSpec
    target: Target
    has_report: bool

    def as_json(self) -> dict[str, Any]:
        """The summary as JSON values, for the stage's key."""
        toolchain = self.target.toolchain
        return {
            "model": self.model,
            "spec": self.spec.model_dump(mode="json", exclude={"tools"}),
            "device": [self.target.description, self.target.sm, toolchain.architecture],
            "engine": toolchain.engine,
            "has_report": self.has_report,
        }


def stage(inputs: BuildInputs, *, has_report: bool) -> Stage:
    """Write the text."""
    summary = BundleSummary(
        model=inputs.checkpoint.config.family,
        spec=inputs.spec,
        target=inputs.target,
        has_report=has_report,
    )
    return Stage(
        name="readme",
        description="write the README",
        key={"summary": summary.as_json(), "tools": versions(("tc-export",))},
        outputs=(README_FILE,),
        needs=() if inputs.release is None else ("plugins",),  # sent as a library, or as sources
        run=partial(_run, summary=summary),
    )


def _run(context: StageContext, *, summary: BundleSummary) -> None:
    text = readme(summary, sends_sources=(context.folder / PLUGIN_SOURCES).is_dir())
    context.path(README_FILE).write_text(text, encoding="utf-8")


def readme(summary: BundleSummary, *, sends_sources: bool) -> str:
    """The whole text. `sends_sources`: the device compiles the plugins itself."""
    sections = [
        _what_it_is(summary),
        _COPY,
        _install(summary.target, summary.spec.release, sends_sources=sends_sources),
        _finish(summary.target, sends_sources=sends_sources),
        _USE,
        _parity(summary),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _what_it_is(summary: BundleSummary) -> str:
    spec, target = summary.spec, summary.target
    device = target.description
    if target.sm is not None:
        device += f" (SM {target.sm}, {target.toolchain.architecture})"
    engine = {
        "onnxruntime": "ONNX Runtime, which runs the ONNX graphs as they are",
        "tensorrt-rtx": "TensorRT-RTX, in `engines/`",
        "tensorrt": "TensorRT, built on the device into `engines/`",
    }[target.toolchain.engine]
    rows = {
        "model": f"{summary.model}, a video-language model",
        "made from": f"the checkpoint with the digest `{spec.checkpoint_digest[:16]}…`",
        "target": f"`{target.name}`: {device}",
        "software": str(spec.release) if spec.release else "",
        "engine": engine,
        "precision": ", ".join(f"{graph} {x}" for graph, x in spec.precision_asked.items()),
        "frames": f"at most {spec.profile.max_frames} of a video",
        "tokens": f"at most {spec.profile.max_length:,}: question, frames and answer together",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)
    maker = versions(("tc-export",))["tc-export"]
    return f"""
# {summary.model} for {target.description}

An engine bundle, made by tc-export {maker}. It answers questions about videos.
`manifest.json` has these summary and more, and the hash of every file.

| | |
|---|---|
{table}

All commands below are for a shell in this folder.
"""


_COPY = """
## Copy it to another machine

Copy the folder as a whole. The weights are large files, some of which may be several names of one
file (hard links): `tar` and `rsync -aH` copy such a file once, `cp -r` and `scp -r` once for each
name.

    tar -cf ../bundle.tar .
    rsync -aH ./ DEVICE:bundle/

Where a weight file shares its bytes with the checkpoint that it was made from, write to neither: a
file that is changed in place changes in both. A copy on another machine shares nothing.
"""


def _install(target: Target, release: Release | None, *, sends_sources: bool) -> str:
    if release is None:
        return """
## Install

Python 3.11 or later. No GPU is needed.

    pip install tc-export
"""
    if target.toolchain.engine == "tensorrt-rtx":
        return f"""
## Install

A GPU of SM {target.sm} with a driver for CUDA {_major(release.cuda)}, and Python 3.11 or later.

    pip install 'tc-export[rtx]'
"""
    on_jetson = release.name.startswith("JetPack")
    packages = "nvidia-jetpack" if on_jetson else "tensorrt"
    bindings = " 'cuda-bindings<13'" if _major(release.cuda) == "12" else ""
    compiler = ""
    if sends_sources:
        cuda = f"cuda-toolkit-{release.cuda.replace('.', '-')}"
        brought = " `nvidia-jetpack` brings them; or singly:" if on_jetson else ""
        compiler = f"""
This bundle has the sources of its plugins instead of a library, and the device compiles them. That
takes g++, CUDA's nvcc and TensorRT's headers.{brought}

    sudo apt-get install g++ {cuda} libnvinfer-dev
"""
    return f"""
## Install on the device

{release}, or a later TensorRT {_major(release.tensorrt)}.x. `trtexec` comes with it.

    sudo apt-get install {packages}
{compiler}
To answer questions there, also Python 3.11 or later with TensorRT's Python bindings.

    pip install 'tc-export[tensorrt]'{bindings}
"""


def _finish(target: Target, *, sends_sources: bool) -> str:
    if target.toolchain.engine != "tensorrt":
        return ""
    first = "compiles the plugins, " if sends_sources else ""
    return f"""
## Finish it on the device, once

Only the device can build its engines. This {first}builds the engines, compares
them with the golden data that the bundle carries, and enters them in the manifest. The folder is
replaced in one step, so enter it again:

    tc-export finish . && cd "$PWD"

The same without Python; a later `tc-export finish` takes over what it made:

    sh finish/finish.sh

`tc-export inspect .` says `built` where that has been done, and `pending` where not. Exit code 1:
an engine does not compute what the model computes. 4: something is missing, and the message says
what to install.
"""


_USE = """
## Verify and ask

    tc-export verify .
    tc-export ask . --video ../clip.mp4 --question "What happens in this video?"

`verify` names each file that is missing, added, truncated or changed.
"""


def _parity(summary: BundleSummary) -> str:
    report = ""
    if summary.has_report:
        report = (
            "`parity/report.html` is the comparison that was made when the bundle was built.\n\n"
        )
    elsewhere = ""
    if summary.target.sm is not None:
        elsewhere = """
This runs the engines, on their device. On any other machine, judge the graphs that they were built
from:

    tc-export parity . --checkpoint ../CHECKPOINT --graphs
"""
    return f"""
## Compare with PyTorch again

{report}To compare again, you need the checkpoint (a Hugging Face folder) and PyTorch.

    pip install 'tc-export[export]'
    tc-export parity . --checkpoint ../CHECKPOINT
{elsewhere}"""


def _major(version: str) -> str:
    return version.partition(".")[0]
