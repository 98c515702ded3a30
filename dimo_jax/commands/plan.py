"""Compiles a run's real program for a slice, and says whether it fits."""

import json

from absl.flags import FlagValues

from dimo_jax.common import files
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.config import validation
from dimo_jax.parallel import sharding
from dimo_jax.profiling import plans, topologies
from dimo_jax.runs import training_sets


def run(flags: FlagValues) -> None:
    """Print the plan, and write it where --output says.

    Args:
        flags: those of dimo_jax.plan.

    Raises:
        InputError: the config or the topology cannot be used, or the run does not fit.
    """
    if flags.output:
        files.check_writable(flags.output)
    config = flags.config.to_dict()
    validation.validate(config, starts=False)
    config = training_sets.resolved(config)
    found, device = topologies.find(flags.topology, flags.num_slices)
    layout = sharding.layout(config["mesh"], found)
    with Progress("plan") as progress:
        sampling = plans.Sampling(flags.batch_size, flags.steps, flags.guidance)
        result = plans.plan(config, flags.what, layout, device, sampling, progress.note)
    result = {"topology": flags.topology, "num_slices": flags.num_slices, **result}
    if flags.output:
        files.write_file(flags.output, json.dumps(result, indent=1).encode())
    print(plans.text(result))
    if not result["fits"]:
        raise InputError(f"the run does not fit on {flags.topology}; see the verdict above")
