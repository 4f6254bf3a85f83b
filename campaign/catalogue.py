"""All campaigns by name, in the order in which `all` runs them."""

from . import single_flight


def campaigns():
    runs = (
        single_flight.single_flight,
    )
    return {run.__name__.replace("_", "-"): run for run in runs}
