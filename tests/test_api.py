# SPDX-License-Identifier: Apache-2.0
"""`import tc_export`: lazy, typed, and as docs/python.md says."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import tc_export
from tc_export import api
from tc_export.pipeline import BuildRequest
from tc_export.runner import SilentReporter
from tc_export.runtime.generation import GenerationConfig
from tc_export.tasks import Item, Kind, Split, make_item, render, write_video
from tests.bundled import MAX_FRAMES, MAX_LENGTH, copy_bundle
from tests.repository import DEMO_CHECKPOINT, REPOSITORY
from tests.runtime.clips import write_clip

PAGE = (REPOSITORY / "docs" / "python.md").read_text()
CODE = "\n\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
PUBLIC = sorted(set(tc_export.__all__) - {"__version__"})
FUNCTIONS = ["build", "check_answers", "check_parity", "inspect", "make_plan", "open"]
FUNCTIONS += ["quantize_checkpoint", "verify"]
HEAVY = "numpy pydantic torch onnxruntime transformers typer rich av jinja2 PIL tokenizers"


def modules_after(code: str) -> set[str]:
    """The packages that a new Python has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    return {name for name in done.stdout.split() if "." not in name or name.startswith("tc_export")}


def test_the_import_loads_nothing() -> None:
    loaded = modules_after("import tc_export; tc_export.__all__, dir(tc_export)")
    assert not loaded & set(HEAVY.split())
    assert {name for name in loaded if name.startswith("tc_export")} == {"tc_export"}


def test_an_error_costs_no_more_than_itself() -> None:
    assert not modules_after("from tc_export import BundleError") & set(HEAVY.split())


def test_what_answers_loads_nothing_that_builds() -> None:
    names = "open, VideoLanguageModel, GenerationConfig, Uniform, sample_video, Manifest, make_plan"
    loaded = modules_after(f"from tc_export import {names}")
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "transformers", "onnx", "onnxscript", "polygraphy", "rich"}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(tc_export, name)
    assert getattr(value, "__module__", "").startswith("tc_export.")
    documentation = inspect.getdoc(value)
    assert documentation
    assert not documentation.startswith(f"{name}("), "a dataclass without a text of its own"


def test_names_that_are_loaded_and_seen_are_the_same() -> None:
    """What a type checker reads, what Python loads, and what `__all__` promises."""
    source = ast.parse(Path(tc_export.__file__).read_text())
    seen = {
        (node.module.removeprefix("tc_export."), alias.name)
        for node in ast.walk(source)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tc_export.")
        for alias in node.names
        if node.module
    }
    loaded = {(home, name) for home, names in tc_export._HOMES.items() for name in names.split()}
    assert seen == loaded
    assert sorted(name for _, name in loaded) == PUBLIC


def test_no_public_name_is_a_module_of_the_package() -> None:
    """Importing that module would put it in the place of the function."""
    modules = {path.stem for path in Path(tc_export.__file__).parent.iterdir()}
    assert not modules & set(PUBLIC)


def test_dir_and_unknown_names() -> None:
    assert set(tc_export.__all__) <= set(dir(tc_export))
    with pytest.raises(AttributeError, match=r"'tc_export' has no attribute 'opne'"):
        _ = tc_export.opne  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        from tc_export import ask  # type: ignore[attr-defined]  # noqa: F401


def test_a_build_offers_every_field_of_its_request() -> None:
    offered = inspect.signature(api.build).parameters
    assert offered.keys() - {"reporter"} == {field.name for field in fields(BuildRequest)}
    for field in fields(BuildRequest):
        if field.name not in ("checkpoint", "output", "settings"):
            assert offered[field.name].default == field.default, field.name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_of_a_function_is_described(name: str) -> None:
    function = getattr(api, name)
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"\b{argument}\b", inspect.getdoc(function) or ""), argument


