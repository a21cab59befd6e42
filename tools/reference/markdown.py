"""Text from elsewhere in a page of Markdown."""


def plain(text: str) -> str:
    """What Markdown would take for emphasis or a tag stays what it is."""
    return text.replace("*", "\\*").replace("<", "&lt;")


def cell(text: str) -> str:
    """The same in one line, for a table."""
    return plain(" ".join(text.split())).replace("|", "\\|")
