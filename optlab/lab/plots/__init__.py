"""Pictures of races, schedules, laws and probes; each call writes one file."""

from optlab.lab.plots._laws import fit, forecast, predictions
from optlab.lab.plots._probes import examples, noise, sharpness, spectrum
from optlab.lab.plots._race import race
from optlab.lab.plots._refined import refined
from optlab.lab.plots._schedules import families, schedules
from optlab.lab.plots._style import COLOURS, check_path

__all__ = [
    "COLOURS",
    "check_path",
    "examples",
    "families",
    "fit",
    "forecast",
    "noise",
    "predictions",
    "race",
    "refined",
    "schedules",
    "sharpness",
    "spectrum",
]
