"""Rows of the optimizers of Kronecker factors."""

from optlab.catalog._row import Row

ROWS: tuple[Row, ...] = ()
