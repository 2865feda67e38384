"""`python -m pipeline.cli`: the same as the command `sockscope`."""

from pipeline.cli.entry import main

main()
