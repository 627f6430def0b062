"""Trained checkpoint to compact ONNX: convert, inspect, verify."""
