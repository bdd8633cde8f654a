"""Step -> value: learning-rate schedules built from phases and `shapes`.

The step is the number of updates already applied: the first update uses step 0.
"""

from optlab.schedules import shapes as shapes
from optlab.schedules._batch_size import adam_for_batch_size as adam_for_batch_size
from optlab.schedules._batch_size import curvature_of_batch as curvature_of_batch
from optlab.schedules._batch_size import for_batch_size as for_batch_size
from optlab.schedules._constant import constant as constant
from optlab.schedules._cosine import cosine as cosine
from optlab.schedules._cosine_power import cosine_power as cosine_power
from optlab.schedules._cycles import cycles as cycles
from optlab.schedules._describe import Description as Description
from optlab.schedules._describe import describe as describe
from optlab.schedules._exponential import exponential as exponential
from optlab.schedules._in_samples import in_samples as in_samples
from optlab.schedules._infinite import infinite as infinite
from optlab.schedules._inverse_sqrt import inverse_sqrt as inverse_sqrt
from optlab.schedules._linear import linear as linear
from optlab.schedules._one_cycle import one_cycle as one_cycle
from optlab.schedules._open_wsd import open_wsd as open_wsd
from optlab.schedules._per_group import PerGroup as PerGroup
from optlab.schedules._per_group import per_group as per_group
from optlab.schedules._phases import NEVER as NEVER
from optlab.schedules._polynomial import polynomial as polynomial
from optlab.schedules._power import power as power
from optlab.schedules._refined import refined as refined
from optlab.schedules._rex import rex as rex
from optlab.schedules._sampled import sampled as sampled
from optlab.schedules._steered import Steered as Steered
from optlab.schedules._steered import steered as steered
from optlab.schedules._step_decay import step_decay as step_decay
from optlab.schedules._step_decay import thirty_sixty_ninety as thirty_sixty_ninety
from optlab.schedules._table import table as table
from optlab.schedules._uba import uba as uba
from optlab.schedules._wsd import wsd as wsd
