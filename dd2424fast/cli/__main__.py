"""`python -m dd2424fast.cli` is `dd2424fast`."""

from . import main

main(prog_name="dd2424fast")
