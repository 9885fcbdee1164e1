# SPDX-License-Identifier: Apache-2.0
"""What a build depends on: each change runs just the stages whose result it changes.

Stages are listed here and not run: a stage's files stand in its key's place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tc_export import pipeline
from tc_export.bundle import Placement, StageRecord
from tc_export.config import AttentionMask, ModelSettings, TemporalConfig
from tc_export.contracts import graph_document
from tc_export.errors import UnsupportedEnvironment, UsageError
from tc_export.pipeline import BuildRequest, build, build_each
from tc_export.runner import SilentReporter, Stage
from tc_export.stages import plugins, tools
from tc_export.stages.inputs import BuildInputs
from tc_export.targets import Release
from tests.bundled import request_for, save_with_tokenizer
from tests.checkpoint.families import edit_config, edit_weights
from tests.repository import TARGETS

GRAPHS = {"vision", "decoder"}
ASSETS = {"assets", "answering"}  # what answering reads is tried whenever it changes
ENGINES = {"vision_engine", "decoder_engine"}
FORMS = {"vision_tensorrt", "decoder_tensorrt"}
SHARED = {*ASSETS, "shards", "weights", "embedding", *GRAPHS, "golden"}
LAST = {"parity", "readme"}
EVERY_STAGE = {
    "cpu": {*SHARED, "engine", *LAST},
    "rtx4090": {*SHARED, "plugins", *ENGINES, *LAST},
    "orin": {*SHARED, "plugins", *FORMS, "finish", *LAST},
}


@dataclass
class World:
    """A build that is asked for, and what it finds on this machine."""

    request: BuildRequest
    folder: Path
    library: str = "sources"
    packages: dict[str, str] = field(default_factory=dict)

    def ask(self, **change: Any) -> None:
        self.request = replace(self.request, **change)

    def move_checkpoint(self) -> None:
        elsewhere = self.folder / "elsewhere"
        self.request.checkpoint.rename(elsewhere)
        self.ask(checkpoint=elsewhere)

    def edit_target(self, old: str, new: str) -> None:
        """Build for a target of one's own that differs in one line."""
        text = (TARGETS / f"{self.request.target}.toml").read_text()
        assert old in text
        name = new.split('"')[1] if "name" in new else self.request.target
        (self.folder / f"{name}.toml").write_text(text.replace(old, new, 1))
        self.ask(target=str(self.folder / f"{name}.toml"))


class Listed(Exception):
    """Raised in the place of running the stages."""

    def __init__(self, stages: list[Stage]) -> None:
        super().__init__()
        self.stages = stages


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    return save_with_tokenizer(folder, text={"head_dim": 64})


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    checkpoint = Path(shutil.copytree(template, tmp_path / "checkpoint"))
    world = World(request_for(checkpoint, tmp_path / "bundle"), tmp_path)
    installed = tools.version

    def stop(staging: object, stages: list[Stage], *arguments: object, **options: object) -> None:
        raise Listed(stages)

    monkeypatch.setattr(pipeline, "run_stages", stop)
    monkeypatch.setattr(tools, "version", lambda x: world.packages.get(x) or installed(x))
    monkeypatch.setattr(plugins, "can_compile_for", lambda release: True)
    monkeypatch.setattr(plugins, "check_cuda", lambda release: None)
    monkeypatch.setattr(plugins, "library_key", lambda target: f"{world.library} {target.sm}")
    return world


def stages_of(request: BuildRequest) -> list[Stage]:
    """The stages of a build, not run."""
    with pytest.raises(Listed) as listed:
        build(request, SilentReporter())
    return listed.value.stages


def keys(request: BuildRequest) -> dict[str, str]:
    """The effective key of every stage."""
    ended: dict[str, StageRecord] = {}
    for stage in stages_of(request):
        ended[stage.name] = StageRecord(key=stage.effective_key(ended), seconds=0, files={})
    return {name: record.key for name, record in ended.items()}


def changed_by(world: World, change: Callable[[World], object]) -> set[str]:
    before = keys(world.request)
    assert keys(world.request) == before
    change(world)
    after = keys(world.request)
    assert before.keys() == after.keys()
    return {name for name, key in after.items() if key != before[name]}


@pytest.mark.parametrize("target", EVERY_STAGE)
def test_every_stage_is_looked_at_here(world: World, target: str) -> None:
    assert keys(replace(world.request, target=target)).keys() == EVERY_STAGE[target]


