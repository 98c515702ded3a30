"""configs/emoji.py:text, shrunk: a teacher and its text tower trained on names, then the rest."""

import contextlib
import io
import json
import shutil
import sys

import jax
import pytest

from dimo_jax import bundles, cli, main, sample
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import text_encoder
from dimo_jax.convert import __main__ as convert
from dimo_jax.data.emoji import Emoji
from dimo_jax.evaluation.metrics import frechet
from dimo_jax.training import metrics
from tests.helpers.command_line import run_command
from tests.helpers.opened_runs import opened
from tests.test_emoji import SMALL as CLASS_SMALL

# On one worker, which makes the fixtures once.
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("emoji_text")]

SMALL = [
    "--config=configs/emoji.py:text",
    *(x for x in CLASS_SMALL[1:] if ".model.depth" not in x and ".model.mlp_dim" not in x),
    "--config.model.mlp_dim=64",
    "--config.model.vocabulary=33",
    "--config.model.depth=1",
    "--config.model.single_depth=1",
    "--config.model.rope_dims=(4,2,2)",
    "--config.model.text_dim=16",
    "--config.model.pooled_dim=16",
    "--config.text_encoder.projection=16",
    "--config.text_encoder.text.width=16",
    "--config.text_encoder.text.heads=2",
    "--config.text_encoder.text.mlp_dim=16",
    "--config.text_encoder.text.vocabulary=600",
    "--config.checkpoint.save_every_steps=2",
    "--config.logging.images_every_steps=4",
    "--config.interim.every_steps=0",
]


@pytest.fixture(scope="module", autouse=True)
def few():
    """Every fortieth emoji, and no root of 3072 x 3072 matrices: both would take minutes."""
    found = Emoji.source()
    splits = {name: indices[::40] for name, indices in found.splits.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Emoji, "source", classmethod(lambda cls: found._replace(splits=splits)))
        patch.setattr(Emoji, "NUM_EXAMPLES", {name: len(x) for name, x in splits.items()})
        patch.setattr(frechet, "frechet_percent", lambda real, found: float(real.mean[0]))
        yield


def run(workdir, *more, status=0):
    """(stdout, stderr) of dimo_jax.main in this process."""
    out, err = io.StringIO(), io.StringIO()
    for name in list(main.FLAGS):
        if name.startswith("config."):  # of the command before, as config_flags defines them
            delattr(main.FLAGS, name)
        else:
            main.FLAGS[name].unparse()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main", *SMALL, *more, f"--workdir={workdir}"])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with pytest.raises(SystemExit) as stopped:
                cli.run(main.main, main.FLAGS)
    assert stopped.value.code == status, err.getvalue()
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "emoji_text"
    return workdir, *run(workdir)


def hashes(workdir):
    places = ("teacher", "teacher/text_encoder", "export", "export/text_encoder")
    return {name: bundles.load(workdir / name).params_hash for name in places}


def test_teacher_and_tower_are_trained_together_and_parted(finished):
    workdir, _, err = finished
    assert "90 prompts of the pictures of config.data.name=emoji" in err
    teacher = bundles.load(workdir / "teacher", kind="teacher")
    assert teacher.model["name"] == "meissonic" and teacher.sampler == {"name": "maskgit"}
    encoder = text_encoder.load_encoder(None, teacher.path)
    # The words are those of the names, and the tower is none at its start.
    assert [len(x) for x in encoder.tokenizer.ids(["dark skin tone"])] == [3]
    start = jax.jit(encoder.network.init)(jax.random.key(0))
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), encoder.params, jax.device_get(start))
    assert all(trees.named_leaves(moved).values())
    assert bundles.load(workdir / "export").provenance["text_encoder"] == encoder.identity
    for stage in ("pretrain", "distill"):
        assert sorted((workdir / "images" / stage).iterdir())
        last = [line for line in metrics.read(workdir) if line["stage"] == stage][-1]
        assert last["step"] == 4


