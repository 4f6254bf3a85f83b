"""All campaigns by name, in the order in which `all` runs them."""

from . import exhaustion, fairness, figures, floods, hit_path, hostile, kill, lifecycle, outage, single_flight, state


def campaigns():
    runs = (
        single_flight.single_flight,
        floods.capacity,
        floods.eviction,
        floods.refused_flood,
        floods.appservice_flood,
        outage.stale,
        outage.hour,
        outage.overload,
        outage.breaker,
        outage.hold,
        outage.connections,
        fairness.fairness,
        state.state,
        kill.kill,
        hostile.hostile,
        lifecycle.lifecycle,
        exhaustion.exhaustion,
        figures.figures,
        hit_path.hit_path,
        floods.growth,
    )
    return {run.__name__.replace("_", "-"): run for run in runs}
