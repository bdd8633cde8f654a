"""(Thing, mesh) -> the same thing, placed."""

from optlab.sharding._along_axis import AlongAxis as AlongAxis
from optlab.sharding._along_axis import along_axis as along_axis
from optlab.sharding._cheapest import Choice as Choice
from optlab.sharding._cheapest import Hardware as Hardware
from optlab.sharding._cheapest import Way as Way
from optlab.sharding._cheapest import cheapest as cheapest
from optlab.sharding._collectives import Collectives as Collectives
from optlab.sharding._collectives import assert_collectives as assert_collectives
from optlab.sharding._collectives import collectives as collectives
from optlab.sharding._compiled_text import Collective as Collective
from optlab.sharding._over_axis import OverAxis as OverAxis
from optlab.sharding._over_axis import over_axis as over_axis
from optlab.sharding._placed import placed as placed
from optlab.sharding._spread import Spread as Spread
from optlab.sharding._spread import spread as spread
from optlab.sharding._state import Policy as Policy
from optlab.sharding._state import explain_state as explain_state
from optlab.sharding._state import init_sharded as init_sharded
from optlab.sharding._state import state_shardings as state_shardings
from optlab.sharding._stored import stored as stored
