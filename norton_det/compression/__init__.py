"""NORTON: pruning in the decomposed space, the fit to the dense network, whole detectors. Opens no file."""
