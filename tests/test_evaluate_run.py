"""dimo_jax.evaluate on a run, on several, and on prompts: which flags belong together, and why."""

import json

import jax
import numpy as np
import pytest

from dimo_jax import bundles, evaluate, tokenizers
from dimo_jax.evaluation import evaluate_images
from dimo_jax.evaluation.features.feature_store import Extractor
from dimo_jax.evaluation.metrics import neighbours
from dimo_jax.generation import drawing
from dimo_jax.profiling import sampler_speed, step_speed
from dimo_jax.runs import run_samples
from tests.helpers import inception_weights
from tests.helpers.command_line import SAMPLER, built_once, run_command, save_tiny, tiny_network

# On one worker, which makes the fixtures once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("evaluate_run")]

__all__ = ["built_once"]  # a fixture


def plain_features(images):
    x = images.astype(np.float32) / 255
    quarters = x.reshape(len(x), 2, 4, 2, 4, 3).mean(axis=(2, 4))
    return {
        "2048": quarters.reshape(len(x), -1),
        "logits_unbiased": 4 * x[:, 2, :5, 0],
        "spatial": x[:, 3, :4].reshape(len(x), -1),
    }


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What a finished run leaves, as far as its evaluation looks."""
    root = tmp_path_factory.mktemp("run") / "run"
    save_tiny(root / "export")
    save_tiny(root / "teacher", kind="teacher")
    config = {"teacher": {"bundle": ""}, "tokenizer": {"bundle": ""}, "seed": 0}
    config["data"] = {"name": "labels"}
    (root / "config.json").write_text(json.dumps(config))
    lines = [{"stage": "distill", "step": n, "interim/fid_5k": 9.0 - n} for n in (2, 4, 6)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate_run")
    real = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8)
    x = plain_features(real)["2048"].astype(np.float64)
    np.savez(root / "real.npz", arr_0=real, mu=x.mean(0), sigma=np.cov(x.T))
    inception_weights.save_bundle(root / "inception", 16)
    return root


@pytest.fixture
def run(monkeypatch, capsys, built_once, places, tmp_path):
    def open_network(bundle, protocol, batch_size):
        return Extractor(plain_features, {"weights": bundle.params_hash}, 4)

    monkeypatch.setattr(evaluate_images, "open_network", open_network)
    monkeypatch.setattr(neighbours, "ROWS_PER_DEVICE", 4)
    monkeypatch.setattr(neighbours, "COLUMNS", 32)

    def run(*arguments, status=0, measured=True):
        flags = [f"--output={tmp_path / 'eval'}"] if measured else []
        flags += [f"--features={places / 'inception'}"] if measured else []
        found, out, err = run_command(evaluate, [*flags, *arguments], monkeypatch, capsys)
        assert found == status, err
        return err if status else out

    run.output = tmp_path / "eval"
    return run


def test_a_row_for_each_temperature_and_for_the_teacher(run, workdir, places, monkeypatch):
    drawn, draw = [], drawing.draw
    monkeypatch.setattr(drawing, "draw", lambda *given: drawn.append(given) or draw(*given))
    flags = ["run", f"--workdir={workdir}", f"--reference={places / 'real.npz'}", "--num=20"]
    flags += ["--steps=1,3", "--temperatures=0.5,1", "--batch_size=8", "--guidance=1.5"]
    out = run(*flags)
    content = json.loads((run.output / "results.json").read_text())
    rows = content["rows"]
    assert [(row["model"], row["steps"]) for row in rows] == [
        ("generator", 1),
        ("generator", 1),
        ("teacher", 3),
    ]
    assert [row["sampler"].get("temperature") for row in rows[:2]] == [0.5, 1.0]
    assert rows[0]["sampler"]["name"] == "one_step"
    assert rows[0]["sampler"]["sigma"] == SAMPLER["sigma"]
    assert (rows[2]["sampler"]["num_steps"], rows[2]["sampler"]["guidance"]) == (3, 1.5)
    assert len({row["metrics"]["fid"]["mean"] for row in rows}) == 3
    assert all(row["num"] == 20 and row["seed"] == 0 for row in rows)
    kinds = [entry["kind"] for entry in content["pictures"]]
    assert kinds == ["samples", "samples", "neighbours", "worst", "best"]
    page = (run.output / "report.html").read_text()
    # The curve over training comes from the run's own record.
    assert "teacher, 3 steps" in page and "fid 5k" in page.replace("_", " ").lower()
    assert out.count("FID: ") == 3 and str(run.output / "results.json") in out.splitlines()[-1]
    # The same labels and keys for every temperature; and a second time nothing is drawn.
    assert len(drawn) == 3
    run(*flags)
    assert len(drawn) == 3


def test_the_tokens_of_a_set_are_those_of_sample(run, workdir, places):
    run("run", f"--workdir={workdir}", f"--reference={places / 'real.npz'}", "--num=12", "--seed=4")
    (path,) = (run.output / "samples").glob("*.npz")
    with np.load(path) as data:
        assert data["labels"].tolist() == [*range(10), 0, 1]
        assert json.loads(str(data["settings"]))["seed"] == 4
        assert data["arr_0"].shape == (12, 8, 8, 3)


def test_speed_is_a_metric(run, workdir, places, monkeypatch):
    asked = []

    def timed(name, extra=()):
        def function(config, models, clock, sizes, *more):
            asked.append((name, list(sizes), *more[: len(extra)]))
            return [
                {"latency_seconds": {"whole": {"median": 0.5 * size}}, "images_per_second": 2.0}
                for size in sizes
            ]

        return function

    monkeypatch.setattr(sampler_speed, "sample", timed("sample"))
    monkeypatch.setattr(sampler_speed, "teacher_sample", timed("teacher", ("steps",)))
    models = step_speed.Models(
        tiny_network(), None, tokenizers.build({"name": "gray_levels"}), None
    )
    monkeypatch.setattr(step_speed, "open_models", lambda config: models)
    flags = [
        "run",
        f"--workdir={workdir}",
        f"--reference={places / 'real.npz'}",
        "--num=12",
        "--speed",
    ]
    run(*flags, "--steps=1,2", "--temperatures=1,2", "--batch_size=8")
    rows = json.loads((run.output / "results.json").read_text())["rows"]
    # Once for all temperatures: no time depends on them.
    assert asked == [("sample", [1, 8]), ("teacher", [1, 8], [2])]
    for row in rows:
        assert row["metrics"]["latency_seconds"]["mean"] == 0.5
        assert row["metrics"]["images_per_second"]["mean"] == 2.0
        assert row["speed"]["throughput"]["latency_seconds"]["whole"]["median"] == 4.0


def test_a_run_that_is_not_finished(tmp_path, workdir, run):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    err = run(f"--workdir={tmp_path}", "--num=4", status=2)
    assert f"the run in {tmp_path} has no checkpoint of a generator yet; start the same" in err
    assert not (tmp_path / "checkpoints").exists()


def test_too_little_room_is_said_before_the_work(run, workdir, places):
    flags = ["run", f"--workdir={workdir}", f"--reference={places / 'real.npz'}"]
    err = run(*flags, "--num=900000000000", status=2)
    assert "GB are free" in err and "172800.0 GB" in err.replace("345600.0", "172800.0")
    assert not list((run.output / "samples").iterdir())


def test_sets_have_their_own_names(workdir):
    sets = run_samples.sets_of(workdir, [1, 8], [0.5, 1], {"guidance": 2.0})
    names = [one.name for one in sets]
    assert names == [
        "generator_1_temperature_0.5",
        "generator_1_temperature_1.0",
        "teacher_8_guidance_2.0",
    ]
    assert sets[2].overrides == {"num_steps": 8, "guidance": 2.0}


def test_a_generator_of_several_steps_is_one_row_of_so_many(workdir, tmp_path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    later = {"step_ratios": [0.6, 0.3], "step_sigma": 0.0, "redraw": False}
    save_tiny(tmp_path / "export", sampler=SAMPLER | later)
    (one,) = run_samples.sets_of(tmp_path, [1])
    assert (one.model, one.steps, one.name) == ("generator", 3, "generator_3")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "give one of images, run, compare, reference, geneval; found none of them"),
        (["--samples=a", "--workdir=b"], "found --samples and --workdir"),
        (["run", "--workdir=nowhere", "--num=4"], "--workdir=nowhere is no run"),
        (["run", "--workdir={run}"], "--workdir needs --num"),
        (["run", "--workdir={run}", "--num=4", "--steps=1,x"], "--steps=1,x must be whole numbers"),
        (["run", "--workdir={run}", "--num=4", "--temperatures=0"], "must be numbers above 0"),
        (["run", "--workdir={run}", "--num=4", "--steps="], "--steps= must be whole numbers"),
        (["run", "--workdir={run}", "extra"], "unexpected argument 'extra'"),
        (["run", "--workdir={run}", "--samples=a"], "--samples is of images and reference"),
        (["images", "--samples=a", "--steps=1"], "--steps is of run"),
        (["images", "--samples=a", "--clip=b", "--hps=c"], "give one of the two"),
        (["run", "--workdir={run}", "--clip=b"], "--clip is of images"),
        (["images", "--samples=a", "--hps=c"], "--hps needs --hps_version and --hps_prompts"),
        (["compare", "{run}"], "1 runs were given to compare; give 2 to 8"),
        (["geneval"], "geneval needs a file"),
        (["reference", "a.npz", "b", "--samples=a"], "unexpected argument 'b'"),
    ],
)
def test_flags_that_do_not_go_together(run, workdir, flags, complaint):
    assert complaint in run(*(x.format(run=workdir) for x in flags), status=2)


def test_the_spelling_of_before_goes_on_working_with_a_hint(
    run, workdir, places, tmp_path, monkeypatch, capsys
):
    def spelled(*arguments):
        flags = [f"--output={tmp_path / 'eval'}", f"--features={places / 'inception'}"]
        return run_command(evaluate, [*flags, *map(str, arguments)], monkeypatch, capsys)

    real = places / "real.npz"
    made = tmp_path / "made.npz"
    for command, arguments in {
        "images": [f"--samples={real}", f"--reference={real}", "--metrics=fid", "--seed=3"],
        "run": [f"--workdir={workdir}", f"--reference={real}", "--num=12", "--metrics=fid"],
        "reference": [f"--samples={real}", f"--make_reference={made}"],
        "compare": ["--compare", tmp_path / "eval", tmp_path / "eval"],
    }.items():
        status, out, err = spelled(*arguments)
        assert status == 0 and out, err
        assert f"hint: write python -m dimo_jax.evaluate {command} ...\n" in err
    assert made.is_file()
    status, _, err = spelled(f"--samples={real}", f"--make_reference={made}", f"--reference={real}")
    assert status == 2 and "a reference is made without --reference" in err


def test_what_a_mode_needs(run, workdir):
    err = run("run", f"--workdir={workdir}", status=2, measured=False)
    assert "run needs --output and --features" in err
    err = run("images", "--clip=b", status=2, measured=False)
    assert "images needs --samples and --output" in err


def test_runs_side_by_side(run, tmp_path):
    for name, fid in (("one", 5.0), ("two", 4.0)):
        (tmp_path / name).mkdir()
        metrics = {"fid": {"mean": fid, "std": 0.0}}
        rows = [{"model": "generator", "steps": 1, "metrics": metrics, "sampler": {}}]
        (tmp_path / name / "results.json").write_text(json.dumps({"rows": rows}))
    both = [str(tmp_path / "one"), str(tmp_path / "two")]
    printed = run("compare", *both, measured=False)
    assert "5.00" in printed and "4.00" in printed
    out = run("compare", *both)
    assert "compare.html" in out and (run.output / "compare.md").is_file()


def test_genevals_table(run, tmp_path):
    path = tmp_path / "results.jsonl"
    line = {"filename": "0/0.png", "tag": "colors", "prompt": "a red ball", "correct": True}
    path.write_text(json.dumps(line) + "\n")
    assert "1.00" in run("geneval", path, measured=False)


def test_the_teacher_may_lie_elsewhere(tmp_path, workdir):
    config = {"teacher": {"bundle": str(workdir / "teacher")}, "data": {"name": "labels"}}
    save_tiny(tmp_path / "export")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (one,) = run_samples.sets_of(tmp_path, [4])
    assert one.bundle == workdir / "teacher" and one.tokenizer == tmp_path / "export/tokenizer"
    assert bundles.load(one.bundle).kind == "teacher" and jax.process_count() == 1
