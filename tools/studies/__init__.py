"""The studies behind docs/results.md; tools/study.py runs them."""
