# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: help, version, errors for people and programs, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tc_export import __version__
from tests.cli.running import run
from tests.repository import DEMO_CHECKPOINT

VERBS = (
    "build",
    "init",
    "finish",
    "ask",
    "parity",
    "inspect",
    "verify",
    "targets",
    "plan",
    "doctor",
)
Capture = pytest.CaptureFixture[str]


def test_every_verb_has_help_with_an_example(capsys: Capture) -> None:
    code, listed, _ = run(capsys, "--help")
    assert code == 0
    for verb in VERBS:
        assert verb in listed
        code, text, _ = run(capsys, verb, "--help")
        assert code == 0
        assert f"tc-export {verb}" in " ".join(text.split())


@pytest.mark.parametrize("verb", [*((verb,) for verb in VERBS), ("plugins", "build")])
def test_help_has_an_example(verb: tuple[str, ...], capsys: Capture) -> None:
    code, out, _ = run(capsys, *verb, "--help")
    assert code == 0
    words = " ".join(out.split())
    assert any(f"{begin}: tc-export {' '.join(verb)}" in words for begin in ("Example", "Examples"))


def test_version(capsys: Capture) -> None:
    assert run(capsys, "--version") == (0, f"tc-export {__version__}\n", "")


def test_no_verb_prints_the_help(capsys: Capture) -> None:
    code, out, err = run(capsys)
    assert code == 2
    assert "Usage: tc-export" in out + err
    assert "error" not in err


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["nosuch"], "no such command 'nosuch'", "see tc-export --help"),
        (["build"], "no checkpoint is given", "--checkpoint DIR names"),
        (["build", "--config", "none.toml"], "none.toml cannot be read", "tc-export init writes"),
        (["build", "--gamma", "inf"], "command line has wrong settings: temporal.gamma", "--help"),
        (["build", "--nosuch"], "no such option: --nosuch", "see tc-export build --help"),
        (["plan", "--checkpoint", "x", "--frames", "0"], "--frames", "see tc-export plan --help"),
        (["plugins", "build"], "missing option '--target'", "see tc-export plugins build --help"),
    ],
)
def test_wrong_words(words: list[str], message: str, hint: str, capsys: Capture) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert hint in err


HEAVY = ("torch", "onnx", "onnxruntime", "transformers", "polygraphy", "matplotlib")
"""What takes a good part of a second to import; PyTorch alone takes one or two."""