def test_building_and_asking_with_paths_as_text(bundle: Path, tmp_path: Path) -> None:
    """Against the small bundle: an unchanged build, and what else takes a bundle."""
    folder = copy_bundle(bundle, tmp_path)
    manifest = tc_export.build(
        str(bundle.parent / "checkpoint"),
        output=str(folder),
        max_frames=MAX_FRAMES,
        max_length=MAX_LENGTH,
        reporter=SilentReporter(),
    )
    assert isinstance(manifest, tc_export.Manifest)
    assert tc_export.verify(str(folder)) == []
    assert tc_export.inspect(str(folder))["target"] == "cpu"
    model = tc_export.open(str(folder), native=False, threads=1)
    clip = str(write_clip(tmp_path / "clip.mp4", 6))
    short = GenerationConfig(max_new_tokens=4)
    assert model.ask(clip, "What?", generation=short).answer.new_tokens <= 4
    assert len(tc_export.sample_video(clip, tc_export.Uniform(frames=2)).frames) == 2
    (folder / "config.json").write_text("{}")
    (problem,) = tc_export.verify(str(folder))
    assert problem.path == "config.json"
    with pytest.raises(tc_export.BundleError, match="damaged"):
        tc_export.open(str(folder))


def test_settings_are_those_of_the_file(tmp_path: Path) -> None:
    plan = tc_export.make_plan(str(DEMO_CHECKPOINT), target="orin", frames=4)
    assert plan.target.name == "orin"
    assert plan.workload.frames == 4
    with pytest.raises(tc_export.UsageError, match="gama"):
        tc_export.make_plan(DEMO_CHECKPOINT, settings={"temporal": {"gama": 1.0}})
    with pytest.raises(tc_export.UsageError, match="gama"):
        tc_export.build(DEMO_CHECKPOINT, output=tmp_path, settings={"temporal": {"gama": 1.0}})
    with pytest.raises(tc_export.UsageError, match="nosuch"):
        tc_export.build(DEMO_CHECKPOINT, output=tmp_path / "out", target="nosuch")


WITHOUT_EXPORT = """
import sys
from tests.cli.without_export import Blocker
sys.meta_path.insert(0, Blocker())
import tc_export
for call in (
    lambda: tc_export.build("checkpoints/tc-llava-tiny", output=sys.argv[2]),
    lambda: tc_export.check_parity(sys.argv[1]),
    lambda: tc_export.check_answers(sys.argv[1]),
):
    try:
        call()
    except tc_export.UnsupportedEnvironment as error:
        print(error.hint)
"""


def test_a_package_that_is_missing_is_named(bundle: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXPORT, str(bundle), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["pip install 'tc-export[export]'"] * 3


def run_mypy(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Check a client's file with the project's own (strict) settings."""
    client = folder / "client.py"
    client.write_text(code)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(client)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_page_is_typed(tmp_path: Path) -> None:
    done = run_mypy(tmp_path, CODE)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_type_checker_sees_the_types(tmp_path: Path) -> None:
    lines = ["import tc_export", "reveal_type(tc_export.open('x').answer_many([], []))"]
    wrong = ["tc_export.opne", "tc_export.open(3)", "tc_export.build('x')"]
    done = run_mypy(tmp_path, "\n".join(lines + wrong))
    found = {int(number) for number in re.findall(r"client\.py:(\d+): error", done.stdout)}
    assert found == {3, 4, 5}, done.stdout
    assert '"list[tc_export.runtime.answer.Answer]"' in done.stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the page finds it after `make demo`, and as the working folder."""
    (tmp_path / "checkpoints").symlink_to(REPOSITORY / "checkpoints")
    (tmp_path / "engines" / "out").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def demo_item(video: Path) -> Item:
    """Draw the demo's clip, as scripts/draw_demo_clip.py does."""
    item = make_item(Kind.BEFORE_AFTER, 2, Split.TEST, seed=3)
    (frames,) = render([item.clip], 256)
    write_video(video, frames)
    return item


@pytest.mark.slow
def test_the_code_of_the_page_runs(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = demo_item(checkout / "engines" / "out" / "demo.mp4")
    names: dict[str, Any] = {}
    exec(compile(CODE, "docs/python.md", "exec"), names)
    assert names["question"] == item.question
    printed = capsys.readouterr().out
    assert printed.startswith(f"{item.answer} (0.0, ")
    assert names["stream"].answer.text == names["answers"][0].text == item.answer
    assert names["parity"].passed
    assert names["tasks"].passed
    assert names["plan"].fits
    assert names["problems"] == []
    assert "no/such/bundle does not exist" in printed
