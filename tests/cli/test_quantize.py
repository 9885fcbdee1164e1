# SPDX-License-Identifier: Apache-2.0
"""`tc-export quantize`, and the flag of the same name: what they print, and how they fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import run
from tests.repository import DEMO_CHECKPOINT

Capture = pytest.CaptureFixture[str]


def test_a_checkpoint_is_quantised_and_planned(capsys: Capture, tmp_path: Path) -> None:
    words = ["--checkpoint", DEMO_CHECKPOINT, "--recipe", "int4-weights"]
    new = tmp_path / "of" / "several" / "new"
    code, out, _ = run(capsys, "quantize", *words, "--output", new, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["folder"] == str(new)
    assert found["weights"] == 28
    assert found["bytes_after"] < 0.5 * found["bytes_before"]
    code, out, _ = run(capsys, "quantize", *words, "--output", new)
    assert code == 0
    assert "28 matrices are quantised" in out
    place = ["--checkpoint", new, "--target", "orin", "--frames", "4", "--json"]
    code, out, _ = run(capsys, "plan", *place)
    assert (code, json.loads(out)["recipe"]) == (0, "int4-weights")
    whole = ["--checkpoint", DEMO_CHECKPOINT, "--target", "orin", "--frames", "4", "--json"]
    _, asked, _ = run(capsys, "plan", *whole, "--quantize", "int4-weights")
    assert json.loads(asked)["bytes"] == json.loads(out)["bytes"]


def test_a_recipe_with_a_cache_in_eight_bits(capsys: Capture, tmp_path: Path) -> None:
    """The new checkpoint states it; a plan counts it, by the recipe as by the checkpoint."""
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        "description = 'both in eight bits'\nkv = 'int8'\n[[weights]]\n"
        "names = ['decoder.layers.*_proj.weight']\nformat = 'int8'\ngroup_size = 32\n"
    )
    words = ["--checkpoint", DEMO_CHECKPOINT, "--recipe", recipe, "--output", tmp_path / "new"]
    code, _, err = run(capsys, "quantize", *words)
    assert code == 0, err
    assert json.loads((tmp_path / "new" / "config.json").read_text())["cache"] == {"kv": "int8"}

    def cache_bytes(*words: object) -> int:
        code, out, err = run(capsys, "plan", "--target", "cpu", "--frames", "4", "--json", *words)
        assert code == 0, err
        found: int = json.loads(out)["bytes"]["kv_cache"]
        return found

    of_new = cache_bytes("--checkpoint", tmp_path / "new")
    assert of_new == cache_bytes("--checkpoint", DEMO_CHECKPOINT, "--quantize", recipe)
    assert of_new == cache_bytes("--checkpoint", DEMO_CHECKPOINT, "--kv", "int8")
    assert of_new < 0.4 * cache_bytes("--checkpoint", DEMO_CHECKPOINT)
    code, _, err = run(
        capsys, "plan", "--checkpoint", DEMO_CHECKPOINT, "--quantize", recipe, "--kv", "16"
    )
    assert code == 2
    assert "the cache is asked for in 16" in err


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--recipe", "int5"], 2, "the recipe 'int5' is unknown"),
        (["--recipe", "none/here.toml"], 3, "cannot be read"),
    ],
)
def test_no_such_recipe(
    capsys: Capture, tmp_path: Path, words: list[str], code: int, expected: str
) -> None:
    place = ["--checkpoint", DEMO_CHECKPOINT, "--output", tmp_path / "new"]
    found, _, err = run(capsys, "quantize", *place, *words)
    assert found == code, err
    assert expected in err
    assert not list(tmp_path.iterdir())


def test_a_build_refuses_before_it_quantises(capsys: Capture, tmp_path: Path) -> None:
    words = ["--checkpoint", DEMO_CHECKPOINT, "--output", tmp_path / "bundle"]
    words += ["--target", "rtx4090", "--quantize", "int8-weights"]
    code, _, err = run(capsys, "build", *words)
    assert code == 2
    assert "widens int8 weights" in err
    assert not list(tmp_path.iterdir())
