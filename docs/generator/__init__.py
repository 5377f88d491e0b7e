"""The generator of the pages in docs/: `make docs`, or `python -m docs.generator`."""
