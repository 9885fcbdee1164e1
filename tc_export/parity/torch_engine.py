# SPDX-License-Identifier: Apache-2.0
"""The PyTorch model behind the engine interface, so that everything runs both alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tc_export.engine.interface import Buffer, Engine, TensorInfo
from tc_export.graph.trace import decoder_input_names, decoder_output_names
from tc_export.model.tc_llava import TcLlava

_NUMPY_TYPES: dict[torch.dtype, np.dtype[np.generic]] = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
}


class TorchBuffer(Buffer):
    """A tensor in PyTorch's memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def numpy(self) -> np.ndarray:
        """See `Buffer.numpy`."""
        return self.tensor.to(torch.float32).numpy().copy()

    def write(self, values: np.ndarray) -> None:
        """See `Buffer.write`."""
        self.tensor.copy_(torch.from_numpy(values))


class _TorchEngine(Engine):
    def __init__(self, model: TcLlava, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._model = model
        self._dtype = model.embed_tokens.weight.dtype
        # Results in a type that NumPy lacks (bfloat16) are handed out in float32, without loss.
        result: np.dtype[np.generic] = _NUMPY_TYPES.get(self._dtype, np.dtype(np.float32))
        self.backend = f"PyTorch {torch.__version__}, {str(self._dtype).removeprefix('torch.')}"
        self.inputs = {name: TensorInfo(name, result, ()) for name in inputs}
        self.outputs = {name: TensorInfo(name, result, ()) for name in outputs}
        self.native_nodes = {}
        self._bound: dict[str, TorchBuffer] = {}

    def allocate(self, name: str, shape: Sequence[int]) -> TorchBuffer:
        """See `Engine.allocate`."""
        return TorchBuffer(torch.zeros(*shape, dtype=self._dtype))

    def bind(self, name: str, buffer: Buffer) -> None:
        """See `Engine.bind`."""
        assert isinstance(buffer, TorchBuffer)
        self._bound[name] = buffer

    def _tensor(self, name: str, feeds: Mapping[str, np.ndarray]) -> torch.Tensor:
        if name in self._bound:
            return self._bound[name].tensor
        tensor = torch.from_numpy(np.ascontiguousarray(feeds[name]))
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    @staticmethod
    def _array(tensor: torch.Tensor) -> np.ndarray:
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


class TorchVisionEngine(_TorchEngine):
    """`pixel_values` -> `visual_features`."""

    def __init__(self, model: TcLlava) -> None:
        super().__init__(model, ["pixel_values"], ["visual_features"])

    @torch.inference_mode()
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Engine.run`."""
        features = self._model.vision(self._tensor("pixel_values", feeds))
        return {"visual_features": self._array(features)}


class TorchDecoderEngine(_TorchEngine):
    """The decoder graph's inputs and outputs, by the same names."""

    def __init__(self, model: TcLlava) -> None:
        config = model.config
        super().__init__(model, decoder_input_names(config), decoder_output_names(config))

    def embedding_table(self) -> np.ndarray:
        """Token embeddings [vocabulary, channels], in the model's type."""
        return self._array(self._model.embed_tokens.weight.detach())

    @torch.inference_mode()
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Engine.run`."""
        tensors = {name: self._tensor(name, feeds) for name in self.inputs}
        layers = range(self._model.config.text.num_hidden_layers)
        logits, present = self._model.decoder(
            tensors["inputs_embeds"],
            tensors["position_ids"],
            tensors["temporal_ids"],
            tensors["kv_end"],
            tensors["logits_indices"],
            [
                (tensors[f"past_key_values.{i}.key"], tensors[f"past_key_values.{i}.value"])
                for i in layers
            ],
            tensors.get("key_frame_ids"),
        )
        parts = [part for layer in present for part in layer]
        results = dict(zip(self.outputs, [logits, *parts], strict=True))
        for name, buffer in self._bound.items():
            if name in results:
                buffer.tensor.copy_(results.pop(name))
        return {name: self._array(tensor) for name, tensor in results.items()}
