"""Step -> value: learning-rate schedules built from phases and `shapes`.

The step is the number of updates already applied: the first update uses step 0.
"""

from optlab.schedules import shapes as shapes
from optlab.schedules._constant import constant as constant
from optlab.schedules._cosine import cosine as cosine
from optlab.schedules._linear import linear as linear
from optlab.schedules._wsd import wsd as wsd
