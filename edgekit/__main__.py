"""`python -m edgekit` is `edgekit`."""

from edgekit.cli.main import main

main()