REPORT_LOADED = f"""
import sys
from tc_export.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    loaded = [name for name in {HEAVY} if name in sys.modules]
    print(ended.code or 0, *loaded, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("targets", 0),
        ("nosuch", 2),
        ("build --help", 0),
        ("build --nosuch", 2),
        ("build --checkpoint DEMO --output o --target nosuch", 2),
        ("build --checkpoint DEMO --output o --target none.toml", 3),
        ("build --checkpoint DEMO --output o --precision fp8", 2),
        ("build --checkpoint DEMO --output o --release 9", 2),
        ("build --checkpoint DEMO --output o --max-frames 9999", 2),
        ("build --checkpoint DEMO --output o --gamma 7", 2),
        ("build --checkpoint DEMO --output o --pooling-stride 1", 2),
        ("build --checkpoint DEMO --output o --vision-features full", 2),
        ("build --checkpoint none --output o", 3),
        ("build", 2),
        ("build --config none.toml", 2),
        ("build --target nosuch", 2),
        ("init --nosuch", 2),
        ("plan", 2),
        ("parity none", 3),
        ("parity none --tasks", 3),
        ("parity none --items 3", 2),
        ("finish none", 3),
        ("inspect none", 3),
        ("verify none", 3),
        ("plan --checkpoint DEMO --target nosuch", 2),
        ("plan --checkpoint DEMO --target orin --precision fp8", 2),
        ("plan --checkpoint none", 3),
        ("doctor --target nosuch", 2),
        ("plugins build --target nosuch", 2),
    ],
)
def test_help_and_refusals_load_nothing_heavy(command: str, code: int, tmp_path: Path) -> None:
    words = command.replace("DEMO", str(DEMO_CHECKPOINT)).split()
    ended = subprocess.run(
        [sys.executable, "-c", REPORT_LOADED, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr.splitlines()[-1] == str(code), ended.stderr
    assert not list(tmp_path.iterdir())


def test_parity_is_refused_before_pytorch_is_loaded(bundle: Path) -> None:
    """The bundle is there, and what it was built from is not; or it is too small for the clips."""
    for words in (["--checkpoint", "none"], ["--tasks"]):
        ended = subprocess.run(
            [sys.executable, "-c", REPORT_LOADED, "parity", str(bundle), *words],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ended.stderr.splitlines()[-1] in ("2", "3"), ended.stderr


@pytest.mark.parametrize(
    ("command", "kind", "code"),
    [
        ("ask none --video v --question q", "BundleError", 3),
        ("ask none", "UsageError", 2),
        ("parity none", "BundleError", 3),
        ("parity none --tasks", "BundleError", 3),
        ("parity none --threads 0", "UsageError", 2),
        ("inspect none", "BundleError", 3),
        ("inspect", "UsageError", 2),
        ("verify none", "BundleError", 3),
        ("verify a b", "UsageError", 2),
        ("targets nosuch", "UsageError", 2),
        ("plan --checkpoint none", "CheckpointError", 3),
        ("plan", "UsageError", 2),
        ("doctor --target nosuch", "UsageError", 2),
        ("doctor --target none.toml", "InputError", 3),
        ("plugins build --target nosuch", "UsageError", 2),
        ("plugins build --target cpu", "UsageError", 2),
    ],
)
def test_an_error_is_one_document_with_json(
    command: str, kind: str, code: int, capsys: Capture
) -> None:
    found, out, err = run(capsys, *command.split(), "--json")
    (error,) = json.loads(out).values()
    assert error.keys() == {"type", "message", "hint", "exit_code"}
    assert (error["type"], error["exit_code"], found) == (kind, code, code)
    assert " ".join(error["message"].split()) in err
    assert run(capsys, *command.split())[1] == ""


def test_a_bug_is_one_document_with_json(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def broken() -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr("tc_export.targets.list_targets", broken)
    code, out, err = run(capsys, "targets", "--json")
    assert code == 5
    assert json.loads(out)["error"]["type"] == "InternalError"
    assert "internal error: ZeroDivisionError: odd" in err
    assert "--debug" in err


@pytest.mark.parametrize("verb", ["inspect", "verify", "parity"])
def test_hostile_names_in_errors(verb: str, tmp_path: Path, capsys: Capture) -> None:
    name = tmp_path / "[red]:cat:\x1b[31m\u202e"
    code, out, err = run(capsys, verb, name)
    assert (code, out) == (3, "")
    assert "[red]:cat:\\x1b[31m\\u202e" in err
    assert not {"\x1b", "\u202e"} & set(err)
    code, out, _ = run(capsys, verb, name, "--json")
    assert str(name) in json.loads(out)["error"]["message"]


def test_hostile_words_in_usage_errors(capsys: Capture) -> None:
    code, _, err = run(capsys, "[red]\x1b[2J")
    assert code == 2
    assert "'[red]\\x1b[2J'" in err


def test_the_shell_completes_targets() -> None:
    environment = {
        **os.environ,
        "_TC_EXPORT_COMPLETE": "complete_bash",
        "COMP_WORDS": "tc-export build --target orin-n",
        "COMP_CWORD": "3",
    }
    completed = subprocess.run(
        [sys.executable, "-m", "tc_export"], env=environment, capture_output=True, text=True
    )
    assert completed.stdout.split() == ["orin-nano-4gb", "orin-nano", "orin-nx-8gb", "orin-nx"]
