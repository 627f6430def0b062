"""Every checkpoint format: the masked model in its own semantics against the compact ONNX that `convert` makes."""