def test_it_is_measured_on_the_names_of_the_test_split(finished):
    report = finished[0] / "report"
    results = json.loads((report / "results.json").read_text())
    assert [row["model"] for row in results["rows"]] == ["teacher", "generator", "test_split"]
    assert results["per_class"]["names"] == list(Emoji.CLASS_NAMES)
    test = Emoji.in_memory("test")
    for picture in results["pictures"]:
        assert set(picture.get("labels", ())) <= set(test.texts)
    assert any(picture.get("labels") for picture in results["pictures"])
    assert "of the test split's texts in turn" in (report / "report.md").read_text()


def test_it_is_sampled_by_prompts_as_any_run_with_text(finished, tmp_path, monkeypatch, capsys):
    workdir, _, _ = finished

    def draw(*flags):
        given = [*flags, "--prompt=a red heart", "--batch_size=8", f"--output={tmp_path / 'x.png'}"]
        status, _, err = run_command(sample, given, monkeypatch, capsys)
        assert status == 0, err
        return (tmp_path / "x.png").read_bytes()

    picture = draw(f"--generator={workdir}/export")
    assert picture == draw(f"--workdir={workdir}", "--step=4")
    assert draw(f"--generator={workdir}/teacher", "--steps=3") != picture
    flags = ["--to=diffusers", f"--input={workdir}/export", f"--output={tmp_path / 'folder'}"]
    status, _, err = run_command(convert, flags, monkeypatch, capsys)
    assert status == 0, err
    names = sorted(x.name for x in (tmp_path / "folder").iterdir())
    parts = ["scheduler", "text_encoder", "tokenizer", "transformer", "vqvae"]
    assert names == ["README.md", "model_index.json", "pipeline.py", *parts]


def test_what_was_cut_off_is_made_again_in_the_same_bits(finished, tmp_path):
    workdir, _, _ = finished
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    expected = hashes(workdir)
    for name in ("teacher", "export", "checkpoints/distill", "checkpoints/pretrain/4"):
        shutil.rmtree(again / name)
    out, err = run(again)
    assert "continues at step 2" in err
    assert hashes(again) == expected
    assert "done already" in out  # what was measured is of the same bits
    # Another teacher would have other words.
    other = "--config.text_encoder.text.vocabulary=601"
    _, err = run(again, other, status=2)
    assert "text_encoder.text.vocabulary: was 600, is 601" in err


def test_a_teacher_of_a_run_is_distilled_again_without_its_pictures(finished, tmp_path):
    workdir, _, _ = finished
    given = {"teacher.random": False, "teacher.bundle": str(workdir), "distill.sigma": 0.1}
    run = opened(("meissonic", "smoke"), given, tmp_path)
    assert run.encoder.identity == text_encoder.load_encoder(None, workdir / "teacher").identity
    assert run.tokenizer.config["name"] == "patches" and run.teacher_sampler == {"name": "maskgit"}
    assert run.draw_teacher(run.teacher.params, 2, {}, 0, *run.pictured).shape == (16, 32, 32, 3)


def test_it_is_planned_without_anything_written(tmp_path):
    out, _ = run(tmp_path / "new", "--dry_run")
    assert "emoji, with images to train and to evaluate on, 90 texts of them" in out
    assert "pretrain: begins, 4 steps" in out and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"text_encoder.text.vocabulary": 4000}, "config.text_encoder.text.vocabulary.*too large"),
        ({"text_encoder.text.vocabulary": 400}, "no room for the bytes; give at least 514"),
        ({"text_encoder.text.width": 48}, "the text encoder gives states of .24, 48."),
        ({"text_encoder.text.context": 20}, "the text encoder gives states of .20, 96."),
        ({"model.vocabulary": 2048}, "vocabulary of the network meissonic is 2048, expected more"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, changes, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        small = {"text_encoder.text.vocabulary": 600}  # of few names
        opened(("emoji", "text"), {**small, **changes}, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
