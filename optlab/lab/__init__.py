"""The lab: workloads, training, races and the command line.

Everything here may use Flax, Orbax, Matplotlib and friends; the library does not, and
does not import the lab.
"""


class LabError(Exception):
    """A run cannot start or go on, for a reason that its one-line message states.

    The command line prints the message alone and ends with a non-zero exit code.
    """


class Diverged(LabError):
    """A loss or an update of a run is no longer finite."""
