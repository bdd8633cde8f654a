"""Instruments: they measure a run and never change it.

A chain link here passes every update through as it came and keeps numbers in its state.
"""

from optlab.probes._gradient_norms import (
    RecordGradientNormsState as RecordGradientNormsState,
)
from optlab.probes._gradient_norms import gradient_norms as gradient_norms
from optlab.probes._gradient_norms import record_gradient_norms as record_gradient_norms
from optlab.probes._track_law import TrackLawState as TrackLawState
from optlab.probes._track_law import track_law as track_law
