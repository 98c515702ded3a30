"""Di4C's training step, against the losses and gradients of the original modules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax.convert.networks import layouts, maskgit
from dimo_jax.method.mixture import objective, step, targets
from dimo_jax.method.mixture.objective import ObjectiveSettings, Targets
from dimo_jax.method.mixture.targets import TeacherStepSettings
from tests.helpers import di4c

B, R, L, MASK = 3, 4, 16, 32
TEACHER_STEP = TeacherStepSettings("arccos", 0.05, 8, 4.5)
STUDENT, PARAMS, _ = di4c.network("student")
CASES = ("train", "train_no_data", "train_consistency_only", "train_distil_only")


def inputs(name):
    """What a case was computed from; all cases share the codes and the labels."""
    found = {**di4c.case("train"), **di4c.case(name)}
    time = found["r"]
    mask = found["mask_uniform"].reshape(B, L) < (2 / np.pi * np.arccos(time))[:, None]
    return found, jnp.asarray(mask), jnp.asarray(di4c.labels(found))


@functools.cache
def compared(name):
    """x_t, and what the student is compared with there."""
    found, mask, labels = inputs(name)
    teacher, teacher_params, _ = di4c.network("teacher")
    data = jnp.asarray(found["code"].reshape(B, L))
    x_t = jnp.where(mask, MASK, data)
    np.testing.assert_array_equal(x_t, found["x_t"].reshape(B, L))
    logits = jax.jit(teacher.apply)(teacher_params, x_t, labels)
    if name == "train":
        np.testing.assert_allclose(logits, found["teacher_logits"], rtol=0, atol=1e-5)
    x_u = jnp.asarray(found["x_u"].reshape(B * R, L))
    condition = {
        "label": jnp.repeat(labels, R),
        "mixture": jnp.asarray(found["z_at_xu"][:, 0]),
    }
    later = jax.jit(STUDENT.apply)(PARAMS, x_u, condition).reshape(B, R, L, 33)
    mean = jax.nn.softmax(later).mean(1)
    drawn = jnp.asarray(found["x0_drawn"].reshape(B, R, L))
    time = jnp.asarray(found["r"])
    return x_t, labels, Targets(time, jax.nn.log_softmax(logits), data, drawn, mean)


@pytest.mark.parametrize("name", CASES)
def test_one_step_of_the_teacher_writes_what_the_original_wrote(name):
    found, mask, _ = inputs(name)
    x_t, _, made = compared(name)
    counts = targets.teacher_count(made.time, mask, TEACHER_STEP)
    np.testing.assert_array_equal(counts, found["teacher_counts"])
    written = targets.write_tokens(
        jnp.repeat(x_t[:, None], R, 1),
        mask,
        made.time,
        made.teacher,
        jnp.asarray(found["teacher_drawn"].reshape(B, R, L)),
        jnp.asarray(found["teacher_gumbel"].reshape(B, R, L)),
        TEACHER_STEP,
    )
    np.testing.assert_array_equal(written, found["x_u"].reshape(B, R, L))


@functools.partial(jax.jit, static_argnames=("weight", "parts"))
def value_and_grad(params, x_t, labels, mixture, made, weight, parts):
    def loss(p):
        logits = step.student_logits(STUDENT.apply, p, x_t, labels, mixture, parts)
        terms = objective.terms(logits, made, ObjectiveSettings(0.05, weight, "sigmoid"))
        return terms.loss.mean(), terms

    return jax.value_and_grad(loss, has_aux=True)(params)


@functools.cache
def loss_of(name, parts=1):
    """(loss, terms), gradient."""
    x_t, labels, made = compared(name)
    weight = 0.0 if name == "train_no_data" else 0.1
    mixture = jnp.asarray(di4c.case(name)["z_at_xt"].reshape(B, R))
    return value_and_grad(PARAMS, x_t, labels, mixture, made, weight, parts)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_their_parts_are_the_originals(name):
    (value, terms), _ = loss_of(name)
    found = di4c.case(name)
    np.testing.assert_allclose(value, found["loss"], rtol=1e-6)
    rows = np.stack([terms.distillation, terms.data, terms.consistency])
    np.testing.assert_allclose(rows, found["per_item"], rtol=1e-6, atol=1e-5)
    parts = [terms.distillation, terms.data, -terms.data_correlation]
    parts += [terms.consistency, terms.consistency_correlation]
    np.testing.assert_allclose(np.asarray(parts).mean(1), found["parts"], rtol=1e-6, atol=1e-5)


def test_gradients_of_every_tensor_are_the_originals():
    _, gradient = loss_of("train")
    found = di4c.case("train")
    state = layouts.to_state(maskgit.entries(di4c.STUDENT), gradient)
    assert len(state) == 45
    for key, x in state.items():
        np.testing.assert_allclose(
            np.linalg.norm(x.astype(np.float64)), found[f"grad_norm/{key}"], rtol=1e-6, err_msg=key
        )
    total = np.sqrt(sum(np.square(x.astype(np.float64)).sum() for x in state.values()))
    np.testing.assert_allclose(total, found["grad_norm_total"], rtol=1e-6)
    for key in ("latent_projection.0.bias", "last_layer.2.bias", "latent_projection.2.bias"):
        expected = found[f"grad/{key}"]
        np.testing.assert_allclose(state[key], expected, atol=1e-5 * np.abs(expected).max())


def test_replicas_in_parts_give_the_same_gradient():
    (value, _), whole = loss_of("train")
    (other, _), parted = loss_of("train", parts=2)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(whole))
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(parted), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6 * largest)
