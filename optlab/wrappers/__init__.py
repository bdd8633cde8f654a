"""GradientTransformation -> GradientTransformation."""

from optlab.wrappers._cautious import cautious as cautious
from optlab.wrappers._hypergradient import HypergradientState as HypergradientState
from optlab.wrappers._hypergradient import hypergradient as hypergradient
from optlab.wrappers._mechanic import MechanicState as MechanicState
from optlab.wrappers._mechanic import mechanic as mechanic
from optlab.wrappers._project_scale_invariant import (
    project_scale_invariant as project_scale_invariant,
)
from optlab.wrappers._sharpness_aware import sharpness_aware as sharpness_aware
from optlab.wrappers._sparse_finetuning import (
    SparseFinetuningState as SparseFinetuningState,
)
from optlab.wrappers._sparse_finetuning import sara_learning_rate as sara_learning_rate
from optlab.wrappers._sparse_finetuning import sparse_finetuning as sparse_finetuning
from optlab.wrappers._state_precision import StatePrecisionState as StatePrecisionState
from optlab.wrappers._state_precision import state_precision as state_precision
from optlab.wrappers._stochastic_rounding import (
    StochasticRoundingState as StochasticRoundingState,
)
from optlab.wrappers._stochastic_rounding import (
    stochastic_rounding as stochastic_rounding,
)
