"""Rows of the optimizers that measure curvature."""

from optlab.catalog._row import Row

ROWS: tuple[Row, ...] = ()
