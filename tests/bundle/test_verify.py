# SPDX-License-Identifier: Apache-2.0
"""Verification names every file that is not what the manifest says, and believes no manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tc_export import digests
from tc_export.bundle import inspect, locate, read_manifest, verify
from tc_export.digests import Digests
from tc_export.errors import BundleError
from tests.runner.toy import SPEC, Toy


def seal(values: dict[str, Any]) -> str:
    """A manifest with a true seal around any content; written from its description."""
    body = {k: v for k, v in values.items() if k not in ("format", "format_version", "seal")}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    header = {"format": "tc-export bundle", "format_version": 5, "seal": digest}
    return json.dumps({**header, **body})


@pytest.fixture
def bundle(toy: Toy) -> Path:
    toy.build()
    return toy.output


def _values(bundle: Path) -> dict[str, Any]:
    values = json.loads((bundle / "manifest.json").read_text())
    assert isinstance(values, dict)
    return values


def test_a_whole_bundle_has_no_problem_even_elsewhere(bundle: Path, tmp_path: Path) -> None:
    assert verify(bundle) == []
    moved = tmp_path / "moved"
    bundle.rename(moved)
    assert verify(moved) == []


def test_progress_ends_with_all_bytes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_CHUNK_BYTES", 7)
    sizes = [file.size_bytes for file in read_manifest(bundle).files.values()]
    told: list[tuple[int, int]] = []
    assert verify(bundle, lambda done, total: told.append((done, total))) == []
    done = [step for step, _ in told]
    assert {total for _, total in told} == {sum(sizes)}
    assert done == sorted(done)
    assert done[-1] == sum(sizes)
    assert max(after - before for before, after in pairwise([0, *done])) <= 7


def test_progress_counts_what_is_damaged_too(bundle: Path) -> None:
    first = next(iter(read_manifest(bundle).files))
    (bundle / first).unlink()
    told: list[tuple[int, int]] = []
    assert len(verify(bundle, lambda done, total: told.append((done, total)))) == 1
    assert told[-1][0] == told[-1][1]


def test_each_damage_is_named(bundle: Path) -> None:
    weights = bundle / "weights.bin"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[:-1] + b"?")
    engine = bundle / "engine/model.bin"
    engine.write_bytes(engine.read_bytes()[:-5])
    (bundle / "graph/a.onnx").write_text("a 1 and more")
    (bundle / "report.json").unlink()
    (bundle / "graph/deep/c.onnx").write_text("c")
    os.close(os.open(os.fsencode(bundle) + b"/\xff", os.O_CREAT | os.O_WRONLY))
    assert [(problem.path, problem.damage) for problem in verify(bundle)] == [
        ("\\xff", "added"),
        ("engine/model.bin", "truncated"),
        ("graph/a.onnx", "changed"),
        ("graph/deep/c.onnx", "added"),
        ("report.json", "missing"),
        ("weights.bin", "changed"),
    ]


def test_a_problem_can_be_read(bundle: Path) -> None:
    (bundle / "graph/a.onnx").write_text("a")
    assert [str(problem) for problem in verify(bundle)] == [
        "graph/a.onnx: truncated (1 bytes found, 3 expected)"
    ]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_plain_file_is_named(bundle: Path, kind: str) -> None:
    path = bundle / "report.json"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("graph/a.onnx")
    problem = verify(bundle)[0]
    assert (problem.path, problem.damage, problem.detail) == (
        "report.json",
        "changed",
        "no longer a plain file",
    )


@pytest.mark.parametrize("where", ["file", "folder above"])
def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path, where: str) -> None:
    inner = bundle / ("graph/a.onnx" if where == "file" else "graph")
    inner.rename(tmp_path / "elsewhere")
    inner.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"graph/a\.onnx leads out of the bundle"):
        verify(bundle)


def test_a_link_that_was_added_is_named_and_not_followed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "more").symlink_to(tmp_path)
    assert [(problem.path, problem.damage) for problem in verify(bundle)] == [("more", "added")]


def test_a_link_that_goes_in_circles_is_refused(bundle: Path) -> None:
    (bundle / "report.json").unlink()
    (bundle / "report.json").symlink_to("report.json")
    with pytest.raises(BundleError, match="leads out"):
        verify(bundle)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "graph/../../x"])
def test_no_path_leads_out(bundle: Path, path: str) -> None:
    with pytest.raises(BundleError, match="leads out"):
        locate(bundle, path)
    assert locate(bundle, "graph/a.onnx") == bundle / "graph/a.onnx"


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "graph/../../x", "./x", "a//b", "", ".", "a\\b", "a\0b", "a\nb",
     "manifest.json"],
)  # fmt: skip
def test_a_hostile_path_is_refused_though_the_seal_is_right(bundle: Path, path: str) -> None:
    values = _values(bundle)
    values["stages"]["report"]["files"] = {path: {"sha256": "0" * 64, "size_bytes": 1}}
    (bundle / "manifest.json").write_text(seal(values))
    with pytest.raises(BundleError, match=r"damaged:\n  stages\.report\.files"):
        verify(bundle)


def test_a_hostile_path_is_the_only_reason(bundle: Path) -> None:
    values = _values(bundle)
    values["stages"]["report"]["files"] = {"none": {"sha256": "0" * 64, "size_bytes": 1}}
    (bundle / "manifest.json").write_text(seal(values))
    assert [problem.path for problem in verify(bundle)] == ["none", "report.json"]


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, "5", None, True, 5.0, [5]])
def test_a_bundle_of_another_version_is_refused(bundle: Path, version: object) -> None:
    values = _values(bundle) | {"format_version": version}
    (bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match="writes version 5") as caught:
        read_manifest(bundle)
    assert f"version {version!r}" in str(caught.value)
    assert "build it again" in str(caught.value.hint)


def test_an_edited_manifest_is_refused(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    assert text.count('"max_frames": 16') == 1
    (bundle / "manifest.json").write_text(text.replace('"max_frames": 16', '"max_frames": 64'))
    with pytest.raises(BundleError, match="changed after it was written"):
        verify(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 7}, "target: Input should be a valid string"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"profile": {"max_frames": 0, "max_length": 1}}, "profile.max_frames"),
        ({"profile": {"max_frames": "16", "max_length": 1}}, "profile.max_frames"),
        ({"checkpoint_digest": "0"}, "checkpoint_digest"),
        ({"custom_nodes": {"decoder": {"TcDualRope": 3}}}, "are not those of the stages"),
        ({"engine": {"backend": "toy", "state": "pending"}}, "next_step"),
        ({"engine": {"backend": "toy", "state": "imagined"}}, "engine.state"),
    ],
)
def test_wrong_fields_are_named(bundle: Path, change: dict[str, Any], message: str) -> None:
    (bundle / "manifest.json").write_text(seal(_values(bundle) | change))
    with pytest.raises(BundleError, match="damaged") as caught:
        read_manifest(bundle)
    assert message in str(caught.value)


def test_one_file_of_two_stages_is_refused(bundle: Path) -> None:
    values = _values(bundle)
    values["stages"]["graph"]["files"]["report.json"] = {"sha256": "0" * 64, "size_bytes": 1}
    (bundle / "manifest.json").write_text(seal(values))
    with pytest.raises(BundleError, match=r"two stages at once: report\.json"):
        read_manifest(bundle)


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "folder", "pipe", "link"])
def test_what_is_no_bundle_is_refused(bundle: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other"
    manifest = path / "manifest.json"
    if kind == "file":
        path.write_text("")
    elif kind != "missing":
        path.mkdir()
    if kind == "folder":
        manifest.mkdir()
    elif kind == "pipe":
        os.mkfifo(manifest)
    elif kind == "link":
        manifest.symlink_to(bundle / "manifest.json")
    with pytest.raises(BundleError, match=r"not a bundle|does not exist|not a folder"):
        verify(path)


@pytest.mark.parametrize("what", ["a folder", "a file", "the manifest"])
def test_what_cannot_be_read_is_named(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Simulated, since nothing is unreadable to root."""

    def refuse(path: object, *args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    if what == "a folder":
        monkeypatch.setattr(os, "scandir", refuse)
    elif what == "a file":
        monkeypatch.setattr(Digests, "sha256", lambda self, path, on_read: refuse(path))
    else:
        monkeypatch.setattr(Path, "read_bytes", refuse)
    if what == "a file":
        assert {problem.detail for problem in verify(bundle)} == {
            "cannot be read: Permission denied"
        }
    else:
        with pytest.raises(BundleError, match="cannot be read: Permission denied"):
            verify(bundle)


def test_inspect_is_plain_and_complete(bundle: Path) -> None:
    shown = json.loads(json.dumps(inspect(bundle)))
    assert shown["target"] == SPEC.target
    assert shown["profile"] == {"max_frames": 16, "max_length": 4096}
    assert shown["engine"] == {"backend": "toy", "state": "built", "next_step": None}
    assert shown["custom_nodes"] == {"decoder": {"TcDualRope": 2}}
    assert [stage["name"] for stage in shown["stages"]] == ["graph", "weights", "engine", "report"]
    sizes = {path: (bundle / path).stat().st_size for path in shown["files"]}
    assert shown["files"] == sizes
    assert len(sizes) == 5
    assert shown["size_bytes"] == sum(sizes.values())
    assert shown["seconds"] == pytest.approx(sum(stage["seconds"] for stage in shown["stages"]))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
_quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _only_bundle_errors(bundle: Path) -> None:
    try:
        verify(bundle)
        inspect(bundle)
    except BundleError:
        pass


@_quick
@given(data=st.binary() | _json.map(lambda value: json.dumps(value).encode()))
@example(data=b"[" * 100_000)
@example(data=b'{"format": "tc-export bundle", "format_version": 5, "x": ' + b"9" * 5000 + b"}")
@example(data=b'{"format": "tc-export bundle", "format_version": 5, "x": NaN}')
@example(data=b'{"format": "tc-export bundle", "format_version": 5, "x": "\\ud800"}')
@example(data=b'{"format": "tc-export bundle", "format_version": ' + b"9" * 5000 + b"}")
@example(data=b'{"format": ' + b"9" * 5000 + b"}")
def test_random_manifests_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError):
        verify(tmp_path)


@_quick
@given(data=st.data())
def test_a_manifest_with_anything_in_any_place_is_refused_or_read(
    bundle: Path, data: st.DataObject
) -> None:
    """Any one value of a good manifest replaced by any other, with a true seal."""
    original = (bundle / "manifest.json").read_text()
    values = json.loads(original)
    place = values
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not (isinstance(place[key], dict) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    if data.draw(st.booleans()):
        place[data.draw(st.text())] = place.pop(key)
    else:
        place[key] = data.draw(_json)
    (bundle / "manifest.json").write_text(seal(values))
    try:
        _only_bundle_errors(bundle)
    finally:
        (bundle / "manifest.json").write_text(original)
