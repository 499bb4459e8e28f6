"""Makes stream/weights/voice.onnx from the weights that the Resemblyzer wheel carries. Run by hand, once:

    pip download --no-deps resemblyzer==0.1.4
    python -m bench.make_voice_encoder Resemblyzer-0.1.4-py3-none-any.whl

Weights are kept as float16 and cast when loaded: 2.8 MB, and a cosine of 0.99999 to those of float32. The background
voice is the mean over the voices of `bench/voices.py` that are for tuning; taking 0.7 of it off brings the cosine of
two strangers from 0.6 down to 0.2, where one threshold serves real and synthetic voices alike (bench/LOG.md).

Legend: B windows, T frames of 10 ms, H hidden (256), V values of a voice (256).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.voices import SENTENCES, TUNING_VOICES, speak
from stream.voice import MEL_BANDS, WEIGHTS, VoiceEncoder

WHEEL_SHA256 = "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f"
LAYERS = 3
HIDDEN = 256
BACKGROUND_SHARE = 0.7

State = dict[str, NDArray[np.float32]]


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="Resemblyzer-0.1.4-py3-none-any.whl")
    state = read_weights(parser.parse_args().wheel)
    WEIGHTS.parent.mkdir(exist_ok=True)
    # Without a background first: the background is made of the encoder's own voices.
    save(state, np.zeros(HIDDEN, np.float32))
    encoder = VoiceEncoder()
    voices = [np.mean([encoder(speak(voice, text)) for text in SENTENCES], axis=0) for voice in TUNING_VOICES]
    save(state, (BACKGROUND_SHARE * np.mean(voices, axis=0)).astype(np.float32))
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size:,} bytes, background of {len(voices)} voices")
    return 0


def read_weights(wheel: Path) -> State:
    """The encoder's tensors, out of the pinned wheel; leaves the program when it is another one."""
    content = wheel.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != WHEEL_SHA256:
        sys.exit(f"{wheel} has SHA-256 {digest}; expected {WHEEL_SHA256}; pip download resemblyzer==0.1.4")
    packed = zipfile.ZipFile(io.BytesIO(content)).read("resemblyzer/pretrained.pt")
    checkpoint = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in checkpoint["model_state"].items()}


class Graph:
    """Nodes and weights of the graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node of one output; an LSTM's second output is `<output>_last`."""
        outputs = [output, f"{output}_last"] if kind == "LSTM" else [output]
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return output

    def half(self, name: str, values: NDArray[np.float32]) -> str:
        """Add weights as float16, cast to float32 when the graph is loaded."""
        self.weights.append(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        return self.node("Cast", [f"{name}_half"], name, to=TensorProto.FLOAT)

    def constant(self, name: str, values: NDArray[np.generic]) -> str:
        """Add weights as they are."""
        self.weights.append(numpy_helper.from_array(values, name))
        return name


def save(state: State, background: NDArray[np.float32]) -> None:
    """Write the graph: mel [B, T, 40] -> voice [V]."""
    graph = Graph()
    zero, one = graph.constant("zero", np.array([0])), graph.constant("one", np.array([1]))
    x = graph.node("Transpose", ["mel"], "x0", perm=[1, 0, 2])  # [T, B, 40]
    for layer in range(LAYERS):
        names = [
            graph.half(f"input{layer}", _gates(state[f"lstm.weight_ih_l{layer}"])[None]),
            graph.half(f"recurrent{layer}", _gates(state[f"lstm.weight_hh_l{layer}"])[None]),
            graph.half(
                f"bias{layer}", np.concatenate([_gates(state[f"lstm.bias_{p}_l{layer}"]) for p in _BIASES])[None]
            ),
        ]
        y = graph.node("LSTM", [x, *names], f"y{layer}", hidden_size=HIDDEN)  # [T, 1, B, H]
        x = graph.node("Squeeze", [y, one], f"x{layer + 1}")  # [T, B, H]
    last = graph.node("Squeeze", [f"y{LAYERS - 1}_last", zero], "last")  # [B, H]
    weight, bias = graph.half("weight", state["linear.weight"]), graph.half("bias", state["linear.bias"])
    linear = graph.node("Gemm", [last, weight, bias], "linear", transB=1)  # [B, V]
    windows = _unit(graph, graph.node("Relu", [linear], "positive"), axis=1)
    mean = graph.node("ReduceMean", [windows], "mean", axes=[0], keepdims=0)  # [V]
    apart = graph.node("Sub", [_unit(graph, mean, axis=0), graph.constant("background", background)], "apart")
    _write(graph, _unit(graph, apart, axis=0))


_BIASES = ("ih", "hh")


def _gates(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """torch's order of an LSTM's gates (input, forget, cell, output) -> ONNX's (input, output, forget, cell)."""
    i, f, c, o = np.split(values, 4)
    return np.concatenate([i, o, f, c])


def _unit(graph: Graph, name: str, axis: int) -> str:
    return graph.node("LpNormalization", [name], f"{name}_unit", axis=axis, p=2)


def _write(graph: Graph, output: str) -> None:
    mel = helper.make_tensor_value_info("mel", TensorProto.FLOAT, ["B", "T", MEL_BANDS])
    voice = helper.make_tensor_value_info(output, TensorProto.FLOAT, [HIDDEN])
    body = helper.make_graph(graph.nodes, "ge2e", [mel], [voice], graph.weights)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(WEIGHTS))


if __name__ == "__main__":
    sys.exit(main())
