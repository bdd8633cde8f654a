"""GradientTransformation -> GradientTransformation."""

from optlab.wrappers._hypergradient import HypergradientState as HypergradientState
from optlab.wrappers._hypergradient import hypergradient as hypergradient
