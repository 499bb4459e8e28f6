"""A bundle's networks as graphs with named inputs: what every engine makes of them in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from engines.spec import graph_spec
from telme.config import Part, TelmeConfig
from telme.models import EncoderOutput

# Inputs by name, in the order of the graph's, to outputs in order.
Run = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


class GraphNetworks:
    """The networks as `telme.predictor.NetworkPredictor` asks for them.

    Args:
        backend: What runs them.
        most_rows: Most utterances in one call.
        config: Gives the interfaces.
        runs: What runs each part; it gets inputs of the right types and shapes only.
    """

    def __init__(self, backend: str, most_rows: int, config: TelmeConfig, runs: Mapping[Part, Run]) -> None:
        self.backend = backend
        self.most_rows = most_rows
        self._specs = {part: graph_spec(config, part) for part in runs}
        self._runs = runs

    def text(self, ids: Tensor, mask: Tensor) -> EncoderOutput:
        """See telme.predictor.Networks."""
        return EncoderOutput(*self._answer("text", {"input_ids": ids, "attention_mask": mask}))

    def audio(self, values: Tensor) -> Tensor:
        """See telme.predictor.Networks."""
        return self._answer("audio", {"input_values": values})[0]

    def video(self, pixels: Tensor) -> Tensor:
        """See telme.predictor.Networks."""
        return self._answer("video", {"pixel_values": pixels})[0]

    def fusion(self, text: Tensor, audio: Tensor, video: Tensor, present: Tensor) -> Tensor:
        """See telme.predictor.Networks."""
        return self._answer("fusion", {"text": text, "audio": audio, "video": video, "present": present})[0]

    def _answer(self, part: Part, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        self._specs[part].sizes(inputs)
        return self._runs[part](inputs)
