"""From plain values to a sampler's settings, and from those to what is compiled."""

import dataclasses

import pytest

from dimo_jax import samplers
from dimo_jax.common.errors import InputError
from dimo_jax.models import Network

NETWORK = Network({"name": "halton"}, 16, 6, 3, dict, dict)


def test_the_networks_authors_have_the_default_sampler():
    found = samplers.settings_for(NETWORK, {"num_steps": 3})
    assert (samplers.name_of(found), found.num_steps) == ("halton", 3)
    assert samplers.name_of(
        samplers.settings_for(NETWORK, {"name": "maskgit", "num_steps": 3})
    ) == ("maskgit")


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"name": "chess"}, "no sampler 'chess'; there are .*halton"),
        ({"name": ["halton"]}, "no sampler"),
        ({"name": "one_step", "num_steps": 3}, "has no setting num_steps"),
        ({"num_steps": 3, "schedule": "arccos"}, "'halton' has no setting schedule; it has num_"),
        ({}, "'halton' does not take these: .*num_steps"),
        ({"num_steps": "3"}, "'halton' does not take these"),
        ({"num_steps": 0}, "num_steps is 0; it must be at least 1"),
    ],
)
def test_what_no_sampler_takes_is_explained(entry, complaint):
    with pytest.raises(InputError, match=complaint):
        samplers.settings_for(NETWORK, entry)


@pytest.mark.parametrize("name", [name for name in samplers.SAMPLERS if name != "one_step"])
def test_what_the_plan_says_is_not_compiled_in(name):
    sampler = samplers.SAMPLERS[name]
    plain = sampler.settings(num_steps=3)
    fields = {field.name for field in dataclasses.fields(sampler.settings)}
    other = dataclasses.replace(plain, **{**sampler.planned, "num_steps": 5})
    assert set(sampler.planned) <= fields
    fixed, plan = samplers.prepare(plain, 16)
    again, other_plan = samplers.prepare(other, 16)
    assert fixed == again and (plan.num_steps, other_plan.num_steps) == (3, 5)
