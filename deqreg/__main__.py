"""`python -m deqreg` is the command `deqreg`."""

from deqreg.cli import main

raise SystemExit(main())
