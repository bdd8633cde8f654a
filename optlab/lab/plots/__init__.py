"""Pictures of races, schedules and laws; each is one call that writes one file."""

from optlab.lab.plots._laws import fit, forecast
from optlab.lab.plots._race import race
from optlab.lab.plots._schedules import schedules
from optlab.lab.plots._style import COLOURS

__all__ = ["COLOURS", "fit", "forecast", "race", "schedules"]
