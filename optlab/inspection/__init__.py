"""(Transformation, params, state) -> report."""

from optlab.inspection._hyperparams import hyperparams as hyperparams
