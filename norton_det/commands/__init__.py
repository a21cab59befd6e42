"""The command line. ``main`` knows the commands by name; each has two modules of one name: ``options/NAME.py`` parses,
and imports nothing that takes time; ``NAME.py`` does the work."""
