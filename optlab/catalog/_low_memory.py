"""Rows of the optimizers that keep little state."""

from optlab.catalog._row import Row

ROWS: tuple[Row, ...] = ()
