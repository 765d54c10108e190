"""MLflow's store holds numbers, parameters, tags, the table of events, figures, summary and report: read back with its
own client from a sqlite file."""

from __future__ import annotations

import json

import pytest

from lightning_lossacc.sinks import Reporter, find_sinks
from tests.made_up import MESSAGE, event, tell_all
from tests.read_back import STORE_NOISE, mlflow_logger, mlflow_store

pytestmark = STORE_NOISE


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The folder of a store."""
    return mlflow_store(tmp_path_factory.mktemp("mlflow")).parent


def logger_of(store, package=0, **options):
    return mlflow_logger(store, store / "mlflow.db", package, **options)


def client_of(store):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{store}/mlflow.db")


@pytest.mark.parametrize("package", [0, 1], ids=["lightning", "pytorch_lightning"])
def test_a_run_holds_everything_and_a_resumed_one_goes_on(store, tmp_path, package):
    logger = logger_of(store, package, prefix="net")
    report = tmp_path / "report.html"
    report.write_text("<html>why</html>")
    tell_all(Reporter(find_sinks([logger]), warn=pytest.fail), report)
    # The user changed a setting, which MLflow refuses to change.
    resumed = logger_of(store, package, prefix="net", run_id=logger.run_id)
    reporter = Reporter(find_sinks([resumed], [event(300)]), warn=pytest.fail)
    reporter.start({"accuracy_margin": 0.02, "watch": 1})
    reporter.event(event(400, message="second"), 400)
    client = client_of(store)
    run = client.get_run(logger.run_id).data
    assert run.params == {"lossacc.accuracy_margin": "0.01", "lossacc.watch": "1"}
    assert run.tags["lossacc.verdict"] == "over-confidence: loss up, accuracy flat"
    assert run.tags["lossacc.best_nll"] == "0.5" and run.tags["lossacc.events"] == "2"
    assert run.tags["mlflow.note.content"] == "    done\n    → <ok>"

    def column(key):
        return [(item.step, item.value) for item in client.get_metric_history(logger.run_id, key)]

    assert column("net-lossacc/val/nll") == [(300, 0.5)]
    assert column("net-lossacc/val/events") == [(300, 1.0), (400, 2.0)]
    folder = store / "artifacts" / logger.run_id / "artifacts" / "lossacc"
    assert sorted(path.name for path in folder.iterdir()) == [
        "events.json",
        "lossacc.png",
        "report.html",
        "summary.txt",
    ]
    assert json.loads(run.tags["mlflow.loggedArtifacts"]) == [{"path": "lossacc/events.json", "type": "table"}]
    table = json.loads((folder / "events.json").read_text())
    assert [row[table["columns"].index("message")] for row in table["data"]] == [MESSAGE, "second"]
    assert (folder / "lossacc.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.html").read_text() == "<html>why</html>"


def test_the_users_description_stays_and_ours_is_replaced(store):
    client = client_of(store)
    for before, after in {"mine": "mine", "    lossacc · old": "    lossacc · new"}.items():
        logger = logger_of(store, tags={"mlflow.note.content": before})
        Reporter(find_sinks([logger]), warn=pytest.fail).summary("lossacc · new", 1)
        assert client.get_run(logger.run_id).data.tags["mlflow.note.content"] == after
