# SPDX-License-Identifier: Apache-2.0
"""The page: whole without anything else, and safe whatever stands in the document."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tc_export.bundle import Profile
from tc_export.parity.report.page import render
from tc_export.parity.report.write import Origin, report_document, write_report

HOSTILE = '"><script>alert(1)</script><img src=http://example.com/x onerror=alert(2)>'
ORIGIN = Origin(
    checkpoint_digest="ab" * 32,
    profile=Profile(max_frames=4, max_length=100),
    graphs={"graphs/decoder.onnx": "cd" * 32},
    command=("tc-export", "parity", "a bundle", "--graphs"),
)
VOID = {"meta", "rect", "br", "img", "line", "circle"}


def tensor(**values: Any) -> dict[str, Any]:
    usual = {
        "stage": "one clip: decoder",
        "step": 0,
        "tensor": "logits",
        "engine_error": 0.5,
        "pytorch_error": 0.25,
        "tolerance": 1.0,
        "share": 0.5,
        "passed": True,
        "worst_index": [0, 3],
        "true_value": 7.0,
        "engine_value": 7.5,
    }
    return usual | values


def found(**values: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "passed": True,
        "engine": "graphs in ONNX Runtime",
        "truth": "PyTorch, float64",
        "precision": "float16",
        "reason": "twice PyTorch's own error",
        "notes": [],
        "tensors": [tensor(), tensor(step=1, share=0.7)],
        "answers": [
            {
                "scenario": "one clip",
                "engine_tokens": [1, 2],
                "true_tokens": [1, 2],
                "margin": 0.3,
                "passed": True,
            }
        ],
    }
    return usual | values


def tally(**values: Any) -> dict[str, Any]:
    usual = {
        "items": 30,
        "accuracy": {"unquantised": 1.0, "quantised": 0.9, "engine": 0.8},
        "lost": 3,
        "won": 0,
        "difference": -0.1,
        "interval": [-0.256, 0.025],
        "p_value": 0.25,
        "verdict": "undecided",
        "items_to_decide": 49,
        "passed": True,
    }
    return usual | values


def tasks(**cost: Any) -> dict[str, Any]:
    """Answers of a quantised bundle."""
    measured = {
        "measured": True,
        "passed": True,
        "recipe": "int4-awq",
        "unquantised": {"folder": "before", "checked": True},
        "most_lost": 0.02,
        "confidence": 0.95,
        "all": tally(items=61),
        "by_kind": {"order": tally(), "part": tally(items=31, verdict="worse", passed=False)},
        "margins": {"unquantised": {"smallest": 0.5}, "quantised": {"smallest": "nan"}},
        "first_token_kl": 0.01,
        "text": {"words": "On text nothing was measured."},
        "notes": ["a sentence"],
    }
    return {
        "items": 61,
        "accuracy": {"pytorch": 0.9, "engine": 0.8},
        "by_kind": {"order": {"items": 30, "pytorch": 0.9, "engine": 0.8}},
        "flips": [{"kind": "order"}],
        "answers_alike": True,
        "cost": measured | cost,
        "passed": cost.get("passed", True),
    }


class Structure(HTMLParser):
    """Every element that is opened is shut, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def structure_of(html: str) -> Structure:
    parser = Structure()
    parser.feed(html)
    assert parser.open == []
    return parser


def page(failures: tuple[str, ...] = (), **values: Any) -> str:
    return render(report_document(found(**values), ORIGIN), failures)


def test_a_page_needs_nothing_else() -> None:
    html = page()
    structure = structure_of(html)
    assert structure.addresses == []
    assert not {"script", "link", "img", "iframe"} & structure.tags
    assert not re.search(r"url\(|@import", html)
    assert "Passed" in html


def test_what_failed_comes_first() -> None:
    html = page(tuple(f"line {index}" for index in range(9)), passed=False)
    assert "Failed" in html
    assert html.index("line 0") < html.index("What was compared")
    assert "line 6" not in html
    assert "and 3 more" in html


