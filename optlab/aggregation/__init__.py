"""Trees of stacked workers -> tree; and what workers send: tree <-> short vector."""

from optlab.aggregation._coordinates import coordinate_median as coordinate_median
from optlab.aggregation._coordinates import trimmed_mean as trimmed_mean
from optlab.aggregation._krum import krum as krum
from optlab.aggregation._nearest import mix_nearest_neighbors as mix_nearest_neighbors
from optlab.aggregation._nearest import nearest_neighbor_mean as nearest_neighbor_mean
from optlab.aggregation._sketch import desketch as desketch
from optlab.aggregation._sketch import sketch as sketch
