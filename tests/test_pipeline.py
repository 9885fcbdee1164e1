# SPDX-License-Identifier: Apache-2.0
"""The real pipeline: skip what is done, resume after a kill, publish nothing that is wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from tc_export.bundle import Placement, placement, read_manifest, verify
from tc_export.checkpoint.hf_config import read_config
from tc_export.checkpoint.reader import Checkpoint
from tc_export.errors import CheckFailed, UsageError
from tc_export.graph import export
from tc_export.parity.layers import check_bundle as check_bundle_of_layers
from tc_export.parity.layers.result import ByLayerResult, Culprit
from tc_export.parity.tensors.check_bundle import check_bundle
from tc_export.pipeline import build
from tc_export.runner import SilentReporter
from tests.bundled import MAX_FRAMES, MAX_LENGTH, copy_bundle, request_for, save_with_tokenizer

STAGES = 11  # of a build for the processor


class Watching(SilentReporter):
    """Notes which stages ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.skipped_: list[str] = []

    def started(self, stage) -> None:  # type: ignore[no-untyped-def]
        self.ran.append(stage.name)

    def skipped(self, stage) -> None:  # type: ignore[no-untyped-def]
        self.skipped_.append(stage.name)


@pytest.fixture
def checkpoint(bundle: Path) -> Path:
    return bundle.parent / "checkpoint"


def hashes(folder: Path) -> dict[str, str]:
    return {path: record.sha256 for path, record in read_manifest(folder).files.items()}


def test_the_bundle_says_what_it_is(bundle: Path) -> None:
    assert verify(bundle) == []
    manifest = read_manifest(bundle)
    assert manifest.profile.max_frames == MAX_FRAMES
    assert manifest.precision_realised == {"vision": "float32", "decoder": "float32"}
    config = json.loads((bundle / "config.json").read_text())
    assert config["temporal"] == {
        "gamma": 1.0,
        "mask": "frame_block_causal",
        "after_clip": "restart",
    }
    assert config["pooling"] == read_config(bundle).model.pooling.model_dump(mode="json")
    assert config["builder_config"]["max_length"] == MAX_LENGTH
    assert json.loads((bundle / "parity" / "report.json").read_text())["passed"]
    page = (bundle / "parity" / "report.html").read_text(encoding="utf-8")
    assert "Greedy answers" in page
    assert "layer by layer" in page


def test_building_again_does_nothing_again(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    again = copy_bundle(bundle, tmp_path)
    watching = Watching()
    build(request_for(checkpoint, again), watching)
    assert watching.ran == []
    assert len(watching.skipped_) == STAGES
    assert hashes(again) == hashes(bundle)


def test_building_again_loads_nothing_that_builds(
    bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """So that finding everything unchanged takes no time."""
    again = copy_bundle(bundle, tmp_path)
    heavy = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "tokenizers", "PIL", "av")
    script = f"""
import sys
from tc_export.cli.main import main

try:
    main(sys.argv[1:])
finally:
    print([name for name in {heavy!r} if name in sys.modules])
"""
    arguments = ["build", "--checkpoint", checkpoint, "--output", again]
    arguments += ["--max-frames", str(MAX_FRAMES), "--max-length", str(MAX_LENGTH)]
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True
    )
    assert ended.returncode == 0
    assert ended.stderr.count("unchanged") == STAGES
    assert ended.stdout.splitlines()[-1] == "[]"


