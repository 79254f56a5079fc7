"""Lets `python -m modelkeep_platform` stand for the command."""

from modelkeep_platform.cli.main import main

main()
