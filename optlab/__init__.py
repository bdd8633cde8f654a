"""optlab: optimizers and learning-rate schedules for JAX, as pure Optax chains.

kernels      array -> array
schedules    step -> value
laws         (schedule, constants) -> predicted loss
estimators   (loss, params, key) -> tree shaped like the parameters
aggregation  trees of stacked workers -> tree, and what workers send
probes       instruments that measure a run and never change it
solvers      (objective, state) -> state
optimizers   hyperparameters -> GradientTransformation
wrappers     GradientTransformation -> GradientTransformation
controllers  observations -> decision, for the loop on the host
sharding     (kernel, mesh) -> the same kernel on the mesh
inspection   state -> report
trees        paths, matrix views and stacks of parameter trees
links        small chain links that optimizers share
catalog      one row for each algorithm
testing      the conformance suite
"""

from optlab import aggregation as aggregation
from optlab import catalog as catalog
from optlab import controllers as controllers
from optlab import estimators as estimators
from optlab import inspection as inspection
from optlab import kernels as kernels
from optlab import laws as laws
from optlab import links as links
from optlab import optimizers as optimizers
from optlab import probes as probes
from optlab import schedules as schedules
from optlab import sharding as sharding
from optlab import solvers as solvers
from optlab import trees as trees
from optlab import wrappers as wrappers

__version__ = "0.1.0"
