# SPDX-License-Identifier: Apache-2.0
"""Our CPU attention beside its peers: seconds, and memory.

    python benchmarks/attention_cpu.py [--json] [--length 2400 ...] [--threads 2] [--repeats 5]

Eight heads of 128, 35 tokens of text, then frames of 144 tokens that see themselves whole. Peers:

- PyTorch's scaled_dot_product_attention with a dense mask,
- ONNX Runtime's Attention with a dense mask (up to 9,600: it holds all scores of all heads),
- for decode, a stream copy of as many bytes as the cache has: what the memory can do at best.
  Its bytes are counted read and written, ours read.

Ours runs in float32 and bfloat16 through the PyTorch binding, the cache written in place. Times are
medians of runs that alternate with the peer's, so that a busy moment hits both; decode, which is
quick, is run eight times as often. Before each run there is a pause: OpenMP's and ONNX Runtime's
threads spin for tens of milliseconds after their work, and would take a core from who comes next.

`first_prefill` is the first call of a process, which has to get its memory from the system: what a
program pays that asks once. It is the median over three processes of each, in turns. Extra memory
is the growth of the peak resident size over such a call, its output included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime as ort
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn import functional as F

from tc_export.native.find import require_native_library
from tc_export.ops.native import NativeKernels

HEADS, HEAD_DIM, TEXT, FRAME = 8, 128, 35, 144
LENGTHS = (2_400, 9_600, 18_000)
LONGEST_ONNXRUNTIME = 9_600
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PAUSE_S = 0.1
PROCESSES = 3
PREFILL_PEERS = ("torch_sdpa_dense_mask", "onnxruntime_attention_dense_mask")
DECODE_PEER = "stream_copy"


@dataclass(frozen=True)
class Row:
    """One comparison; ratio is the peer's time over ours."""

    length: int
    dtype: str
    phase: str
    peer: str
    ours_s: float
    peer_s: float
    ratio: float
    ours_extra_bytes: int
    peer_extra_bytes: int


def visible_ends(length: int) -> Tensor:
    """kv_end of each row: causal text, then whole frames."""
    row = torch.arange(length)
    end_of_frame = ((row - TEXT) // FRAME + 1) * FRAME + TEXT
    return torch.where(row < TEXT, row + 1, end_of_frame.clamp(max=length)).int()


def make_ours(length: int, dtype: torch.dtype, phase: str) -> Callable[[], object]:
    """One call of our kernel; in decode, the last token over a full cache."""
    kernels = NativeKernels(require_native_library().handle)
    tokens = length if phase == "prefill" else 1
    q, k, v = (torch.randn(1, HEADS, tokens, HEAD_DIM).to(dtype) for _ in range(3))
    cache = [torch.randn(1, HEADS, length, HEAD_DIM).to(dtype) for _ in range(2)]
    kv_end = visible_ends(length)[None, -tokens:].contiguous()
    slots = torch.arange(length)[None, -tokens:].contiguous()
    scale = HEAD_DIM**-0.5
    return lambda: kernels.block_causal_attention(
        q, k, v, kv_end, slots, cache[0], cache[1], scale, in_place=True
    )


def make_peer(name: str, length: int, dtype: torch.dtype) -> Callable[[], object]:
    """One call of a peer, its mask made beforehand."""
    if name == "stream_copy":
        source = torch.randn(HEADS, length, HEAD_DIM).to(dtype)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)  # reads half of the cache's bytes and writes as many
    q, k, v = (torch.randn(1, HEADS, length, HEAD_DIM).to(dtype) for _ in range(3))
    mask = torch.arange(length) < visible_ends(length)[:, None]
    if name == "torch_sdpa_dense_mask":
        return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    session = _attention_session()
    feeds = {"q": q.numpy(), "k": k.numpy(), "v": v.numpy(), "mask": mask.numpy()}
    return lambda: session.run(None, feeds)


