"""GradientTransformation -> GradientTransformation."""

from optlab.wrappers._cautious import cautious as cautious
from optlab.wrappers._hypergradient import HypergradientState as HypergradientState
from optlab.wrappers._hypergradient import hypergradient as hypergradient
from optlab.wrappers._project_scale_invariant import (
    project_scale_invariant as project_scale_invariant,
)
