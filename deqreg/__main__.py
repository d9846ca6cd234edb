"""`python -m deqreg` is the command `deqreg`."""

from deqreg.cli import command

raise SystemExit(command())
