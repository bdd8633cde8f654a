"""(Thing, mesh) -> the same thing, placed."""

from optlab.sharding._over_axis import OverAxis as OverAxis
from optlab.sharding._over_axis import over_axis as over_axis
from optlab.sharding._placed import placed as placed
