"""The model made fast: ONNX and TensorRT engines for TelME live here. Until they do, torch is the only backend."""
