"""`python -m compressor` is the same as `compressor`."""

from compressor.cli import main

if __name__ == "__main__":
    main()
