"""(Transformation, params, state) -> report."""

from optlab.inspection._hyperparams import hyperparams as hyperparams
from optlab.inspection._measure import Measured as Measured
from optlab.inspection._measure import measure as measure
from optlab.inspection._plan import Plan as Plan
from optlab.inspection._plan import PlannedLeaf as PlannedLeaf
from optlab.inspection._plan import plan as plan
