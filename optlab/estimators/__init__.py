"""(Loss, params, key) -> tree shaped like the parameters."""

from optlab.estimators._hessian import HessianEstimate as HessianEstimate
from optlab.estimators._hessian import (
    given_or_estimated_diagonal as given_or_estimated_diagonal,
)
from optlab.estimators._hessian import hessian_vector_product as hessian_vector_product
from optlab.estimators._hessian import hutchinson as hutchinson
from optlab.estimators._hessian import rademacher_like as rademacher_like
from optlab.estimators._logistic import LogisticEstimate as LogisticEstimate
from optlab.estimators._logistic import (
    logistic_value_and_grad as logistic_value_and_grad,
)
