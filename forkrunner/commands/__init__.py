"""One file for each group of commands; `cli.py` puts them together."""
