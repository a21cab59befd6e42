"""The checks behind ``make reliability``: faults, hostile files, kills, load; one module for each promise."""
