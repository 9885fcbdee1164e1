# SPDX-License-Identifier: Apache-2.0
"""A bundle's README: what it says, for every target; and its commands run as they stand."""

from __future__ import annotations

import platform
import re
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tc_export.bundle import read_manifest
from tc_export.bundle.manifest import BundleSpec
from tc_export.pipeline import BuildRequest
from tc_export.stages import plugins
from tc_export.stages.readme import BundleSummary, readme
from tc_export.targets import Release, choose_release, list_targets, load_target
from tests.bundled import MAX_FRAMES, MAX_LENGTH
from tests.repository import REPOSITORY
from tests.runtime.clips import write_clip
from tests.stages.conftest import Tools, built

EVERYWHERE = {
    "tar -cf ../bundle.tar .",
    "rsync -aH ./ DEVICE:bundle/",
    "tc-export verify .",
    'tc-export ask . --video ../clip.mp4 --question "What happens in this video?"',
    "pip install 'tc-export[export]'",
    "tc-export parity . --checkpoint ../CHECKPOINT",
}
ON_A_GPU = EVERYWHERE | {"tc-export parity . --checkpoint ../CHECKPOINT --graphs"}
ROOM_FOR_AN_ANSWER = 200  # tokens: of as many as `ask` lets it have by default
ON_THE_DEVICE = ON_A_GPU | {
    "sudo apt-get install nvidia-jetpack",
    'tc-export finish . && cd "$PWD"',
    "sh finish/finish.sh",
}


def commands(text: str) -> set[str]:
    return set(re.findall(r"^    (.+)$", text, re.MULTILINE))


def is_of_this_machine(text: str) -> list[str]:
    """What a README must not have: places, names and versions of the machine that built it."""
    found = {str(Path.home()), str(REPOSITORY), "/tmp", socket.gethostname(), platform.release()}
    return [word for word in found if word and word in text]


@pytest.mark.parametrize(
    ("target", "release", "sends_sources", "expected"),
    [
        ("rtx4090", None, False, ON_A_GPU | {"pip install 'tc-export[rtx]'"}),
        ("orin", None, False, ON_THE_DEVICE | {"pip install 'tc-export[tensorrt]'"}),
        (
            "orin",
            "10.3",
            True,
            ON_THE_DEVICE
            | {
                "pip install 'tc-export[tensorrt]' 'cuda-bindings<13'",
                "sudo apt-get install g++ cuda-toolkit-12-6 libnvinfer-dev",
            },
        ),
    ],
)
def test_a_bundle_for_a_gpu_has_the_commands_of_its_target(
    request_: BuildRequest,
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    release: str | None,
    sends_sources: bool,
    expected: set[str],
) -> None:
    monkeypatch.setattr(plugins, "can_compile_for", lambda found: not sends_sources)
    manifest, _ = built(replace(request_, target=target, release=release))
    text = (request_.output / "README.md").read_text()
    assert commands(text) == expected
    assert str(manifest.release) in text
    assert f"at most {MAX_FRAMES} of a video" in text
    assert f"at most {MAX_LENGTH}: " in text
    assert "vision float16, decoder float16" in text
    assert manifest.checkpoint_digest[:16] in text
    assert "parity/report.html" not in text  # the build compared nothing
    assert ("sources of its plugins" in text) == sends_sources
    assert not is_of_this_machine(text)


def test_the_commands_of_a_bundle_for_the_processor_run_as_they_stand(
    request_: BuildRequest,
) -> None:
    asked = replace(request_, target="cpu", precision="float16", check_parity=True)
    built(replace(asked, max_length=ROOM_FOR_AN_ANSWER))
    bundle = request_.output
    write_clip(bundle.with_name("clip.mp4"), 12)
    text = (bundle / "README.md").read_text()
    assert commands(text) == EVERYWHERE | {"pip install tc-export"}
    assert "parity/report.html" in text
    assert not is_of_this_machine(text)
    for verb in ("verify", "ask"):
        (command,) = (x for x in commands(text) if x.startswith(f"tc-export {verb} "))
        program = [sys.executable, "-m", *shlex.split(command.replace("tc-export", "tc_export", 1))]
        ended = subprocess.run(program, cwd=bundle, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    assert read_manifest(bundle).stages["readme"].files.keys() == {"README.md"}


@pytest.mark.parametrize("target", list_targets(), ids=lambda target: target.name)
def test_every_target_has_one_for_every_release(target, on_processor: Path) -> None:  # type: ignore[no-untyped-def]
    spec = read_manifest(on_processor)
    for release in target.toolchain.releases or (None,):
        values = {name: getattr(spec, name) for name in BundleSpec.model_fields}
        summary = BundleSummary(
            model="llava",
            spec=BundleSpec(**{**values, "target": target.name, "release": release}),
            target=target,
            has_report=True,
        )
        text = readme(summary, sends_sources=False)
        assert target.description in text
        assert "None" not in text
        assert "\n\n\n" not in text
        assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 110
        assert ("## Finish it on the device" in text) == (target.toolchain.engine == "tensorrt")


def test_a_release_says_all_that_it_is() -> None:
    release = choose_release(load_target("orin"), "JetPack 6.2")
    assert str(release) == "JetPack 6.2 (L4T 36.4, CUDA 12.6, TensorRT 10.3)"
    plain = Release(name="data centre", cuda="13", tensorrt="11.0")
    assert str(plain) == "data centre (CUDA 13, TensorRT 11.0)"