def test_the_processor_takes_a_mask_that_is_no_prefix_and_any_head_size(world: World) -> None:
    """What the plugins lack is no concern of its."""
    world.ask(checkpoint=save_with_tokenizer(world.folder / "heads of 16"))
    world.ask(settings=ModelSettings(temporal=TemporalConfig(mask=AttentionMask.FRAME_BLOCK)))
    assert keys(world.request).keys() == EVERY_STAGE["cpu"]


def test_several_targets_are_all_looked_at_before_one_is_built(world: World) -> None:
    several = world.folder / "several"
    world.ask(output=several)
    with pytest.raises(UsageError, match="named twice: orin, orin"):
        build_each(world.request, ["orin", "orin"])
    with pytest.raises(UsageError, match="unknown"):
        build_each(world.request, ["cpu", "orni"])
    world.ask(precision="fp32")
    with pytest.raises(UsageError, match="orin cannot run the vision in float32"):
        build_each(world.request, ["cpu", "orin"])
    assert not several.exists()
    world.ask(precision="fp16")
    elsewhere = build_each(world.request, ["orin"], lambda name: world.folder / f"small-{name}")
    assert [place for place, _ in elsewhere] == [world.folder / "small-orin"]
    places = [place for place, _ in build_each(world.request, ["orin", "thor"])]
    assert places == [several / "orin", several / "thor"]


def test_the_builder_of_engines_must_be_installed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(tools, "version", nothing)
    with pytest.raises(UnsupportedEnvironment, match="tensorrt-rtx") as raised:
        build(replace(world.request, target="rtx4090"), SilentReporter())
    assert "pip install" in str(raised.value.hint)


def test_engines_that_are_built_here_take_a_compiler_of_the_releases_cuda(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(found: Release) -> None:
        raise UnsupportedEnvironment(f"CUDA {found.cuda}")

    monkeypatch.setattr(plugins, "can_compile_for", lambda release: False)
    monkeypatch.setattr(plugins, "check_cuda", refuse)
    with pytest.raises(UnsupportedEnvironment, match="CUDA 13"):
        build(replace(world.request, target="rtx4090"), SilentReporter())


@pytest.mark.parametrize(("release", "cuda"), [(None, "13.2"), ("JetPack 6.2", "12.6")])
def test_a_device_is_sent_the_sources_where_the_compiler_is_of_another_cuda(
    world: World, monkeypatch: pytest.MonkeyPatch, release: str | None, cuda: str
) -> None:
    """Only the other release's library can be compiled here."""
    monkeypatch.setattr(plugins, "can_compile_for", lambda found: found.cuda != cuda)
    for asked_for, sent in ((release, True), ("10.16" if release else "10.3", False)):
        world.ask(target="orin", release=asked_for)
        (stage,) = (stage for stage in stages_of(world.request) if stage.name == "plugins")
        assert (stage.outputs == ("plugins/source",)) == sent
        assert stage.in_subprocess != sent


def asked(**change: Any) -> Callable[[World], object]:
    return lambda world: world.ask(**change)


def installed(package: str) -> Callable[[World], object]:
    return lambda world: world.packages.update({package: "999"})


def one_weight(world: World) -> None:
    edit_weights(world.request.checkpoint, lambda tensors: next(iter(tensors.values())).mul_(2))


def tokenizer(world: World) -> None:
    path = world.request.checkpoint / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))


def line_of_the_config(world: World) -> None:
    """One that no graph depends on, but that the bundle hands on."""
    edit_config(world.request.checkpoint, lambda x: x.update(image_grid_pinpoints=[[1, 1]]))


def padding(world: World) -> None:
    """How a frame is preprocessed, in the one file that says it and is not copied as it is."""
    edit_config(world.request.checkpoint, lambda x: x.update(image_aspect_ratio="pad"))


def longer_header(world: World) -> None:
    """The same weights at other places of the same file."""
    path = world.request.checkpoint / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "note": "x" * 100})


def shard_by_another_name(world: World) -> None:
    path = world.request.checkpoint / "model.safetensors"
    path.rename(path.with_name("weights.safetensors"))
    path.symlink_to("weights.safetensors")


def plugin_sources(world: World) -> None:
    world.library = "other sources"


# What depends on the checkpoint's weights, whatever the target.
ON_WEIGHTS = {"shards", "weights", "embedding", *GRAPHS, "golden", "parity"}

