"""What a trace has, by JAX's own reader of what xprof reads."""

import jax


def recorded_steps(path, name="stage"):
    """Numbers of the steps of that name."""
    found = jax.profiler.ProfileData.from_file(str(path))
    (host,) = [plane for plane in found.planes if plane.name == "/host:CPU"]
    events = [event for line in host.lines for event in line.events if event.name == name]
    return sorted(dict(event.stats)["step_num"] for event in events)
