"""The model made fast: its networks as ONNX graphs, TensorRT plans and captured work on CUDA."""
