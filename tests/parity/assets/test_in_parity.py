# SPDX-License-Identifier: Apache-2.0
"""Files of a bundle are part of `tc-export parity` and of a build, whose verdict they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tc_export.bundle.layout import EMBEDDING_FILE
from tc_export.checkpoint.reader import EMBEDDING, Checkpoint
from tc_export.dtypes import DType
from tc_export.errors import CheckFailed
from tc_export.graph import export
from tc_export.parity.tensors.check_bundle import check_bundle
from tc_export.parity.tensors.report import failures, result_as_json
from tc_export.pipeline import build
from tc_export.runner import SilentReporter
from tests.bundled import copy_bundle, request_for, reseal, save_with_tokenizer
from tests.cli.running import run


def change_a_row(file: Path) -> None:
    table = load_file(file)[EMBEDDING].clone()
    table[11, 2] += 1
    file.unlink()  # it may share its bytes with others
    save_file({EMBEDDING: table}, file)


def test_a_bundle_that_is_right_passes_and_says_what_was_compared(bundle: Path) -> None:
    seen: list[tuple[float, float | None]] = []
    result = check_bundle(bundle, graphs=True, advance=lambda *x: seen.append(x))
    assert result.passed, failures(result)
    names = [x.name for x in result.assets]
    assert names[0] == "embedding table"
    assert names[-1] == "end tokens"
    document = result_as_json(result)
    assert [x["name"] for x in document["assets"]] == names
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {len(seen)}


def test_a_changed_row_of_the_embedding_fails_parity(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = copy_bundle(bundle, tmp_path)
    change_a_row(copied / EMBEDDING_FILE)
    reseal(copied)
    code, out, err = run(capsys, "parity", copied, "--json")
    assert code == 1
    assert "the bundle does not carry what the checkpoint has" in err
    assert "row 11, channel 2" in err
    document = json.loads(out)
    assert not document["passed"]
    assert all(x["passed"] for x in document["tensors"])  # no graph has that table
    assert [x["name"] for x in document["assets"] if not x["passed"]] == ["embedding table"]


def test_a_changed_template_fails_parity(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = copy_bundle(bundle, tmp_path)
    (copied / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<image>")
    reseal(copied)
    code, _, err = run(capsys, "parity", copied)
    assert code == 1
    assert "chat template" in err
    assert "should be none: Vicuna's prompt" in err


def test_a_build_with_another_table_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_with_tokenizer(tmp_path / "checkpoint")
    request = replace(request_for(checkpoint, tmp_path / "bundle"), check_parity=True)
    write = export.export_embedding

    def wrongly(checkpoint: Checkpoint, dtype: DType, path: Path) -> int:
        size = write(checkpoint, dtype, path)
        change_a_row(path)
        return size

    monkeypatch.setattr(export, "export_embedding", wrongly)
    with pytest.raises(CheckFailed, match=r"embedding table: .* in row 11, channel 2, should be"):
        build(request, SilentReporter())
    assert not request.output.exists()
