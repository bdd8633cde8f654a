"""Rows of the methods that move along curves: signs, subspaces, spheres."""

from optlab.catalog._row import Row

ROWS: tuple[Row, ...] = ()
