"""What padding survivors up to widths that the hardware likes brings, and that it never costs."""
