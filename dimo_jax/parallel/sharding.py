"""Where every leaf of a state lies on the mesh: rules by regular expression on its path.

The same rules place parameters, moments and averages, since a moment's path ends like that of the
parameter it belongs to.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.parallel import mesh as meshes

# (expression, "largest" | "whole" | the mesh axis of every dimension, None for none)
Rule = tuple[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and the rules of what lies where on it.

    Attributes:
        mesh: of the run.
        rules: the first whose expression is found in a leaf's path name decides. "largest": the
            largest dimension that `fsdp` divides; "whole": a copy on every device; else a tuple of
            mesh axes or None, one for each dimension.
        min_shard_elements: leaves with fewer stay whole under "largest": gathering them costs more
            than their memory.
    """

    mesh: Mesh
    rules: tuple[Rule, ...]
    min_shard_elements: int

    @property
    def batch(self) -> NamedSharding:
        """Of arrays with a leading axis of examples."""
        return meshes.batch_sharding(self.mesh)

    @property
    def stacked(self) -> NamedSharding:
        """Of several batches, one behind the other."""
        return meshes.stacked_sharding(self.mesh)

    @property
    def whole(self) -> NamedSharding:
        """Of what every device has."""
        return meshes.whole(self.mesh)

    def of(self, tree: Any) -> Any:
        """Return a tree of shardings for a tree of arrays or shapes.

        Raises:
            InputError: if a leaf is covered by no rule (all are listed), or a rule's axes do not
                fit its leaf.
        """
        uncovered = [
            name
            for name, leaf in trees.named_leaves(tree).items()
            if leaf.ndim and self._rule(name) is None
        ]
        if uncovered:
            raise InputError(
                f"config.mesh.rules say nothing of {', '.join(uncovered)}; add a rule, such as "
                "('.*', 'whole') at the end"
            )
        return trees.map_named(
            lambda name, leaf: NamedSharding(self.mesh, self._spec(name, leaf)), tree
        )

    def abstract(self, tree: Any) -> Any:
        """Return shapes, dtypes and shardings of a tree, without memory."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, self.of(tree)
        )

    def gather(self, tree: Any) -> Any:
        """Inside jit: leaves that are divided, whole on every device; their gradients divided.

        Left to itself the compiler may divide the computation like the parameters, and send
        activations of the whole batch around instead (seen for TPUs, jax 0.10).
        """
        return trees.map_named(
            lambda name, leaf: _gather(
                leaf, self.whole, NamedSharding(self.mesh, self._spec(name, leaf))
            ),
            tree,
        )

    def _rule(self, name: str) -> Any:
        return next((what for pattern, what in self.rules if re.search(pattern, name)), None)

    def _spec(self, name: str, leaf: Any) -> PartitionSpec:
        rule = "whole" if leaf.ndim == 0 else self._rule(name)
        if rule == "whole":
            return PartitionSpec()
        parts = self.mesh.shape["fsdp"]
        if rule != "largest":
            return self._given(name, leaf, rule)
        if parts == 1 or np.prod(leaf.shape) < self.min_shard_elements:
            return PartitionSpec()
        # A stack of matrices is not divided among its matrices: each is worked on as a whole.
        first = 1 if re.search(r"kernels_\d+x\d+$", name) else 0
        fits = [axis for axis in range(first, leaf.ndim) if leaf.shape[axis] % parts == 0]
        if not fits:
            return PartitionSpec()
        largest = max(fits, key=lambda axis: leaf.shape[axis])
        return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(leaf.ndim)))

    def _given(self, name: str, leaf: Any, axes: Sequence[str | None]) -> PartitionSpec:
        divides = len(axes) == leaf.ndim and all(
            axis is None or size % self.mesh.shape.get(axis, size + 1) == 0
            for axis, size in zip(axes, leaf.shape, strict=True)
        )
        if not divides:
            raise InputError(
                f"config.mesh.rules give {name} {tuple(leaf.shape)} the axes {tuple(axes)}; give "
                f"one of {', '.join(meshes.AXES)} or None for each dimension, dividing it"
            )
        return PartitionSpec(*axes)


def _gather(leaf: Any, whole: NamedSharding, divided: NamedSharding) -> Any:
    if divided.spec == whole.spec:
        return leaf

    @jax.custom_vjp
    def gather(x: Any) -> Any:
        return jax.lax.with_sharding_constraint(x, whole)

    gather.defvjp(
        lambda x: (gather(x), None),
        lambda _, ct: (jax.lax.with_sharding_constraint(ct, divided),),
    )
    return gather(leaf)


def layout(section: Mapping[str, Any], devices: meshes.Devices | None = None) -> Layout:
    """Return the layout that the config's section `mesh` describes.

    Args:
        section: data, fsdp, rules, min_shard_elements.
        devices: default all there are.

    Raises:
        InputError: if the mesh does not fit the devices.
    """
    grid = meshes.build(section["data"], section["fsdp"], devices)
    rules = tuple((pattern, what) for pattern, what in section["rules"])
    return Layout(grid, rules, section["min_shard_elements"])