def test_only_what_is_damaged_is_made_again(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    damaged = copy_bundle(bundle, tmp_path)
    (damaged / "embedding.safetensors").write_bytes(b"")
    watching = Watching()
    build(request_for(checkpoint, damaged), watching)
    assert watching.ran == ["embedding"]
    assert hashes(damaged) == hashes(bundle)


def test_a_killed_build_resumes(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Killed while the decoder is exported: what had ended is kept, and the result is the same."""
    output = tmp_path / "bundle"
    command = [sys.executable, "-m", "tc_export", "build", "--checkpoint", str(checkpoint)]
    command += ["--output", str(output), "--max-frames", str(MAX_FRAMES)]
    command += ["--max-length", str(MAX_LENGTH)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"export the decoder graph" in line:
                process.kill()
                break
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    watching = Watching()
    build(request_for(checkpoint, output), watching)
    answered = ["assets", "answering"]
    assert watching.skipped_ == ["weights", "shards", *answered, "embedding", "vision"]
    assert hashes(output).keys() == hashes(bundle).keys()
    for path, digest in hashes(output).items():
        if not path.startswith("parity/"):  # a report's last digits depend on the threads
            assert digest == hashes(bundle)[path], path
    assert verify(output) == []
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_engine_that_is_wrong_is_not_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export.export_decoder

    def doubled(checkpoint: Checkpoint, dtype, path: Path, advance):  # type: ignore[no-untyped-def]
        report = real(checkpoint, dtype, path, advance)
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "gamma":
                    attribute.f *= 2
        onnx.save(model, path)
        return report

    monkeypatch.setattr(export, "export_decoder", doubled)
    output, report = tmp_path / "bundle", tmp_path / "bundle.failed-parity"
    report.write_text("of the user")
    with pytest.raises(CheckFailed, match="one clip: decoder, step 0: logits") as raised:
        build(request_for(checkpoint, output), SilentReporter())
    assert "the report could not be written" in str(raised.value.hint)
    assert report.read_text() == "of the user"
    report.unlink()
    with pytest.raises(CheckFailed) as raised:
        build(request_for(checkpoint, output), SilentReporter())
    assert f"{report / 'report.html'} draws where they part" in str(raised.value.hint)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == [report.name]
    found = json.loads((report / "report.json").read_text())
    assert not found["passed"]
    assert found["by_layer"]["culprit"]["pattern"]
    monkeypatch.undo()
    (staging,) = (path for path in tmp_path.iterdir() if path.name[0] == ".")
    shutil.rmtree(staging)  # the wrong graph is kept there for the next build
    build(request_for(checkpoint, output), SilentReporter())
    assert not report.exists()  # it is not of this bundle


def test_a_layer_that_is_wrong_is_not_published_though_the_logits_hide_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = check_bundle_of_layers.check_by_layer
    culprit = Culprit(
        layer=1,
        place="frame 1",
        node="node_add",
        tensor="input_layernorm",
        pattern="norm epsilon",
        words="layer 1, everywhere, input_layernorm: norm epsilon",
        share=3.0,
    )

    def blaming(*given: Any) -> ByLayerResult:
        return replace(real(*given), culprit=culprit)

    monkeypatch.setattr(check_bundle_of_layers, "check_by_layer", blaming)
    output = tmp_path / "bundle"
    with pytest.raises(CheckFailed, match="though the logits do not show it") as raised:
        build(request_for(checkpoint, output), SilentReporter())
    assert "layer 1, everywhere, input_layernorm" in str(raised.value)
    assert not output.exists()
    found = json.loads((tmp_path / "bundle.failed-parity" / "report.json").read_text())
    assert found["passed"]
    assert found["by_layer"]["culprit"]["layer"] == 1


def test_another_checkpoint_is_told_apart(bundle: Path, tmp_path: Path) -> None:
    other = save_with_tokenizer(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["temporal"] = {"gamma": 0.25}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match=r"not the checkpoint|contradict"):
        check_bundle(bundle, other)


@pytest.mark.parametrize("weights", [Placement.LINK, Placement.COPY])
def test_weights_come_as_they_are_asked_for(
    bundle: Path, checkpoint: Path, tmp_path: Path, weights: Placement
) -> None:
    """Nothing is made again for it; and the checkpoint's file is there once."""
    output, shard = copy_bundle(bundle, tmp_path), checkpoint / "model.safetensors"
    watching = Watching()
    manifest = build(replace(request_for(checkpoint, output), weights=weights), watching)
    assert watching.ran == ["shards", "readme"]
    assert manifest.weights_asked is weights
    assert verify(output) == []
    graphs_folder = output / "graphs"
    assert {path.name for path in graphs_folder.iterdir()} == {
        "vision.onnx",
        "decoder.onnx",
        shard.name,
    }
    assert (graphs_folder / shard.name).samefile(shard) == (weights is Placement.LINK)
    assert sum(path.stat().st_size == shard.stat().st_size for path in output.rglob("*.*")) == 1


def test_a_copy_of_the_weights_shows_how_far_it_is(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_CHUNK_BYTES", 100_000)
    told: list[tuple[float, float | None]] = []

    class Noting(Watching):
        def advanced(self, stage, done, total) -> None:  # type: ignore[no-untyped-def]
            if stage.name == "shards":
                told.append((done, total))

        def finished(self, stage, seconds) -> None:  # type: ignore[no-untyped-def]
            if stage.name == "shards":
                raise KeyboardInterrupt

    request = replace(request_for(checkpoint, tmp_path / "bundle"), weights=Placement.COPY)
    with pytest.raises(KeyboardInterrupt):
        build(request, Noting())
    size = (checkpoint / "model.safetensors").stat().st_size
    assert told[-1] == (size, size)
    assert [done for done, _ in told[:4]] == [100_000, 200_000, 300_000, 400_000]
    assert {total for _, total in told} == {size}


def test_a_folder_of_somebody_is_never_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError):
        build(request_for(checkpoint, tmp_path / "theirs"), SilentReporter())
    assert (tmp_path / "theirs" / "thesis.txt").read_text() == "years of work"


def test_a_moved_bundle_is_whole(bundle: Path, tmp_path: Path) -> None:
    """Nothing in it points out of it."""
    moved = Path(shutil.copytree(bundle, tmp_path / "elsewhere"))
    assert verify(moved) == []
    assert not any(path.is_symlink() for path in moved.rglob("*"))
