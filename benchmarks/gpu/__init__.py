"""Everything that only a GPU can show, in one call."""
