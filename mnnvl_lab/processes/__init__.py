"""Processes and directories that this package started and created: how they are recognized, ended and removed."""
