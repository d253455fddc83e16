"""`python -m diffkit` is the command `diffkit`."""

from .cli.main import entry

if __name__ == "__main__":
    entry()
