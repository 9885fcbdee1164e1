# SPDX-License-Identifier: Apache-2.0
"""The PyTorch model behind the engine interface, so that everything runs both alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tc_export.contracts.graph_io import (
    INPUTS_EMBEDS,
    KEY_FRAME_IDS,
    KV_END,
    LOGITS_INDICES,
    PIXEL_VALUES,
    POSITION_IDS,
    TEMPORAL_IDS,
    VISUAL_FEATURES,
    WEIGHTS_TYPE,
    GraphTensor,
    cache_parts,
    decoder_inputs,
    decoder_outputs,
    past_name,
    vision_inputs,
    vision_outputs,
)
from tc_export.dtypes import DType
from tc_export.engine.interface import Buffer, Engine, TensorInfo
from tc_export.model.tc_llava import TcLlava


class TorchBuffer(Buffer):
    """A tensor in PyTorch's memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.nbytes = tensor.nbytes

    def numpy(self) -> np.ndarray:
        """See `Buffer.numpy`."""
        wide = self.tensor.to(torch.float32) if self.tensor.is_floating_point() else self.tensor
        return wide.numpy().copy()

    def write(self, values: np.ndarray) -> None:
        """See `Buffer.write`."""
        self.tensor.copy_(torch.from_numpy(values))

    def copy(self) -> TorchBuffer:
        """See `Buffer.copy`."""
        return TorchBuffer(self.tensor.clone())


class _TorchEngine(Engine):
    def __init__(
        self, model: TcLlava, inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]
    ) -> None:
        super().__init__()
        self._model = model
        self._dtype = model.embed_tokens.weight.dtype
        dtype = DType.from_torch(self._dtype)
        # Results in a type that NumPy lacks (bfloat16) are handed out in float32, without loss.
        result = (DType.FLOAT32 if dtype is DType.BFLOAT16 else dtype).numpy
        self.backend = f"PyTorch {torch.__version__}, {dtype}"
        self.inputs, self.outputs = (
            {
                x.name: TensorInfo(
                    x.name, result if x.dtype == WEIGHTS_TYPE else DType(x.dtype).numpy, x.axes
                )
                for x in tensors
            }
            for tensors in (inputs, outputs)
        )
        self._types = {x.name: self._type_of(x) for x in (*inputs, *outputs)}
        self.native_nodes = {}
        self._bound: dict[str, TorchBuffer] = {}

    def allocate(self, name: str, shape: Sequence[int]) -> TorchBuffer:
        """See `Engine.allocate`."""
        return TorchBuffer(torch.zeros(*shape, dtype=self._types[name]))

    def _type_of(self, tensor: GraphTensor) -> torch.dtype:
        """What a tensor of the graph is here: in float64 what is float32 elsewhere is wide too."""
        if tensor.dtype == WEIGHTS_TYPE:
            return self._dtype
        dtype = DType(tensor.dtype)
        return torch.promote_types(dtype.torch, self._dtype) if dtype.is_float else dtype.torch

    def _bind(self, name: str, buffer: Buffer) -> None:
        assert isinstance(buffer, TorchBuffer)
        self._bound[name] = buffer

    def _tensor(self, name: str, feeds: Mapping[str, np.ndarray]) -> torch.Tensor:
        if name in self._bound:
            return self._bound[name].tensor
        tensor = torch.from_numpy(np.ascontiguousarray(feeds[name]))
        return tensor.to(self._types[name]) if tensor.is_floating_point() else tensor

    @staticmethod
    def _array(tensor: torch.Tensor) -> np.ndarray:
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


class TorchVisionEngine(_TorchEngine):
    """`pixel_values` -> `visual_features`."""

    def __init__(self, model: TcLlava) -> None:
        config = model.config
        super().__init__(model, vision_inputs(config), vision_outputs(config))

    @torch.inference_mode()
    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        features = self._model.vision(self._tensor(PIXEL_VALUES, feeds))
        return {VISUAL_FEATURES: self._array(features)}


class TorchDecoderEngine(_TorchEngine):
    """The decoder graph's inputs and outputs, by the same names."""

    def __init__(self, model: TcLlava) -> None:
        config = model.config
        super().__init__(model, decoder_inputs(config), decoder_outputs(config))

    def embedding_table(self) -> np.ndarray:
        """Token embeddings [vocabulary, channels], in the model's type."""
        return self._array(self._model.embed_tokens.weight.detach())

    @torch.inference_mode()
    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {name: self._tensor(name, feeds) for name in self.inputs}
        layers = range(self._model.config.text.num_hidden_layers)
        parts = cache_parts(self._model.config)
        logits, present = self._model.decoder(
            tensors[INPUTS_EMBEDS],
            tensors[POSITION_IDS],
            tensors[TEMPORAL_IDS],
            tensors[KV_END],
            tensors[LOGITS_INDICES],
            [tuple(tensors[past_name(i, part)] for part in parts) for i in layers],
            tensors.get(KEY_FRAME_IDS),
        )
        written = [tensor for layer in present for tensor in layer]
        results = dict(zip(self.outputs, [logits, *written], strict=True))
        for name, buffer in self._bound.items():
            if name in results:
                buffer.tensor.copy_(results.pop(name))
        return {name: self._array(tensor) for name, tensor in results.items()}