def test_nothing_in_a_document_is_markup() -> None:
    values = {
        "engine": HOSTILE,
        "truth": HOSTILE,
        "notes": [HOSTILE],
        "tensors": [tensor(stage=HOSTILE, tensor=HOSTILE)],
        "answers": [found()["answers"][0] | {"scenario": HOSTILE}],
        "assets": [{"name": HOSTILE, "found": HOSTILE, "expected": HOSTILE, "passed": False}],
        "by_layer": {
            "layers": [HOSTILE],
            "frames": [HOSTILE],
            "isolated": [[0.5]],
            "accumulated": [[2.0]],
            "culprit": dict.fromkeys(("words", "node", "tensor", "pattern"), HOSTILE),
        },
        "tasks": tasks(
            recipe=HOSTILE,
            unquantised={"folder": HOSTILE, "checked": True},
            by_kind={HOSTILE: tally()},
            text={"words": HOSTILE},
            notes=[HOSTILE],
        ),
    }
    structure = structure_of(page((HOSTILE,), **values))
    assert structure.addresses == []
    assert not {"script", "img"} & structure.tags


def test_a_layer_that_is_wrong_is_the_verdict() -> None:
    by_layer: dict[str, Any] = {
        "layers": [0],
        "frames": ["frame 1"],
        "isolated": [[0.5]],
        "accumulated": [[0.5]],
        "culprit": None,
    }
    right = "It computes what the PyTorch model computes"
    assert right in page(by_layer=by_layer)
    culprit = dict.fromkeys(("words", "node", "tensor", "pattern"), "a norm")
    assert right not in page(by_layer=by_layer | {"culprit": culprit})


@pytest.mark.parametrize("share", ["inf", "nan", None])
def test_numbers_that_are_none(share: str | None) -> None:
    worst = tensor(share=share or 0.0, engine_error=share or 0.0, passed=False)
    by_layer = {
        "layers": [0],
        "frames": ["frame 1"],
        "isolated": [[share]],
        "accumulated": [[share]],
        "culprit": None,
    }
    html = page(tensors=[worst], by_layer=by_layer)
    structure_of(html)
    assert (": not finite<" in html) == (share is not None)


def cells(html: str, heading: str, first: str) -> list[str]:
    """The row of the table below a heading that begins so, as texts."""
    section = html[html.index(f"<h2>{heading}") :].split("</section>")[0]
    row = next(x for x in re.findall(r"<tr>(.*?)</tr>", section) if f"<td>{first}</td>" in x)
    return re.findall(r"<td[^>]*>(.*?)</td>", row)


def test_what_quantising_cost_is_shown_by_kind() -> None:
    html = page(tasks=tasks())
    structure_of(html)
    row = ["order", "30", "100.0 %", "90.0 %", "80.0 %", "3", "0", "-25.6 to +2.5", "0.25"]
    assert cells(html, "What quantising cost", "order") == [*row, "undecided"]
    assert cells(html, "What quantising cost", "part")[1] == "31"
    assert cells(html, "Answers to generated questions", "order")[1:] == [
        *("30", "90.0 %", "80.0 %", "1"),
    ]
    assert html.count('<line class="interval"') == 3  # two kinds, and all
    assert "order: -10.0, from -25.6 to +2.5" in html
    assert "✓ Passed" in html
    assert "Quantising cost no kind of question too much" in html


def test_a_cost_fails_a_page_whose_tensors_passed() -> None:
    html = page(("part: quantising cost",), tasks=tasks(passed=False))
    assert "✗ Failed" in html
    assert "It computes what the PyTorch model computes" in html
    assert "Quantising cost more than it may." in html


def test_a_cost_that_was_not_measured_is_said() -> None:
    found_tasks = tasks()
    found_tasks["cost"] = {"measured": False, "reason": HOSTILE}
    html = page(tasks=found_tasks)
    assert not {"script", "img"} & structure_of(html).tags
    assert "What quantising cost was not measured." in html
    assert "What quantising cost" not in page(tasks=found_tasks | {"cost": None})


def test_the_worst_places_are_in_order() -> None:
    shares = [0.2, 0.9, 0.4, 3.0]
    html = page(tensors=[tensor(step=index, share=x) for index, x in enumerate(shares)])
    places = re.findall(r"one clip: decoder, call (\d)", html)
    assert places == ["3", "1", "2", "0"]


def test_both_files_say_how_to_repeat_it(tmp_path: Path) -> None:
    write_report(tmp_path, found(), (), ORIGIN)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["repeat"] == "tc-export parity 'a bundle' --graphs"
    assert document["bundle"]["checkpoint"] == "ab" * 32
    assert document["versions"]["tc-export"]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "tc-export parity &#39;a bundle&#39; --graphs" in html
    assert "cd" * 32 in html
