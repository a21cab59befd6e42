"""The one exception for input that the user can mend."""


class InputError(ValueError):
    """Bad input: the message is one line that says what was expected, what came, and the mend.

    Library code raises it for files, fields and arguments that came from outside; the tools print it
    after ``error:`` and exit with status 2. A programming error is never an ``InputError``.
    """
