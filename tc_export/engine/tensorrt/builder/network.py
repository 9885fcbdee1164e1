# SPDX-License-Identifier: Apache-2.0
"""TensorRT's builder with one network, whichever flavour and version is there.

What differs between the builders of TensorRT 10.3 … 11.x and TensorRT-RTX stands here and nowhere
else. Networks are strongly typed: precision is the graph's own, and no flag of the builder changes
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tc_export.engine.tensorrt.bindings import LAST_ERRORS, link_parser_library, new_logger
from tc_export.engine.tensorrt.builder.progress import Phases
from tc_export.engine.tensorrt.flavours import Flavour
from tc_export.errors import InputError, UnsupportedEnvironment, UsageError

ShapeTriple = Sequence[Sequence[int]]
"""The smallest, the usual and the largest shape of an input."""


class NetworkBuilder:
    """A builder with one network, and the log of what it says."""

    def __init__(self, flavour: Flavour, trt: Any) -> None:
        """Start the builder of the module `trt`.

        Raises:
            UnsupportedEnvironment: it does not start, or its parser would not.
        """
        if flavour.needs_parser_link:
            link_parser_library()
        self.flavour = flavour
        self.name = f"{flavour.title} {trt.__version__}"
        self._trt = trt
        self.log = new_logger(trt)
        try:
            self._builder = trt.Builder(self.log)
        except (TypeError, RuntimeError) as error:  # what pybind11 makes of a null pointer
            raise self._unsupported(f"does not start: {error}") from error
        self.network = self._builder.create_network(network_flags(trt))

    def load_plugins(self, library: str) -> None:
        """Register the creators of a plugin library.

        Raises:
            UnsupportedEnvironment: TensorRT cannot load it.
        """
        if self._trt.get_plugin_registry().load_library(library) is None:
            raise self._unsupported(f"cannot load the plugin library {library}")

    def parse(self, graph: str) -> None:
        """Read an ONNX file, and the weights beside it, into the network.

        Raises:
            InputError: this version's parser does not take it.
        """
        parser = self._trt.OnnxParser(self.network, self.log)
        if not parser.parse_from_file(graph):
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            said = listed(errors[-LAST_ERRORS:] or self.log.errors)
            raise InputError(f"{self.name} cannot parse {graph}:{said}")

    def plugin_layers(self) -> dict[str, int]:
        """How many plugin layers the network has, by the name of their op."""
        trt = self._trt
        names = []
        for index in range(self.network.num_layers):
            layer = self.network.get_layer(index)
            if layer.type == trt.LayerType.PLUGIN_V3:
                # The bindings hand out base classes; this is their documented way down.
                layer.__class__ = trt.IPluginV3Layer
                core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
                if not isinstance(core, trt.IPluginV3OneCore):  # 10.3
                    core.__class__ = trt.IPluginV3OneCore
                names.append(core.plugin_name)
        return dict(sorted(Counter(names).items()))

    def configure(
        self,
        shapes: Mapping[str, ShapeTriple],
        compute_capability: int | None,
        phases: Phases,
    ) -> Any:
        """What the builder is told: shapes, target, and to say all that it did.

        Raises:
            UsageError: the shapes do not fit the network's inputs.
            UnsupportedEnvironment: this TensorRT does not build for the target.
        """
        trt = self._trt
        config = self._builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
        config.progress_monitor = new_monitor(trt, phases)
        self._check_shapes(shapes)
        profile = self._builder.create_optimization_profile()
        for name, triple in shapes.items():
            profile.set_shape(name, *(tuple(shape) for shape in triple))
        if config.add_optimization_profile(profile) < 0:
            raise UsageError(f"{self.name} refuses the profile:{listed(self.log.errors)}")
        if self.flavour.takes_target and compute_capability is not None:
            self._set_target(config, compute_capability)
        return config

    def use_timing_cache(self, config: Any, cache: bytes) -> None:
        """Start from timings of an earlier build; from none where they do not fit."""
        timings = config.create_timing_cache(cache)
        if timings is None or not config.set_timing_cache(timings, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def timings(self, config: Any) -> memoryview:
        """The timing cache after a build."""
        return memoryview(config.get_timing_cache().serialize())

    def build(self, config: Any) -> memoryview:
        """Build the engine.

        Raises:
            UnsupportedEnvironment: the builder gave up.
        """
        engine = self._builder.build_serialized_network(self.network, config)
        if engine is None:
            raise self._unsupported("could not build the engine")
        return memoryview(engine)

    def _unsupported(self, what: str) -> UnsupportedEnvironment:
        return UnsupportedEnvironment(f"{self.name} {what}{listed(self.log.errors)}")

    def _check_shapes(self, shapes: Mapping[str, ShapeTriple]) -> None:
        """See that each input has a range that its own shape allows; name all that do not."""
        inputs = [self.network.get_input(index) for index in range(self.network.num_inputs)]
        known = {tensor.name: tuple(tensor.shape) for tensor in inputs}
        wrong = [f"{name}: the graph has no such input" for name in shapes.keys() - known.keys()]
        for name, shape in known.items():
            if name not in shapes:
                wrong.append(f"{name}: no shapes are given")
            elif not fits(shape, shapes[name]):
                given = " / ".join(str(list(one)) for one in shapes[name])
                wrong.append(f"{name}: {given} does not fit {list(shape)}")
        if wrong:
            raise UsageError(
                "the profile does not fit the graph:" + listed(sorted(wrong)),
                hint=f"the graph's inputs: {', '.join(known)}",
            )

    def _set_target(self, config: Any, compute_capability: int) -> None:
        config.num_compute_capabilities = 1
        members = self._trt.ComputeCapability.__members__
        wanted = members.get(f"SM{compute_capability}")
        if wanted is None or not config.set_compute_capability(wanted, 0):
            accepted = [
                name
                for name, member in members.items()
                if name.startswith("SM") and config.set_compute_capability(member, 0)
            ]
            raise UnsupportedEnvironment(
                f"{self.name} does not build for SM{compute_capability}; "
                f"it does for {', '.join(accepted)}",
                hint="for other devices, TensorRT itself builds the engine on the device",
            )


def fits(shape: Sequence[int], triple: ShapeTriple) -> bool:
    """True where the three shapes grow, and agree with the input's shape (-1: any length)."""
    if any(len(one) != len(shape) for one in triple):
        return False
    axes = zip(shape, *triple, strict=True)
    return all(
        0 < least <= usual <= most and (length < 0 or least == most == length)
        for length, least, usual, most in axes
    )


def network_flags(trt: Any) -> int:
    """Strong typing, asked for by name: the flag's value is not the same everywhere."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def listed(lines: Iterable[str]) -> str:
    """Each line on a line of its own below a message; nothing where there is none."""
    return "".join(f"\n  {' '.join(line.split())}" for line in lines)


def new_monitor(trt: Any, phases: Phases) -> Any:
    """TensorRT's progress monitor, which hands on to `phases`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase or None, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
