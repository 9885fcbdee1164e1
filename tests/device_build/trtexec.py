# SPDX-License-Identifier: Apache-2.0
"""A stand-in for TensorRT's trtexec: strict about its arguments, and run by ONNX Runtime.

It knows the options by the names that `trtexec --help` gives (10.5), refuses every other one, reads
shapes as trtexec does, and refuses what the true one could not do: a profile that does not fit the
graph, a custom node without a plugin library, an input file of another size. The "engine" that it
writes names its graph. It computes with the graph's operators, and for our ops with the functions
that the exported graph beside it carries. Inputs that are not given are random, as trtexec's are.

`settings.json` beside this file: `version` (as in the banner), `fault`, and where to note calls.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

SETTINGS = json.loads((Path(sys.argv[0]).parent / "settings.json").read_text())
VERSION: int = SETTINGS["version"]
FAULT: str = SETTINGS["fault"]
ONCE = (
    "--onnx --minShapes --optShapes --maxShapes --saveEngine --loadEngine --profilingVerbosity "
    "--timingCacheFile --preview --shapes --loadInputs --iterations --warmUp --duration "
    "--exportOutput --exportLayerInfo --dynamicPlugins"
)
FLAGS = "--skipInference --stronglyTyped --verbose --help"
WITH_VALUE = set(ONCE.split())
WITHOUT = set(FLAGS.split()) - ({"--stronglyTyped"} if VERSION >= 110000 else set())
Shapes = dict[str, tuple[int, ...]]


def fail(message: str) -> NoReturn:
    print(f"[E] {message}")
    print("&&&& FAILED TensorRT.trtexec")
    sys.exit(1)


def parse(arguments: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        known = name in WITH_VALUE if equals else name in WITHOUT
        if not known or name in options:
            fail(f"Unknown option: {argument}")
        options[name] = value
    return options


def pairs(text: str) -> dict[str, str]:
    found = dict(part.rsplit(":", 1) for part in text.split(","))
    if len(found) != len(text.split(",")):
        fail(f"a name twice: {text}")
    return found


def shapes_of(text: str) -> Shapes:
    return {
        name: tuple(int(length) for length in shape.split("x"))
        for name, shape in pairs(text).items()
    }


def graph_inputs(onnx: Path) -> dict[str, tuple[int, list[int | str]]]:
    """Element type and axes of each input of the graph."""
    import onnx as library

    model = library.load(onnx, load_external_data=False)
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim],
        )
        for value in model.graph.input
    }


def check_profile(inputs: dict[str, tuple[int, list[int | str]]], profile: list[Shapes]) -> None:
    for shapes in profile:
        if set(shapes) != set(inputs):
            fail(f"shapes for {sorted(shapes)}, the network has {sorted(inputs)}")
    for name, (_, axes) in inputs.items():
        axis_by_axis = zip(*(shapes[name] for shapes in profile), strict=True)
        if not all(low <= mid <= high for low, mid, high in axis_by_axis):
            fail(f"{name}: min, opt and max are not in order")
        for shapes in profile:
            fits = len(shapes[name]) == len(axes) and all(
                isinstance(axis, str) or axis == length
                for axis, length in zip(axes, shapes[name], strict=True)
            )
            if not fits:
                fail(f"{name}: {shapes[name]} does not fit {axes}")


def build(options: dict[str, str]) -> None:
    import onnx as library

    onnx = Path(options["--onnx"])
    model = library.load(onnx, load_external_data=False)
    custom = [node for node in model.graph.node if node.domain]
    plugins = options.get("--dynamicPlugins", "")
    if model.functions:
        fail("local functions would be inlined")
    if custom and not Path(plugins).is_file():
        fail(f"Plugin not found: {custom[0].op_type}")
    if VERSION < 110000 and "--stronglyTyped" not in options:
        fail("weakly typed: every type of the graph would be ignored")
    if options.get("--preview") != "+aliasedPluginIO1003":
        fail("the plugins alias their caches, and the preview feature is off")
    if options.get("--profilingVerbosity") != "detailed" or "--skipInference" not in options:
        fail("a build without layer names, or with a benchmark")
    names = ("--minShapes", "--optShapes", "--maxShapes")
    profile = [shapes_of(options[name]) for name in names]
    check_profile(graph_inputs(onnx), profile)
    if FAULT == "build fails":
        fail("Could not find any implementation for node")
    engine = Path(options["--saveEngine"])
    if FAULT == "hangs":
        engine.write_text("half an eng")
        Path(SETTINGS["calls"]).with_name("hanging").touch()
        time.sleep(60)
    engine.write_text(json.dumps({"onnx": str(onnx.resolve()), "profile": profile}))
    Path(options["--timingCacheFile"]).write_text("measured")
    layers = [{"Name": node.name, "LayerType": node.op_type} for node in model.graph.node]
    Path(options["--exportLayerInfo"]).write_text(json.dumps({"Layers": layers}))


def infer(options: dict[str, str]) -> None:
    import numpy as np

    engine = json.loads(Path(options["--loadEngine"]).read_text())
    onnx = Path(engine["onnx"])
    inputs = graph_inputs(onnx)
    shapes = shapes_of(options["--shapes"])
    low, _, high = engine["profile"]
    check_profile(inputs, [shapes_of_json(low), shapes, shapes_of_json(high)])
    files = pairs(options["--loadInputs"])
    if not set(files) <= set(inputs):
        fail(f"inputs {sorted(files)}, the engine has {sorted(inputs)}")
    types = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16}
    random = np.random.default_rng()
    feeds = {}
    for name, (element_type, _) in inputs.items():
        dtype = np.dtype(types[element_type])
        if name in files:
            raw = Path(files[name]).read_bytes()
            if len(raw) != dtype.itemsize * math.prod(shapes[name]):
                fail(f"{name}: {len(raw)} bytes for {shapes[name]}")
            feeds[name] = np.frombuffer(raw, dtype).reshape(shapes[name])
        else:
            feeds[name] = random.uniform(-1, 1, shapes[name]).astype(dtype)
    if FAULT == "run fails":
        fail("CUDA out of memory")
    names, outputs = run(onnx, feeds)
    export(Path(options["--exportOutput"]), dict(zip(names, outputs, strict=True)))


def shapes_of_json(shapes: dict[str, list[int]]) -> Shapes:
    return {name: tuple(shape) for name, shape in shapes.items()}


def run(path: Path, feeds: dict[str, Any]) -> tuple[list[str], list[Any]]:
    import onnx
    import onnxruntime as ort

    model = onnx.load(path, load_external_data=False)
    exported = onnx.load(
        path.with_name(path.name.replace(".tensorrt.", ".")), load_external_data=False
    )
    model.functions.extend(exported.functions)
    # Their bodies are of the exporter's opset; to no operator here does the difference matter.
    del model.opset_import[:]
    model.opset_import.extend(exported.opset_import)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent)
    )
    session = ort.InferenceSession(model.SerializeToString(), options)
    return [x.name for x in session.get_outputs()], session.run(None, feeds)


def export(path: Path, outputs: dict[str, Any]) -> None:
    """As `exportJSONOutput` in TensorRT's samples/common/sampleReporting.cpp, order included: an
    unordered map's, so anything."""
    separator = "  "
    with path.open("w") as file:
        file.write("[\n")
        for name, values in reversed(outputs.items()):
            flat = values.astype("float32").flatten()
            if name in ("logits", "visual_features") and FAULT == "one wrong value":
                flat[len(flat) // 2] += 0.5
            file.write(f'{separator}{{ "name" : "{name}"\n')
            separator = ", "
            file.write(f'  , "dimensions" : "{"x".join(map(str, values.shape))}"\n')
            file.write(f'  , "values" : [ {", ".join(f"{x:g}" for x in flat)} ]\n  }}\n')
        file.write("]\n")


def main() -> None:
    options = parse(sys.argv[1:])
    with Path(SETTINGS["calls"]).open("a") as calls:
        calls.write(json.dumps(options) + "\n")
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{VERSION}] [b18] # trtexec")
    if "--help" in options:
        print("\n".join(f"  {name}  …" for name in sorted(WITH_VALUE | WITHOUT)))
        print('  flag ::= "aliasedPluginIO1003"')
    elif "--onnx" in options:
        build(options)
    else:
        infer(options)
    print("&&&& PASSED TensorRT.trtexec")


main()
