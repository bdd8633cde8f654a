"""(Schedule, constants) -> predicted loss: laws of loss curves, fitted and applied."""

from optlab.laws._curve import Curve as Curve
