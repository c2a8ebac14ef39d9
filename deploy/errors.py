"""Errors that end a command with one line instead of a traceback."""

BAD_INPUT = 2
FAILED = 1


class DeployError(Exception):
    """What a user must know: one line that names the cause, and the exit code.

    Attributes:
        exit_code: BAD_INPUT if what was given cannot be used, FAILED if it was fine and did not work out.
    """

    def __init__(self, text: str, exit_code: int = FAILED) -> None:
        super().__init__(" ".join(text.split()))
        self.exit_code = exit_code

    @property
    def is_permanent(self) -> bool:
        """Trying again cannot help."""
        return self.exit_code == BAD_INPUT
