# SPDX-License-Identifier: Apache-2.0
"""A bundle with a file that is not what the manifest says is neither asked nor judged."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tc_export import digests
from tc_export.bundle import find_damage, open_bundle, read_manifest, verify
from tc_export.errors import BundleError
from tests.bundled import copy_bundle, reseal
from tests.cli.running import run
from tests.runtime.clips import write_clip

LARGE = 50_000  # the weights of a small bundle are larger
WEIGHTS = "graphs/model.safetensors"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", 12)


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return copy_bundle(bundle, tmp_path)


@pytest.fixture
def linked(bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose weights are hard links to its checkpoint, and which knows where that is."""
    checkpoint = bundle.parent / "checkpoint" / "model.safetensors"
    own = copy_bundle(bundle, tmp_path)
    settled(shutil.copy(checkpoint, tmp_path / "model.safetensors"))
    for path in read_manifest(own).files:
        if path.endswith("model.safetensors"):
            (own / path).unlink()
            (own / path).hardlink_to(tmp_path / "model.safetensors")
    return own


@pytest.fixture
def with_settings(copied: Path) -> Path:
    """A bundle that was built from a checkpoint with preprocessing and a template."""
    sizes = {"height": 32, "width": 32}
    (copied / "preprocessor_config.json").write_text(
        json.dumps({"do_resize": True, "size": sizes, "do_center_crop": False})
    )
    (copied / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for c in m.content %}"
        "{{ c.text if c.type == 'text' else '<image>' }}{% endfor %}{% endfor %}"
    )
    return reseal(copied)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where digests of large files are kept; large is what is larger than `LARGE`."""
    monkeypatch.setattr(digests, "LARGE_BYTES", LARGE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tc-export" / "digests.json"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read whole."""
    names: list[str] = []
    original = digests._sha256

    def counting(file, on_read):  # type: ignore[no-untyped-def]
        names.append(Path(file.name).name)
        return original(file, on_read)

    monkeypatch.setattr(digests, "_sha256", counting)
    return names


def settled(path: Path | str) -> Path:
    """The file, as if it had been written a minute ago."""
    status = Path(path).stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 60 * 10**9))
    return Path(path)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail where the block takes longer: a pipe that is opened is waited for without end."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"it hangs: more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def flip(path: Path, at: float = 0.5) -> None:
    """Flip one bit, at a part of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.unlink()  # the bytes may be shared
    path.write_bytes(data)


def replace_by_link(path: Path) -> None:
    """Another name for the very same content, inside the bundle."""
    same = path.with_name(f"{path.name}.same")
    path.rename(same)
    path.symlink_to(same.name)


def replace_by_link_out_of_the_bundle(path: Path) -> None:
    elsewhere = path.parents[2] / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_its_folder(path: Path) -> None:
    """The folder above becomes a link to another one in the bundle."""
    path.parent.rename(path.parent.with_name("same"))
    path.parent.symlink_to("same")


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("tokenizer_config.json", Path.unlink, "missing"),
    ("tokenizer.json", Path.unlink, "missing"),
    ("config.json", replace_by_pipe, "no longer a plain file"),
    ("embedding.safetensors", flip, "sha256"),
    ("graphs/vision.onnx", flip, "sha256"),
    ("graphs/model.safetensors", flip, "sha256"),
    ("graphs/vision.onnx", replace_by_link, "no longer a plain file"),
    ("graphs/vision.onnx", replace_by_link_out_of_the_bundle, "leads out of the bundle"),
    ("tokenizer.json", replace_by_link, "no longer a plain file"),
    ("graphs/vision.onnx", link_its_folder, "in a folder that is a symbolic link"),
    ("graphs/vision.onnx", replace_by_pipe, "no longer a plain file"),
    ("embedding.safetensors", replace_by_pipe, "no longer a plain file"),
    ("graphs/decoder.onnx", replace_by_folder, "no longer a plain file"),
    ("graphs/decoder.onnx", grow, "expected"),
    ("graphs/decoder.onnx", lambda path: os.truncate(path, 1000), "truncated"),
    (WEIGHTS, lambda path: os.truncate(path, 1000), "truncated"),
    ("parity/report.json", flip, "sha256"),
]


@pytest.mark.parametrize(("path", "damage", "words"), DAMAGES)
def test_ask_refuses_a_damaged_bundle(
    copied: Path,
    clip: Path,
    capsys: pytest.CaptureFixture[str],
    path: str,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    damage(copied / path)
    with within(20):
        code, out, err = run(capsys, "ask", copied, "--video", clip, "--question", "What?")
    assert (code, out) == (3, "")
    assert path in err
    assert words in err


@pytest.mark.parametrize("name", ["preprocessor_config.json", "chat_template.jinja"])
def test_settings_are_not_removed(
    with_settings: Path, clip: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Without its settings a bundle would answer by others, and wrong."""
    ask = ("--video", clip, "--question", "What?", "--max-new-tokens", 1)
    assert run(capsys, "ask", with_settings, *ask)[0] == 0
    (with_settings / name).unlink()
    code, _, err = run(capsys, "ask", with_settings, *ask)
    assert code == 3
    assert f"{name}: missing" in err


