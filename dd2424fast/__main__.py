"""`python -m dd2424fast` is `dd2424fast`."""

from .cli import main

main(prog_name="dd2424fast")
