"""Array -> array: matrix functions, batched over leading axes.

A kernel maps (..., m, n) to (..., m, n). It sees no mesh, tree, name, step or rate.
"""

from optlab.kernels._blocks import merge_blocks as merge_blocks
from optlab.kernels._blocks import split_blocks as split_blocks
from optlab.kernels._dual_norm import by_dual_norm as by_dual_norm
from optlab.kernels._eigenbasis import eigenbasis as eigenbasis
from optlab.kernels._eigenbasis import refresh_eigenbasis as refresh_eigenbasis
from optlab.kernels._inverses import INVERSE_METHODS as INVERSE_METHODS
from optlab.kernels._inverses import damped_inverse as damped_inverse
from optlab.kernels._inverses import newton_schulz_inverse as newton_schulz_inverse
from optlab.kernels._kronecker import axis_product as axis_product
from optlab.kernels._kronecker import kronecker_apply as kronecker_apply
from optlab.kernels._krylov import lanczos as lanczos
from optlab.kernels._krylov import power_iteration as power_iteration
from optlab.kernels._krylov import quadrature as quadrature
from optlab.kernels._largest_slices import largest_slices as largest_slices
from optlab.kernels._low_rank import lift as lift
from optlab.kernels._low_rank import limit_growth as limit_growth
from optlab.kernels._low_rank import project as project
from optlab.kernels._low_rank import range_basis as range_basis
from optlab.kernels._low_rank import singular_basis as singular_basis
from optlab.kernels._matrix_roots import inverse_root as inverse_root
from optlab.kernels._matrix_roots import newton_inverse_root as newton_inverse_root
from optlab.kernels._newton_schulz import newton_schulz as newton_schulz
from optlab.kernels._polar_coefficients import PolarTable as PolarTable
from optlab.kernels._polar_coefficients import minimax_rows as minimax_rows
from optlab.kernels._polar_coefficients import polar_express_rows as polar_express_rows
from optlab.kernels._polar_coefficients import polar_table as polar_table
from optlab.kernels._polar_plan import PolarPlan as PolarPlan
from optlab.kernels._polar_plan import polar_plan as polar_plan
from optlab.kernels._rank_one import RANK_ONE_RULES as RANK_ONE_RULES
from optlab.kernels._rank_one import rank_one_inverse as rank_one_inverse
from optlab.kernels._retractions import MANIFOLDS as MANIFOLDS
from optlab.kernels._retractions import RETRACTIONS as RETRACTIONS
from optlab.kernels._retractions import orthonormalize as orthonormalize
from optlab.kernels._retractions import retract as retract
from optlab.kernels._retractions import tangent_part as tangent_part
from optlab.kernels._whitening import WHITENING_GEOMETRIES as WHITENING_GEOMETRIES
from optlab.kernels._whitening import kronecker_solve as kronecker_solve
from optlab.kernels._whitening import row_norm_bound as row_norm_bound
from optlab.kernels._whitening import subspace_norm_bound as subspace_norm_bound
from optlab.kernels._whitening import whitening_step as whitening_step
from optlab.kernels._window_solve import (
    window_inverse_diagonal as window_inverse_diagonal,
)
from optlab.kernels._window_solve import window_solve as window_solve
from optlab.kernels._window_solve import window_weights as window_weights
