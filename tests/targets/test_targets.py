# SPDX-License-Identifier: Apache-2.0
"""Targets: the shipped files against the table that they were written from, and strict reading."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.errors import InputError, UsageError
from tc_export.shipped_files import ShippedFiles
from tc_export.targets import (
    Mark,
    Precision,
    list_targets,
    load_target,
    read_precisions,
    read_target,
)
from tc_export.targets import target as targets
from tests.repository import TARGETS

# target: SM, GB, GB/s, FP16/BF16, INT8, FP8, FP4, flavour; † derived, ? uncertain
TABLE = """
orin-nano-4gb | 87 | 4 | 51 | 8† | 17 | - | - | tensorrt
orin-nano | 87 | 8 | 102 | 17† | 33 | - | - | tensorrt
orin-nx-8gb | 87 | 8 | 102 | 19† | 38 | - | - | tensorrt
orin-nx | 87 | 16 | 102 | 19† | 38 | - | - | tensorrt
orin-32gb | 87 | 32 | 205 | 27† | 54 | - | - | tensorrt
orin | 87 | 64 | 205 | 43† | 85 | - | - | tensorrt
thor-t4000 | 110 | 64 | 273 | 150† | 300†? | 300 | 600 | tensorrt
thor | 110 | 128 | 273 | 258† | 517†? | 517 | 1035 | tensorrt
a100 | 80 | 80 | 2039 | 312 | 624 | - | - | tensorrt
l4 | 89 | 24 | 300 | 121? | 242? | 242? | - | tensorrt
l40s | 89 | 48 | 864 | 362? | 733? | 733? | - | tensorrt
h100 | 90 | 80 | 3350 | 989 | 1979 | 1979 | - | tensorrt
h200 | 90 | 141 | 4800 | 989 | 1979 | 1979 | - | tensorrt
b200 | 100 | 192 | 7700 | 2250 | 4500 | 4500 | 9000 | tensorrt
rtx4090 | 89 | 24 | 1008 | 165 | 661? | 330 | - | tensorrt-rtx
rtx5090 | 120 | 32 | 1792 | 210† | 838† | 419 | 1676† | tensorrt-rtx
"""
ROWS = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]
SIGNS = {"†": Mark.DERIVED, "?": Mark.UNCERTAIN}
JETSONS = {row[0] for row in ROWS if row[0].startswith(("orin", "thor"))}


def test_the_table_is_complete() -> None:
    assert {target.name for target in list_targets()} == {row[0] for row in ROWS} | {"cpu"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_shipped_target_is_what_the_table_says(row: list[str]) -> None:
    name, sm, total, bandwidth, *rates, flavour = row
    target = load_target(name)
    assert target.sm == int(sm)
    assert (target.memory.total_gb, target.memory.bandwidth_gb_s) == (int(total), int(bandwidth))
    assert target.toolchain.engine == flavour
    for fields, cell in zip(
        (("float16", "bfloat16"), ("int8",), ("fp8",), ("nvfp4",)), rates, strict=True
    ):
        for field in fields:
            number = None if cell == "-" else float(cell.rstrip("†?"))
            assert getattr(target.rates, field) == number
            marks = {doubt.mark for doubt in target.doubts_about(f"rates.{field}")}
            assert marks == {SIGNS[sign] for sign in cell if sign in SIGNS}
    assert target.memory.unified == (name in JETSONS)
    assert target.toolchain.architecture == ("aarch64" if name in JETSONS else "x86_64")
    assert target.doubts_about("memory.os_reserve_gb")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_precisions_follow_the_hardware(row: list[str]) -> None:
    sm = int(row[1])
    expected = {"float16", "bfloat16", "int8", "int4"}
    expected |= {"fp8"} if sm >= 89 else set()
    expected |= {"nvfp4"} if sm >= 100 else set()
    assert set(load_target(row[0]).precisions) == expected


def test_software_of_jetsons() -> None:
    def releases(name: str) -> dict[str, tuple[str, str]]:
        return {x.name: (x.cuda, x.tensorrt) for x in load_target(name).toolchain.releases}

    assert releases("orin") == {"JetPack 6.2": ("12.6", "10.3"), "JetPack 7.2": ("13.2", "10.16")}
    assert releases("thor") == {
        "JetPack 7.0/7.1": ("13.0", "10.13"),
        "JetPack 7.2": ("13.2", "10.16"),
    }
    assert load_target("thor").doubts_about("toolchain.releases")


def test_usable_memory_of_b200_is_in_doubt() -> None:
    target = load_target("b200")
    assert target.memory.usable_gb == 180
    assert [doubt.mark for doubt in target.doubts_about("memory.usable_gb")] == [Mark.UNCERTAIN]


def test_cpu_states_nothing_of_the_host() -> None:
    target = load_target("cpu")
    assert target.memory.total_gb is None
    assert target.rates.model_dump(exclude_none=True) == {}
    assert target.sm is None


def test_adding_a_target_is_adding_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shipped"
    shutil.copytree(TARGETS, folder)
    text = (folder / "orin.toml").read_text().replace('"orin"', '"orin-mine"')
    (folder / "orin-mine.toml").write_text(text)
    monkeypatch.setattr(ShippedFiles, "folders", (tmp_path / "none", folder))
    assert load_target("orin-mine").memory == load_target("orin").memory
    assert "orin-mine" in {target.name for target in list_targets()}


def test_a_file_of_ones_own_by_its_path(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text((TARGETS / "l4.toml").read_text().replace('"l4"', '"mine"'))
    assert load_target(str(own)).name == "mine"


@pytest.mark.parametrize(("wrong", "near"), [("orni", "orin"), ("RTX-4090", "rtx4090")])
def test_an_unknown_name_suggests_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(UsageError, match="known targets: a100, b200, cpu") as raised:
        load_target(wrong)
    assert f"did you mean {near}?" in str(raised.value.hint)


def edited(folder: Path, edit: Callable[[str], str]) -> Path:
    path = folder / "orin.toml"
    path.write_text(edit((TARGETS / "orin.toml").read_text()))
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("sm = 87", "sm = 87\ncolour = 1", "colour"),
        ("total_gb", "total", "memory.total"),
        ("int8 = 85", "int9 = 85", "rates.int9"),
        ("total_gb = 64", "total_gb = -1", "memory.total_gb"),
        ("total_gb = 64", "total_gb = nan", "memory.total_gb"),
        ("sm = 87\n", "", "sm belongs to a TensorRT engine"),
        ("sm = 87", "sm = 75", "sm is 75: the kernels need 80 or later"),
        ('"float16", ', '"float17", ', "precisions.0"),
        ('field = "rates.float16"', 'field = "rates.fp8"', "rates.fp8"),
        ('mark = "derived"', 'mark = "guessed"', "mark"),
        ('engine = "tensorrt"', 'engine = "tvm"', "toolchain.engine"),
        ('name = "orin"', 'name = "thor"', "names its target 'thor', expected 'orin'"),
        ("sm = 87", "sm = = 87", "is not TOML"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = edited(tmp_path, lambda text: text.replace(old, new, 1))
    with pytest.raises(UsageError, match=re.escape(words)):
        read_target(path)


def test_an_unknown_key_names_the_known_ones_of_its_table(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda text: text.replace("total_gb", "total"))
    with pytest.raises(UsageError) as raised:
        read_target(path)
    assert "in memory: total_gb, usable_gb, bandwidth_gb_s" in str(raised.value.hint)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.toml", tmp_path / "bytes.toml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            load_target(f"{path}/" if path == tmp_path else str(path))


@given(st.recursive(st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x)))
def test_whatever_stands_in_a_file_is_refused_in_words(value: Any) -> None:
    """Values of the wrong kind never raise anything but the message."""
    values = tomllib.loads((TARGETS / "orin.toml").read_text())
    for key in values:
        if value != values[key] and key not in ("description", "source", "name", "sm"):
            with pytest.raises(UsageError):
                targets.Target.read({**values, key: value}, where="a test")


class TestPrecisions:
    def test_default_is_the_targets_first(self) -> None:
        assert dict(read_precisions(None, load_target("orin"))) == {
            "vision": Precision.FLOAT16,
            "decoder": Precision.FLOAT16,
        }
        assert read_precisions(None, load_target("cpu")).decoder is Precision.FLOAT32

    @pytest.mark.parametrize(
        ("text", "vision", "decoder"),
        [
            ("bf16", "bfloat16", "bfloat16"),
            ("vision=fp16,decoder=bf16", "float16", "bfloat16"),
            ("decoder=bfloat16", "float16", "bfloat16"),
            (" vision=bf16 , decoder=fp16", "bfloat16", "float16"),
        ],
    )
    def test_reading(self, text: str, vision: str, decoder: str) -> None:
        found = read_precisions(text, load_target("orin"))
        assert (found.vision, found.decoder) == (vision, decoder)

    @pytest.mark.parametrize(
        ("text", "target", "words", "hint"),
        [
            ("fp8", "orin", "orin cannot run the vision in fp8", "float16, bfloat16, int8, int4"),
            ("decoder=bf16", "cpu", "cpu cannot run the decoder in bfloat16", "float32, float16"),
            ("fp32", "h100", "h100 cannot run", "float16, bfloat16"),
            ("int8", "orin", "exported in floating point only", "float16, bfloat16"),
            ("fp12", "orin", "'fp12' is unknown", "bf16"),
            ("", "orin", "'' is unknown", "fp16"),
            ("sound=fp16", "orin", "component 'sound'", "vision, decoder"),
            ("=fp16", "orin", "component ''", "vision, decoder"),
        ],
    )
    def test_refusals(self, text: str, target: str, words: str, hint: str) -> None:
        with pytest.raises(UsageError, match=re.escape(words)) as raised:
            read_precisions(text, load_target(target))
        assert hint in str(raised.value.hint)


def test_the_example_in_the_docs_is_a_target(tmp_path: Path) -> None:
    page = (TARGETS.parents[1] / "docs" / "adding-a-target.md").read_text()
    found = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert found
    (tmp_path / "my-board.toml").write_text(found[1])
    assert load_target(str(tmp_path / "my-board.toml")).sm == 87
