"""What every package uses: errors, files, threads, seeds, timing, tables. Knows nothing of networks."""
