"""How much of the arithmetic that compaction removes becomes time."""
