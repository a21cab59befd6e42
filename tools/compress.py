#!/usr/bin/env python3
"""The command `norton-det compress`; --help shows it."""

from norton_det.commands.main import tool

if __name__ == "__main__":
    tool("compress")