@pytest.mark.parametrize("name", ["preprocessor_config.json", "chat_template.jinja"])
def test_settings_are_not_added(
    copied: Path, clip: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (copied / name).write_text("{}")
    code, _, err = run(capsys, "ask", copied, "--video", clip, "--question", "What?")
    assert code == 3
    assert f"{name}: added (answering would read it)" in err


def test_what_a_person_leaves_in_a_bundle_does_no_harm(copied: Path) -> None:
    (copied / "notes.txt").write_text("good answers")
    (copied / "parity" / "notes.json").write_text("{}")
    open_bundle(copied)


@pytest.mark.parametrize("path", ["config.json", "graphs/vision.onnx"])
@pytest.mark.parametrize("damage", [flip, replace_by_pipe])
@pytest.mark.parametrize("options", [(), ("--graphs",), ("--tasks",)])
def test_parity_refuses_it_too(
    copied: Path,
    capsys: pytest.CaptureFixture[str],
    path: str,
    damage: Callable[[Path], None],
    options: tuple[str, ...],
) -> None:
    damage(copied / path)
    with within(20):
        code, _, err = run(capsys, "parity", copied, *options)
    assert code == 3
    assert f"{path}: changed" in err


def test_finish_refuses_it_too(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace_by_pipe(copied / "tokenizer.json")
    with within(20):
        code, _, err = run(capsys, "finish", copied)
    assert code == 3
    assert "tokenizer.json: changed" in err


@pytest.mark.parametrize("large", [False, True])
def test_weights_that_were_overwritten_in_the_checkpoint(
    linked: Path,
    tmp_path: Path,
    clip: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    large: bool,
) -> None:
    """`cp other.safetensors CHECKPOINT/model.safetensors` writes into the bundle's own file."""
    if large:
        request.getfixturevalue("memory")
    source = tmp_path / "model.safetensors"
    open_bundle(linked)
    flip(Path(shutil.copy(source, tmp_path / "other.safetensors")), at=0.9)
    shutil.copyfile(tmp_path / "other.safetensors", source)
    code, _, err = run(capsys, "ask", linked, "--video", clip, "--question", "What?")
    assert code == 3
    assert "graphs/model.safetensors: changed (sha256" in err
    assert "build the bundle again, or get it again" in err


def test_a_bundle_says_which_file_of_the_checkpoint_it_shares(
    bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the place where it was built, its `config.json` names the checkpoint."""
    weights = bundle.parent / "checkpoint" / "model.safetensors"
    assert weights.samefile(bundle / WEIGHTS)
    original = weights.read_bytes()
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    changed = bytearray(original)
    changed[-100] ^= 1
    try:
        weights.write_bytes(changed)
        code, _, err = run(capsys, "ask", bundle, "--video", clip, "--question", "What?")
    finally:
        weights.write_bytes(original)
        os.utime(weights, ns=times)
    assert code == 3
    assert f"model.safetensors and {weights} are one file" in err
    assert "the checkpoint was overwritten" in err
    assert "--weights copy" in err
    open_bundle(bundle)  # the original is back


class TestLargeFiles:
    """They are read once, and then believed as long as nobody touches them."""

    def test_they_are_read_once(self, linked: Path, memory: Path, hashed: list[str]) -> None:
        open_bundle(linked)
        assert hashed.count("model.safetensors") == 1  # both graphs' are one file
        assert memory.is_file()
        del hashed[:]
        open_bundle(linked)
        assert "model.safetensors" not in hashed
        assert {"config.json", "graph_io.json"} <= set(hashed)

    def test_verify_reads_them_again_and_remembers_them(
        self, linked: Path, memory: Path, hashed: list[str]
    ) -> None:
        for _ in range(2):
            assert verify(linked) == []
        assert hashed.count("model.safetensors") == 2
        del hashed[:]
        open_bundle(linked)
        assert "model.safetensors" not in hashed

    def test_a_touched_file_is_read_again(
        self, linked: Path, memory: Path, hashed: list[str]
    ) -> None:
        open_bundle(linked)
        del hashed[:]
        os.utime(linked / WEIGHTS, (1, 1))
        open_bundle(linked)
        assert hashed.count("model.safetensors") == 1

    def test_a_changed_file_is_found(self, linked: Path, memory: Path) -> None:
        open_bundle(linked)
        flip(linked / WEIGHTS)
        settled(linked / WEIGHTS)
        for _ in range(2):
            with pytest.raises(BundleError, match=f"{WEIGHTS}: changed"):
                open_bundle(linked)

    def test_a_truncated_file_is_found(self, linked: Path, memory: Path) -> None:
        open_bundle(linked)
        status = (linked / WEIGHTS).stat()
        os.truncate(linked / WEIGHTS, status.st_size - 1)
        os.utime(linked / WEIGHTS, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(BundleError, match=f"{WEIGHTS}: truncated"):
            open_bundle(linked)

    def test_a_copy_is_read_once(
        self, linked: Path, memory: Path, hashed: list[str], tmp_path: Path
    ) -> None:
        open_bundle(linked)
        del hashed[:]
        copy = Path(shutil.copytree(linked, tmp_path / "copy"))  # keeps times, as rsync -a does
        for _ in range(2):
            open_bundle(copy)
        assert hashed.count("model.safetensors") == 1

    def test_what_was_read_of_small_files_is_not_believed(self, linked: Path, memory: Path) -> None:
        open_bundle(linked)
        small = linked / "graph_io.json"
        assert small.stat().st_size < LARGE
        status = small.stat()
        small.write_bytes(small.read_bytes().replace(b"vision", b"Vision", 1))
        os.utime(small, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(BundleError, match=r"graph_io\.json"):
            open_bundle(linked)

    @pytest.mark.parametrize("place", ["a file", "no text", "another form", "a folder"])
    def test_without_a_place_to_remember_they_are_read_each_time(
        self, linked: Path, memory: Path, hashed: list[str], place: str
    ) -> None:
        if place == "a file":
            memory.parents[1].write_text("")
        else:
            memory.parent.mkdir(parents=True)
        if place == "a folder":
            memory.mkdir()
        elif place in ("no text", "another form"):
            memory.write_bytes(b"\xff" if place == "no text" else b'{"files": [1]}')
        open_bundle(linked)
        open_bundle(linked)
        unusable = place in ("a file", "a folder")
        assert hashed.count("model.safetensors") == (2 if unusable else 1)

    def test_the_bundle_itself_stays_as_it_was(self, linked: Path, memory: Path) -> None:
        """It may be read-only, or another user's."""
        before = {path: path.stat().st_mtime_ns for path in linked.rglob("*")}
        open_bundle(linked)
        assert {path: path.stat().st_mtime_ns for path in linked.rglob("*")} == before
        assert verify(linked) == []


def test_progress_counts_every_byte(copied: Path) -> None:
    manifest = read_manifest(copied)
    told: list[tuple[int, int]] = []
    assert find_damage(copied, manifest, lambda done, total: told.append((done, total))) == []
    total = sum(file.size_bytes for file in manifest.files.values())
    assert told[-1] == (total, total)