CHANGES: list[tuple[str, Callable[[World], object], set[str]]] = [
    ("cpu", asked(max_length=100), {*ASSETS, "golden", "parity", "readme"}),
    ("cpu", asked(max_frames=2), {*ASSETS, "golden", "parity", "readme"}),
    (
        "cpu",
        asked(precision="vision=fp16"),
        {*ASSETS, "vision", "golden", "engine", "parity", "readme"},
    ),
    (
        "cpu",
        asked(precision="decoder=fp16"),
        {*ASSETS, "embedding", "decoder", "golden", "engine", "parity", "readme"},
    ),
    ("cpu", installed("onnxruntime"), {"engine", "parity"}),
    ("cpu", installed("tokenizers"), {*ASSETS, "parity"}),
    ("cpu", installed("jinja2"), {"answering"}),
    ("cpu", installed("torch"), {"embedding", *GRAPHS, "golden", "engine", "parity"}),
    ("cpu", installed("onnxscript"), {"embedding", *GRAPHS, "engine", "parity"}),
    ("cpu", one_weight, {*ON_WEIGHTS, "engine", "readme"}),
    (
        "cpu",
        asked(settings=ModelSettings(temporal=TemporalConfig(gamma=0.5))),
        {*ON_WEIGHTS, *ASSETS, "engine", "readme"},
    ),
    ("cpu", tokenizer, {*ASSETS, "parity"}),
    ("cpu", padding, {*ASSETS, "parity"}),
    ("cpu", line_of_the_config, ASSETS),
    ("cpu", World.move_checkpoint, ASSETS),
    ("cpu", asked(weights=Placement.COPY), {"shards", "readme"}),
    ("cpu", longer_header, {"shards", *GRAPHS, "engine", "parity"}),
    ("cpu", shard_by_another_name, {"shards", *GRAPHS, "engine", "parity"}),
    ("orin", longer_header, set()),  # nothing stays as it is stored
    ("rtx4090", asked(max_length=100), {*ASSETS, "golden", *ENGINES, "parity", "readme"}),
    ("rtx4090", asked(max_frames=2), {*ASSETS, "golden", *ENGINES, "parity", "readme"}),
    (
        "rtx4090",
        asked(precision="vision=bf16"),
        {*ASSETS, "vision", "golden", "vision_engine", "parity", "readme"},
    ),
    (
        "rtx4090",
        asked(precision="decoder=bf16"),
        {*ASSETS, "embedding", "decoder", "golden", "decoder_engine", "parity", "readme"},
    ),
    ("rtx4090", asked(target="rtx5090"), {*ASSETS, "plugins", *ENGINES, "readme"}),
    ("rtx4090", plugin_sources, {"plugins", *ENGINES, "readme"}),
    ("rtx4090", installed("tensorrt-rtx-cu13-libs"), ENGINES),
    (
        "rtx4090",
        installed("tc-export"),
        {"answering", "embedding", *GRAPHS, "golden", *ENGINES, "parity", "readme"},
    ),
    ("rtx4090", one_weight, {*ON_WEIGHTS, *ENGINES, "readme"}),
    ("orin", asked(max_length=100), {*ASSETS, "golden", "finish", "parity", "readme"}),
    ("orin", asked(release="10.3"), {*FORMS, "finish", "readme"}),
    (
        "orin",
        asked(precision="vision=bf16"),
        {*ASSETS, "vision", "golden", "vision_tensorrt", "finish", "parity", "readme"},
    ),
    ("orin", plugin_sources, {"plugins", "finish", "readme"}),
    ("orin", installed("torch"), {"embedding", *GRAPHS, "golden", *FORMS, "finish", "parity"}),
    ("orin", one_weight, {*ON_WEIGHTS, *FORMS, "finish", "readme"}),
    (
        "orin",
        lambda world: world.edit_target("sm = 87", "sm = 110"),
        {"plugins", "finish", "readme"},
    ),
    (
        "orin",
        lambda world: world.edit_target('name = "orin"', 'name = "bench"'),
        {*ASSETS, "finish", "readme"},
    ),
]


@pytest.mark.parametrize(("target", "change", "again"), CHANGES)
def test_a_change_runs_what_depends_on_it_and_nothing_else(
    world: World, target: str, change: Callable[[World], object], again: set[str]
) -> None:
    world.ask(target=target)
    assert changed_by(world, change) == again


def test_an_engine_is_bound_to_its_gpu_whatever_the_plugins_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plugins for two GPUs may be the same bytes; an engine is for one."""
    world.ask(target="rtx4090")
    monkeypatch.setattr(plugins, "library_key", lambda target: "sources")
    monkeypatch.setattr(BuildInputs, "plugin_library", "plugins/library.so")
    assert changed_by(world, asked(target="rtx5090")) == {*ASSETS, *ENGINES, "readme"}


def test_another_limit_of_the_graphs_is_written_down_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(world: World) -> None:
        monkeypatch.setattr(graph_document, "LOGITS_A_CALL", graph_document.LOGITS_A_CALL + 1)

    assert changed_by(world, change) == ASSETS