def _attention_session() -> ort.InferenceSession:
    shape = [1, HEADS, "S", HEAD_DIM]
    tensors = [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape) for x in "qkv"]
    tensors.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, ["S", "S"]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    node = helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"], scale=HEAD_DIM**-0.5)
    graph = helper.make_graph([node], "attention", tensors, [output])
    opsets = [helper.make_opsetid("", 23)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def alternate(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Median seconds of both, run in turns after one warm-up each, when no other thread works."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for call, into in zip((ours, peer), times, strict=True):
            stay_awake(PAUSE_S)
            start = time.perf_counter()
            call()
            if turn:
                into.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def stay_awake(seconds: float) -> None:
    """Let time pass without giving up the processor, which would be slower when it comes back."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@dataclass(frozen=True)
class FirstCall:
    """What the first call of a process takes."""

    seconds: float
    extra_bytes: float


def measure_first_call(who: str, length: int, dtype: str, phase: str) -> FirstCall:
    """Call once. This process must have made no such call before."""
    if who == "ours":
        call = make_ours(length, DTYPES[dtype], phase)
    else:
        call = make_peer(who, length, DTYPES[dtype])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at the current size
    before = peak_bytes()
    start = time.perf_counter()
    call()
    return FirstCall(time.perf_counter() - start, peak_bytes() - before)


def first_call(who: str, length: int, dtype: str, phase: str, threads: int) -> FirstCall:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--first-call-of", who, "--phase", phase]
    command += ["--dtype", dtype, "--length", str(length), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return FirstCall(**json.loads(done.stdout))


def median_call(calls: Sequence[FirstCall]) -> FirstCall:
    """The median of each figure."""
    return FirstCall(
        statistics.median(call.seconds for call in calls),
        statistics.median(call.extra_bytes for call in calls),
    )


def peak_bytes() -> int:
    """Largest resident size of this process, from the kernel's own count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM: memory is measured on Linux only")


def compare(length: int, dtype: str, phase: str, peer: str, args: argparse.Namespace) -> list[Row]:
    """Measure one comparison: a row, and for prefill one more for the first call."""
    turns = [
        [first_call(who, length, dtype, phase, args.threads) for who in ("ours", peer)]
        for _ in range(PROCESSES)
    ]
    ours, theirs = (median_call(calls) for calls in zip(*turns, strict=True))
    seconds = {f"first_{phase}": (ours.seconds, theirs.seconds)} if phase == "prefill" else {}
    seconds[phase] = alternate(
        make_ours(length, DTYPES[dtype], phase),
        make_peer(peer, length, DTYPES[dtype]),
        args.repeats * (8 if phase == "decode" else 1),
    )
    memory = (int(ours.extra_bytes), int(theirs.extra_bytes))
    return [
        Row(length, dtype, name, peer, ours_s, peer_s, peer_s / ours_s, *memory)
        for name, (ours_s, peer_s) in seconds.items()
    ]


def wanted(lengths: Sequence[int]) -> list[tuple[int, str, str, str]]:
    """The comparisons that can be made, in the order of the table."""
    pairs = [("prefill", peer) for peer in PREFILL_PEERS] + [("decode", DECODE_PEER)]
    return [
        (length, dtype, phase, peer)
        for length in lengths
        for dtype in DTYPES
        for phase, peer in pairs
        # ONNX Runtime has no bfloat16 Attention on the CPU, and needs 4 bytes for each score.
        if not peer.startswith("onnxruntime")
        or (dtype == "float32" and length <= LONGEST_ONNXRUNTIME)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--length", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first-call-of", metavar="WHO", help=argparse.SUPPRESS)
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.first_call_of:
        call = measure_first_call(args.first_call_of, args.length[0], args.dtype, args.phase)
        print(json.dumps(asdict(call)))
        return
    rows: list[Row] = []
    if not args.json:
        print(f"{'length':6} {'dtype':8} {'phase':13} {'peer':33}", end=" ")
        print("  ours s   peer s ratio  ours MB  peer MB")
    for comparison in wanted(args.length):
        found = compare(*comparison, args)
        rows += found
        if args.json:
            continue
        for row in found:
            print(
                f"{row.length:6} {row.dtype:8} {row.phase:13} {row.peer:33} {row.ours_s:8.4f} "
                f"{row.peer_s:8.4f} {row.ratio:5.2f} {row.ours_extra_bytes / 1e6:8.1f} "
                f"{row.peer_extra_bytes / 1e6:8.1f}",
                flush=True,
            )
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
