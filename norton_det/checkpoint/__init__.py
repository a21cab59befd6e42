"""Files of weights: reading every origin without running anything, writing files that describe themselves."""
