"""TelME: emotion recognition in conversation (Yun et al., NAACL 2024, arXiv 2401.12987).

This package is the model. It knows nothing of devices, sockets or TensorRT, and importing it loads no torch:
import `telme.models`, `telme.predictor` and so on for that.
"""
