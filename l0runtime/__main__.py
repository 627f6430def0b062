"""`python -m l0runtime` is the `l0runtime` command."""

from l0runtime.cli import main

if __name__ == "__main__":
    main()
