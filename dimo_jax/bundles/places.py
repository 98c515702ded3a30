"""Which folder is meant where a model's bundle is wanted: itself, a part of a run, or none yet."""

import os
import shlex

from dimo_jax.common import files, hub, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath

CONFIG_FILE, PARAMS_FILE = "config.json", "params.msgpack"
# Kind of a bundle -> where a run of dimo_jax.main leaves its own.
EXPORT_FOLDER = "export"
_OF_A_RUN = {
    "generator": EXPORT_FOLDER,
    "teacher": "teacher",
    "tokenizer": f"{EXPORT_FOLDER}/tokenizer",
    "clip": f"{EXPORT_FOLDER}/text_encoder",
}
_PUBLISHED = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".msgpack", ".npy")


def find(place: str | os.PathLike, kind: str | None = None) -> AnyPath:
    """Return the bundle that a path means: of a run's folder the part that is of the kind.

    Args:
        place: as typed; an address of the Hub is fetched.
        kind: of the bundle; None: the generator, where it is a run.

    Raises:
        InputError: it is a file or folder of published weights, which dimo_jax.convert reads; or a
            run that has no such part yet.
    """
    path = files.path(hub.local(place))
    if not path.is_dir():
        if path.is_file():
            raise InputError(f"{path} is a file, and a bundle is a folder; {_convert(path)}")
        return path
    if (path / PARAMS_FILE).is_file():
        return path
    if run_config(path):
        return _part_of_run(path, kind)
    config = _config(path)
    if "format_version" not in config and _weights_in(path):
        raise InputError(f"{path} holds published weights and is no bundle; {_convert(path)}")
    return path


def parts_of_run(run: AnyPath) -> list[AnyPath]:
    """Return the folders in a run's that others read, and its own report's."""
    names = ("teacher", "tokenizer", "text_encoder", "classifier", "checkpoints", "report")
    return [run / name for name in (EXPORT_FOLDER, *names)]


def run_config(path: AnyPath) -> dict:
    """Return the config of a run's folder; empty where the folder is something else."""
    config = _config(path)
    return config if all(isinstance(config.get(x), dict) for x in ("data", "distill")) else {}


def _config(path: AnyPath) -> dict:
    """config.json of a folder, empty where there is none that can be read."""
    try:
        return readers.json_object(path / CONFIG_FILE)
    except InputError:
        return {}


def _part_of_run(run: AnyPath, kind: str | None) -> AnyPath:
    kind = kind or "generator"
    part = _OF_A_RUN.get(kind)
    if part is None:
        raise InputError(f"{run} is a run's folder, which has no {kind}; give a {kind}'s bundle")
    # Runs of before left the text encoder beside the export.
    for place in (run / part, *([run / "text_encoder"] if kind == "clip" else [])):
        if place.is_dir():
            return place
    if kind == "teacher":
        raise InputError(
            f"{run} is a run without a teacher of its own; give the bundle that its config.json "
            "names as teacher.bundle"
        )
    raise InputError(
        f"{run} is no finished run, for it has no {part}/; run dimo_jax.main with "
        f"--workdir={shlex.quote(str(run))} to its end (with that flag sample, evaluate and "
        "export take its newest checkpoint)"
    )


def _weights_in(path: AnyPath) -> bool:
    return any(inside.suffix in _PUBLISHED for inside in path.iterdir())


def _convert(path: AnyPath) -> str:
    name = path.stem if path.is_file() else path.name
    flags = shlex.join([f"--input={path}", f"--output=bundles/{name}"])
    return f"convert it first: python -m dimo_jax.convert {flags}"
