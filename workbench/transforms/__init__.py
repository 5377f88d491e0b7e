"""Row transforms: rows to rows, before anything is tokenised. Pure functions of rows, settings and a seed."""
