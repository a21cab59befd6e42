"""What each command is told: its description, examples and options; ``check`` refuses what is wrong by itself."""
