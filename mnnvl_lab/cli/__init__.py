"""The commands of `python -m mnnvl_lab`, a module each: `add` says what a command takes, `run` does it.

What a command needs is imported when it runs, so that `--help` and `plan` answer at once.
"""
