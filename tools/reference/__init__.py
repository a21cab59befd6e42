"""What tools/make_reference.py writes: a page of the commands, a page of the config keys."""
