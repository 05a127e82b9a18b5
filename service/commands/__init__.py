"""The commands, a module each: `run(arguments)` -> the exit status. A module is imported when its command is given."""


class StartError(Exception):
    """The command cannot begin; its text says why in a line."""
