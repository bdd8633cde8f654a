"""Pictures of races, schedules and laws; each is one call that writes one file."""

from optlab.lab.plots._laws import fit, forecast, predictions
from optlab.lab.plots._race import race
from optlab.lab.plots._refined import refined
from optlab.lab.plots._schedules import families, schedules
from optlab.lab.plots._style import COLOURS, check_path

__all__ = [
    "COLOURS",
    "check_path",
    "families",
    "fit",
    "forecast",
    "predictions",
    "race",
    "refined",
    "schedules",
]
