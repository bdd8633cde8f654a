"""Grids of rates that grow until the best rate lies inside."""

from collections.abc import Callable, Iterable


def tune(
    losses_at: Callable[[list[float]], dict[float, float]], rates: Iterable[float]
) -> dict[float, float]:
    """Tries rates, then half the least or twice the largest while that is the best.

    Args:
      losses_at: From rates to the loss at each; infinite where a run diverged.
      rates: The first ones, in factors of two.

    Returns:
      The loss at every rate that was tried.
    """
    losses: dict[float, float] = {}
    wanted = list(rates)
    while wanted:
        losses |= losses_at(wanted)
        best, known = min(losses, key=losses.__getitem__), sorted(losses)
        wanted = [known[0] / 2] if best == known[0] else []
        wanted += [known[-1] * 2] if best == known[-1] else []
    return losses
