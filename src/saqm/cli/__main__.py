"""`python -m saqm.cli`, which is `saqm`."""

from saqm.cli import main

main()
