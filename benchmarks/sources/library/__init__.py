"""Scripts that let a pruning library write its own files; each runs in an environment of its own."""
