"""Ranks and widths for a budget of MACs, parameters or milliseconds."""
