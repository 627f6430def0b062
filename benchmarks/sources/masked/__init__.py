"""The masked forward of each format, written from the original's description and apart from the readers."""
