"""What a Session costs beside a raw onnxruntime session."""
