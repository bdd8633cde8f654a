"""Array -> array: matrix functions, batched over leading axes.

A kernel maps (..., m, n) to (..., m, n). It sees no mesh, tree, name, step or rate.
"""

from optlab.kernels._newton_schulz import newton_schulz as newton_schulz
from optlab.kernels._newton_schulz import polar_table as polar_table
from optlab.kernels._polar_coefficients import PolarTable as PolarTable
from optlab.kernels._polar_coefficients import polar_express_rows as polar_express_rows
